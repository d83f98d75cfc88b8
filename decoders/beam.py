"""Reward-guided beam search and diverse verifier tree search (DVTS), after Hugging Face's search-and-learn.

N beginnings in N / M beams of M children each. A round draws a block, or a step, behind every child and keeps

    `beam`    the N / M best of all N by the reward of the answer up to there                                        (1)
    `dvts`    the best of each beam's M                                                                              (2)

as the beams of the next, which draw M children each. The reward is of a beginning as of a whole answer, such as the
least or the last of a process reward's steps. A beam that has ended stays in the comparison with its reward and draws
nothing; one that (1) drops stays eligible as an answer, as it costs no more. Under a verifier one that was cut at
`max_tokens` comes behind all others, here and in the end. After `rounds` rounds each beam is drawn to its end.

The answer is the best of all that ended. Best so far: the same; before the first, the best beginning.
Cost: N answers drawn in the first round, then as many as go on; N beginnings scored per round.
Neutral value: n = 1 is plain sampling, token for token; a block of max_tokens is best of n.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import Field

from trimtab.decoders.protocols import (
    Chunk,
    Engine,
    LimitReached,
    Reward,
    Sampling,
    Tokens,
    Work,
    base_alone,
)
from trimtab.decoders.report import Report
from trimtab.decoders.shared.blocks import (
    Block,
    PartialAnswer,
    PrefixReward,
    Step,
    describe,
    drop_unread,
    expand,
    expansion_cost,
    rank,
    report_growth,
    take_distinct,
)
from trimtab.decoders.shared.candidates import Guides, Pool, check_answers, derive_seed


@dataclass(frozen=True, kw_only=True)
class Beam:
    """Beginnings that grow by a block at a time, the best of which go on, in several copies each."""

    n: Pool = 16
    width: Annotated[int, Field(ge=1, le=4096, description="M, children of a beam; a divisor of n")] = 4
    variant: Annotated[
        Literal["beam", "dvts"], Field(description="the best of all go on, or the best of each of n / width trees")
    ] = "beam"
    block: Block = 16
    step: Step = ""
    prefix_reward: PrefixReward = None
    rounds: Annotated[
        int, Field(ge=1, le=1_000_000, description="comparisons, at most; then answers are drawn to their end")
    ] = 40
    guides: Guides = field(default_factory=base_alone)

    def __post_init__(self) -> None:
        if self.n % self.width:
            raise ValueError(f"width={self.width} must divide n={self.n}")

    @property
    def beams(self) -> int:
        return self.n // self.width

    async def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        check_answers(n, self.n)
        beams, rounds = [PartialAnswer()], 0
        longest = report_growth(engine, (), reward, longest=0, max_tokens=sampling.max_tokens)
        seen: dict[tuple[int, ...], PartialAnswer] = {}
        finish: str | None = None
        while finish is None and not all(one.finish for one in beams):
            compared = rounds < self.rounds and self.n > 1
            partials, finish = await expand(
                prompt,
                beams,
                sampling,
                engine,
                reward,
                n=self.n if rounds == 0 else self.width if compared else 1,
                block=self.block if compared else sampling.max_tokens,
                step=self.step if compared else "",
                guides=self.guides,
                seeds=[derive_seed(sampling.seed, j, rounds) if rounds else sampling.seed for j in range(len(beams))],
            )
            seen |= {one.tokens: one for one in partials if one.ended}
            rounds += 1
            if finish is None:
                beams = self._survivors(partials, reward, first=rounds == 1)
                standing = [*seen.values(), *beams]
                longest = report_growth(engine, standing, reward, longest=longest, max_tokens=sampling.max_tokens)
        pool = [*seen.values(), *((one for one in [*partials, *beams] if one.tokens) if finish else ())]
        if not pool:
            raise LimitReached(finish or "")
        pool = drop_unread([replace(one, finish=one.finish or finish) for one in pool], reward)
        shared: Report = {"rounds": rounds, "unfinished": sum(one.unfinished for one in pool)}
        ranked = rank(pool)
        if "candidates" in include:
            shared["candidates"] = [describe(i, one) for i, one in enumerate(ranked)]
        for i, one in enumerate(take_distinct(ranked, n)):
            report: Report = {"value": one.value, "candidate": ranked.index(one)}
            if i == 0:
                report.update(shared)
            yield Chunk(index=i, tokens=one.tokens, finish=one.finish, report=report)

    def work(self, max_tokens: int, *, n: int, include: frozenset[str]) -> Work:
        if self.n == 1:
            return expansion_cost(1, max_tokens, max_tokens, "", guides=self.guides)
        compared = expansion_cost(self.n, max_tokens, self.block, self.step, self.rounds, guides=self.guides)
        rest = self.beams * (max_tokens if self.step else max(0, max_tokens - self.rounds * self.block))
        last = self.beams * max_tokens if rest else 0
        return replace(
            compared,
            sampled=compared.sampled + rest,
            reward_tokens=compared.reward_tokens + last,
            readings=compared.readings + (self.beams if rest else 0),
        )

    def _survivors(self, partials: list[PartialAnswer], reward: Reward, *, first: bool) -> list[PartialAnswer]:
        values = [one.value for one in drop_unread(partials, reward)]
        by_value = sorted(range(len(values)), key=lambda i: (values[i] is None, -(values[i] or 0.0)))
        if self.variant == "beam":
            return [partials[i] for i in by_value[: self.beams]]  # (1)
        tree = [i // self.width if first else partials[i].parent for i in range(len(partials))]
        return [partials[next(i for i in by_value if tree[i] == t)] for t in range(self.beams)]  # (2)
