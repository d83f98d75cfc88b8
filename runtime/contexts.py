"""Guides that are the base itself under two prompts.

Linear Alignment (arXiv 2401.11458), classifier-free guidance (arXiv 2306.17806), contrastive prompts (arXiv
2408.05094).

    l_c = l(x, c+) - l(x, c-)                                                                                    (1)

l: the base's logits; (x, c): the request's conversation under an instruction; x alone where there is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from trimtab.decoders.protocols import Tokens
from trimtab.runtime.usage import Usage


@dataclass(frozen=True)
class Instruction:
    """What a request's conversation may be put under."""

    text: str
    role: str = "system"
    """"system" or "user": whose message it joins."""
    replaces_system: bool = False
    """Whether it takes the place of the client's own system message; an empty one leaves none."""


Render = Callable[[Instruction], Awaitable[Tokens]]
"""instruction -> the request's prompt under it"""


@dataclass(frozen=True, kw_only=True)
class Context:
    """c+ and c- of (1); None: the conversation as it is."""

    prompt: Instruction | None = None
    against: Instruction | None = None

    @property
    def instructions(self) -> frozenset[Instruction]:
        return frozenset(filter(None, (self.prompt, self.against)))


def make_context(prompt: str | None, against: str | None, role: str, replace_system: bool) -> Context:
    """Of texts as people write them."""

    def instruct(text: str | None) -> Instruction | None:
        return None if text is None else Instruction(text, role, replace_system)

    return Context(prompt=instruct(prompt), against=instruct(against))


@dataclass(kw_only=True)
class RequestContexts:
    """Those that one request's answers may be drawn with, each prompt rendered once."""

    contexts: Mapping[str, Context] = field(default_factory=dict)
    adapters: frozenset[str] = frozenset()
    """Guides that are LoRA adapters of the base: each takes a row of the batch too."""
    render: Render | None = None
    """None: there are no messages."""
    usage: Usage = field(default_factory=Usage)
    """The request's, in which prompts under instructions count as scored."""
    prompts: dict[Instruction, Tokens] = field(default_factory=dict)
    rendering: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def prompt(self, instruction: Instruction) -> Tokens:
        """The request's prompt under it; raises ValueError where it has no messages."""
        if self.render is None:
            raise ValueError("a guide that is a prompt needs a chat request: a bare prompt has no messages")
        async with self.rendering:
            if instruction not in self.prompts:
                self.prompts[instruction] = await self.render(instruction)
                self.usage.scored += len(self.prompts[instruction])
        return self.prompts[instruction]

    def instructions(self, mixture: Mapping[str, float]) -> frozenset[Instruction]:
        """What prompts a mixture needs beside the request's own."""
        used = [self.contexts[name] for name, weight in mixture.items() if weight and name in self.contexts]
        return frozenset().union(*(context.instructions for context in used))

    def count_rows(self, mixture: Mapping[str, float]) -> int:
        """Rows of the engine's batch that a token of this mixture takes, at the most."""
        adapters = sum(bool(weight) and name in self.adapters for name, weight in mixture.items())
        return 1 + len(self.instructions(mixture)) + adapters
