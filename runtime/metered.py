"""What a request spends and may spend: an engine that counts, and that ends answers when tokens or time are gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from trimtab.decoders.protocols import Chunk, Engine, LimitReached, Mixture, Sampling, Tokens

Render = Callable[[str, str], Awaitable[Tokens]]
"""(instruction, role) -> the request's prompt under it"""


@dataclass(kw_only=True)
class Meter:
    """One request's, shared by all that it draws."""

    max_sampled_tokens: int | None = None
    deadline: float | None = None
    """On the event loop's clock, in seconds."""
    sampled: int = 0
    """Tokens drawn, shown or not."""
    scored: int = 0
    """Tokens whose log-prob or reward was asked for, once per mixture and per reward."""
    cut: str | None = None
    """Of `decoders.protocols.LIMIT_REASONS`, what first ended an answer before its time."""

    @property
    def left(self) -> int | None:
        return None if self.max_sampled_tokens is None else max(0, self.max_sampled_tokens - self.sampled)

    @property
    def bounded(self) -> bool:
        return self.max_sampled_tokens is not None or self.deadline is not None


@dataclass(frozen=True, slots=True)
class Metered:
    """An engine on a meter. What it draws ends with one of `LIMIT_REASONS` once the meter's bounds are reached.

    One answer alone never passes the budget. Answers drawn side by side end together at the first token that reaches
    it, so they may pass it by one token each.
    """

    engine: Engine
    meter: Meter
    render: Render | None = None

    async def generate(
        self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture
    ) -> AsyncGenerator[Chunk, None]:
        meter, asked = self.meter, sampling.max_tokens
        if meter.bounded:  # what has been drawn when the bound comes must be in hand
            sampling = replace(sampling, stream=True, max_tokens=min(asked, meter.left or asked))
        drawn = dict.fromkeys(range(n), 0)  # tokens of each open answer
        cut = ""
        async with aclosing(self.engine.generate(prompt, sampling, n=n, guides=guides)) as chunks:
            while drawn:
                if meter.left == 0:
                    cut = "budget"
                    break
                try:
                    async with asyncio.timeout_at(meter.deadline) as time:
                        chunk = await anext(chunks)
                except TimeoutError:
                    if not time.expired():
                        raise
                    cut = "deadline"
                    break
                meter.sampled += len(chunk.tokens)
                drawn[chunk.index] += len(chunk.tokens)
                if chunk.finish == "length" and drawn[chunk.index] == sampling.max_tokens < asked:
                    meter.cut = meter.cut or "budget"
                    chunk = replace(chunk, finish="budget")
                if chunk.finish is not None:
                    del drawn[chunk.index]
                yield chunk
        if drawn:
            meter.cut = meter.cut or cut
        for index in drawn:
            yield Chunk(index=index, tokens=(), finish=cut)

    @property
    def eos_ids(self) -> frozenset[int]:
        return self.engine.eos_ids

    async def greedy_top_logprobs(
        self, prompt: Tokens, *, k: int, length: int, guides: Mixture
    ) -> list[list[tuple[int, float]]]:
        meter = self.meter
        late = meter.deadline is not None and asyncio.get_running_loop().time() >= meter.deadline
        if meter.left == 0 or late:
            meter.cut = meter.cut or ("deadline" if late else "budget")
            raise LimitReached("deadline" if late else "budget")
        lists = await self.engine.greedy_top_logprobs(
            prompt, k=k, length=min(length, meter.left or length), guides=guides
        )
        meter.sampled += len(lists)
        return lists

    async def score(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        self.meter.scored += len(completion)
        return await self.engine.score(prompt, completion, guides=guides)

    async def divergence(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        self.meter.scored += len(completion)
        return await self.engine.divergence(prompt, completion, guides=guides)

    def text(self, completion: Tokens) -> str:
        return self.engine.text(completion)

    def tokens(self, text: str) -> Tokens:
        return self.engine.tokens(text)

    async def render_with_instruction(self, instruction: str, *, role: str = "system") -> Tokens:
        if self.render is None:
            return await self.engine.render_with_instruction(instruction, role=role)
        return await self.render(instruction, role)
