"""An engine that counts what a request spends, and that ends its answers when tokens or time are gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from trimtab.decoders.protocols import Chunk, Engine, LimitReached, Mixture, Sampling, Tokens
from trimtab.runtime.usage import Usage

Render = Callable[[str, str], Awaitable[Tokens]]
"""(instruction, role) -> the request's prompt under it"""


class Read(Protocol):
    """`Engine.text` of one request, and with `cut` false `Engine.decode`."""

    def __call__(self, completion: Tokens, *, cut: bool = True) -> str: ...


@dataclass(frozen=True, slots=True)
class Metered:
    """An engine whose work is counted. What it draws ends with one of `LIMIT_REASONS` at a bound of `usage`.

    One answer alone never passes the budget. Answers drawn side by side end together at the first token that reaches
    it, so they may pass it by one token each.
    """

    engine: Engine
    usage: Usage
    render: Render | None = None
    read: Read | None = None

    async def generate(
        self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture
    ) -> AsyncGenerator[Chunk, None]:
        usage, length = self.usage, sampling.max_tokens
        if usage.bounded:  # what has been drawn when the bound comes must be in hand
            sampling = replace(sampling, stream=True, max_tokens=min(length, usage.remaining or length))
        drawn = dict.fromkeys(range(n), 0)  # tokens of each open answer
        limit = ""
        async with aclosing(self.engine.generate(prompt, sampling, n=n, guides=guides)) as chunks:
            while drawn:
                if usage.remaining == 0:
                    limit = "budget"
                    break
                try:
                    async with asyncio.timeout_at(usage.deadline) as time:
                        chunk = await anext(chunks)
                except TimeoutError:
                    if not time.expired():
                        raise
                    limit = "deadline"
                    break
                usage.sampled += len(chunk.tokens)
                usage.scored += len(chunk.tokens) * sampling.measured
                drawn[chunk.index] += len(chunk.tokens)
                if chunk.finish == "length" and drawn[chunk.index] == sampling.max_tokens < length:
                    usage.record_limit("budget")
                    chunk = replace(chunk, finish="budget")
                if chunk.finish is not None:
                    del drawn[chunk.index]
                yield chunk
        if drawn:
            usage.record_limit(limit)
        for index in drawn:
            yield Chunk(index=index, tokens=(), finish=limit)

    @property
    def eos_ids(self) -> frozenset[int]:
        return self.engine.eos_ids

    async def greedy_top_logprobs(
        self, prompt: Tokens, *, k: int, length: int, guides: Mixture
    ) -> list[list[tuple[int, float]]]:
        usage = self.usage
        late = usage.deadline is not None and asyncio.get_running_loop().time() >= usage.deadline
        if usage.remaining == 0 or late:
            reason = "deadline" if late else "budget"
            usage.record_limit(reason)
            raise LimitReached(reason)
        lists = await self.engine.greedy_top_logprobs(
            prompt, k=k, length=min(length, usage.remaining or length), guides=guides
        )
        usage.sampled += len(lists)
        return lists

    async def score(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        self.usage.scored += len(completion)
        return await self.engine.score(prompt, completion, guides=guides)

    async def divergence(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        self.usage.scored += len(completion)
        return await self.engine.divergence(prompt, completion, guides=guides)

    def text(self, completion: Tokens) -> str:
        return self.engine.text(completion) if self.read is None else self.read(completion)

    def decode(self, completion: Tokens) -> str:
        return self.engine.decode(completion) if self.read is None else self.read(completion, cut=False)

    def tokens(self, text: str) -> Tokens:
        return self.engine.tokens(text)

    async def render_with_instruction(self, instruction: str, *, role: str = "system") -> Tokens:
        if self.render is None:
            return await self.engine.render_with_instruction(instruction, role=role)
        return await self.render(instruction, role)
