"""A reward's inputs and output, and what it may use to compute it.

Shapes: N responses, K labels, T tokens. Higher is better; NaN and infinity are errors, never scores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from trimtab.decoders.protocols import Call, Engine, Tokens
from trimtab.rewards.turns import READINGS

Record = Callable[[int], None]
"""Called with the tokens that were read for a score."""


def ignore(tokens: int) -> None:
    """The `Record` of nobody."""


async def cannot_instruct(instruction: str) -> Tokens:
    raise ValueError("there is no conversation to instruct")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """The conversation that a response answers."""

    messages: tuple[Mapping[str, Any], ...]
    """As a chat request has them, whatever API they came by: "role", "content" (always a text), and where there are any
    "tool_calls" ([{"id", "type", "function": {"name", "arguments"}}], arguments being JSON in a text), "tool_call_id"
    and "name". Thoughts of earlier turns are left out. A bare prompt is one message of the user's."""
    prompt: Tokens
    """The conversation in the base's tokens, chat template included, up to where the response begins."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """What the model may call, as a chat request has them."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """From the request, to score against: "references" (list of strings), "answer" (string) …"""
    instruct: Callable[[str], Awaitable[Tokens]] = cannot_instruct
    """The conversation in the base's tokens under an instruction as its system message, joined to one that is there."""
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(READINGS), compare=False)
    """What the request's calls of judges, and of the base for its rewards, take one of each."""
    record: Record = field(default=ignore, compare=False)
    """For scorers that have something else read than each response once."""


ReadPart = Literal["answer", "thoughts", "both"]
"""What a reward reads of a completion: "both" is all of it, marks of thoughts and calls included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """An answer, or a prefix of one."""

    text: str
    """As the client gets it: without special tokens, and only up to a stop string."""
    tokens: Tokens
    """In the base's tokens, EOS included."""
    calls: tuple[Call, ...] = ()
    """Of tools, beside the text."""
    thoughts: str = ""
    whole: Response | None = None
    """The completion that it is part of; None where it is all of it."""

    def read(self, part: ReadPart) -> Response:
        """What a reward of this part reads."""
        if part == "answer" or (self.whole is None and part == "both"):
            return self
        if part == "thoughts" or self.whole is None:
            tokens = () if self.whole is None else self.whole.tokens[: len(self.whole.tokens) - len(self.tokens)]
            return Response(text=self.thoughts, tokens=tokens if self.thoughts else ())
        return self.whole


class Scorer(Protocol):
    """A reward before it is bound to a request.

    One that has more read than each response once has a method too, `reads(prompt, response)`: the tokens read at the
    most for a response of so many to a prompt of so many, linear in both. What it has read it records. One that never
    looks at the conversation has an attribute `reads_conversation`, False: see `reads_conversation`.
    """

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the K columns; ("score",) for a single one."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Keys that `Question.given` must have."""
        ...

    async def __call__(self, question: Question, responses: Sequence[Response]) -> list[list[float]]:
        """[N, K], one row per response. A row depends on its response alone, never on the others."""
        ...


def reads_conversation(scorer: object) -> bool:
    """Whether a reward reads what a response answers, and so must be shown all of it."""
    return bool(getattr(scorer, "reads_conversation", True))


class Pooler(Protocol):
    """A reward model running on an engine of its own."""

    @property
    def tokenizer(self) -> Any:
        """The model's own, of `transformers`."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """The head's labels, from the model's `id2label`."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest input."""
        ...

    async def score(self, inputs: Sequence[Tokens]) -> list[list[float]]:
        """[N, K] raw outputs of the head at each input's last token: no sigmoid, no softmax."""
        ...

    async def score_tokens(self, inputs: Sequence[Tokens]) -> list[list[list[float]]]:
        """[N, T, K] raw outputs of the head at every token."""
        ...


class Host(Protocol):
    """The served base, for rewards that use it."""

    @property
    def engine(self) -> Engine: ...

    @property
    def tokenizer(self) -> Any: ...

    async def render(self, messages: Sequence[Mapping[str, str]]) -> Tokens:
        """The conversation as a chat request with these messages has it, with its generation prompt."""
        ...


class RewardError(Exception):
    """No usable score: NaN, infinite, of the wrong shape, too late, or from a reward that died."""
