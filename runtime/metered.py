"""An engine that counts what a request spends, and a reward; both end when the request's tokens or time are gone."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from trimtab.decoders.protocols import (
    Chunk,
    Engine,
    LimitReached,
    Mixture,
    Parts,
    Reward,
    Sampling,
    Tokens,
    reads_final_answer,
)
from trimtab.decoders.report import SearchProgress
from trimtab.runtime.contexts import Instruction, Render
from trimtab.runtime.usage import Usage


class Read(Protocol):
    """`Engine.text` of one request, and with `cut` false `Engine.decode`."""

    def __call__(self, completion: Tokens, *, cut: bool = True) -> str: ...


@dataclass(frozen=True, slots=True)
class Metered:
    """An engine whose work is counted. What it draws ends with one of `LIMIT_REASONS` at a bound of `usage`, and what
    else is awaited of it raises LimitReached there.

    One answer alone never passes the budget. Answers drawn side by side end together at the first token that reaches
    it, so they may pass it by one token each, on every row.
    """

    engine: Engine
    usage: Usage
    render: Render | None = None
    read: Read | None = None
    split: Callable[[str, Tokens], Parts] | None = None
    """(text, tokens) of a completion -> what it holds; None: as the engine has it."""
    follow: Callable[[SearchProgress], None] | None = None
    """Hears of the progress; None: nobody does."""
    count_rows: Callable[[Mixture], int] = lambda mixture: 1
    """mixture -> rows of the batch that each token of it takes, each of which counts as a token"""

    async def generate(
        self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture
    ) -> AsyncGenerator[Chunk, None]:
        usage, length, rows = self.usage, sampling.max_tokens, self.count_rows(guides)
        if usage.bounded:  # what has been drawn when the bound comes must be in hand
            within = None if usage.remaining is None else usage.remaining // rows
            sampling = replace(sampling, stream=True, max_tokens=min(length, within or length))
        drawn = dict.fromkeys(range(n), 0)  # tokens of each open answer
        limit = ""
        async with aclosing(self.engine.generate(prompt, sampling, n=n, guides=guides)) as chunks:
            while drawn:
                if usage.remaining is not None and usage.remaining < rows:
                    limit = "budget"
                    break
                try:
                    async with usage.within_deadline():
                        chunk = await anext(chunks)
                except LimitReached as reached:
                    limit = str(reached)
                    break
                usage.sampled += rows * len(chunk.tokens)
                usage.scored += rows * len(chunk.tokens) * sampling.measured
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
        usage, rows = self.usage, self.count_rows(guides)
        within = length if usage.remaining is None else usage.remaining // rows
        if not within:
            raise usage.reach("budget")
        async with usage.within_deadline():
            lists = await self.engine.greedy_top_logprobs(prompt, k=k, length=min(length, within), guides=guides)
        usage.sampled += rows * len(lists)
        return lists

    async def score(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        async with self.usage.within_deadline():
            self.usage.scored += self.count_rows(guides) * len(completion)
            return await self.engine.score(prompt, completion, guides=guides)

    async def divergence(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        async with self.usage.within_deadline():
            self.usage.scored += self.count_rows(guides) * len(completion)
            return await self.engine.divergence(prompt, completion, guides=guides)

    def text(self, completion: Tokens) -> str:
        return self.engine.text(completion) if self.read is None else self.read(completion)

    def decode(self, completion: Tokens) -> str:
        return self.engine.decode(completion) if self.read is None else self.read(completion, cut=False)

    def parts(self, completion: Tokens) -> Parts:
        if self.split is None:
            return self.engine.parts(completion)
        return self.split(self.text(completion), completion)

    def tokens(self, text: str) -> Tokens:
        return self.engine.tokens(text)

    async def render_with_instruction(self, instruction: str, *, role: str = "system") -> Tokens:
        async with self.usage.within_deadline():
            if self.render is None:
                prompt = await self.engine.render_with_instruction(instruction, role=role)
            else:
                prompt = await self.render(Instruction(instruction, role))
        self.usage.scored += len(prompt)
        return prompt

    def report_progress(self, progress: SearchProgress) -> None:
        if self.follow is not None:
            self.follow(progress)


@dataclass(frozen=True, slots=True)
class MeteredReward:
    """A reward that is waited for until the deadline of `usage`; raises LimitReached there."""

    reward: Reward
    usage: Usage

    @property
    def reads_final_answer(self) -> bool:
        return reads_final_answer(self.reward)

    async def __call__(self, prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        async with self.usage.within_deadline():
            return await self.reward(prompt, completions)
