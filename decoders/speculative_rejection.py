"""Speculative rejection (arXiv 2410.20290): best of N that gives up on the answers that begin badly.

    at each length t_1 < t_2 < …:  keep the round((1 - alpha) |K|) best of K by r(x, y_<=t)                          (1)
    y* = argmax r(x, y) over K and every answer that has ended,    y_1 … y_N ~ pi                                    (2)

pi is the base or, with `guides`, their mixture. K are the answers still in the running; one that has ended takes part
with its final reward, and if (1) drops it, it stays eligible in (2), as it costs no more. Under a verifier an answer
cut at `max_tokens` comes behind all that ended by themselves. At least n stay, for `n` answers. The lengths are the
request's and not the free memory's as in the authors' code, so a seed is an answer.

Answers are drawn in segments from one length to the next, each a generation of its own that begins at the tokens so
far: a dropped answer draws nothing more, the prefix cache holds what a kept one has, and the number of tokens drawn
does not hang on timing. Streams kept open would run ahead while rewards are computed, since an engine does not wait
for its reader. A segment's seed comes from the request's, the candidate and the segment; the first segment's draws are
those of best of N.

Best so far: the best of the answers that have ended; before the first, the best of those kept, by its reward at the
last length that it reached.
Cost: about N times the mean over positions of the share still running: with alpha = 1/2 and three segments of equal
length N (1 + 1/2 + 1/4) / 3 = 0.58 N answers drawn. Each segment is scored.
Neutral value: alpha = 0 is best of N, and N = 1 plain sampling, token for token: with nothing to decide, answers are
drawn whole.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Annotated

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
from trimtab.decoders.report import Report, SearchProgress
from trimtab.decoders.shared.candidates import (
    Candidate,
    Guides,
    Pool,
    check_answers,
    derive_seed,
    draw,
    find_unread,
    rank,
    score_all,
    show_chosen,
    stop_position,
)
from trimtab.decoders.shared.gather import gather_or_cancel


@dataclass(frozen=True, kw_only=True)
class SpeculativeRejection:
    """The best of n candidates by the reward, of which the worse beginnings are dropped on the way."""

    n: Pool = 16
    alpha: Annotated[float, Field(ge=0, lt=1, description="share dropped at each decision; 0 is best of n")] = 0.5
    decisions: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...],
        Field(
            strict=False,
            max_length=256,
            description="token counts at which candidates are compared; those below max_tokens apply",
        ),
    ] = (64, 128, 256, 512, 1024, 2048, 4096)
    guides: Guides = field(default_factory=base_alone)

    def __post_init__(self) -> None:
        if list(self.decisions) != sorted({*self.decisions} - {0}) or any(length < 0 for length in self.decisions):
            raise ValueError(f"decisions must be positive and rise; got {list(self.decisions)}")

    async def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        check_answers(n, self.n)
        lengths = [t for t in self.decisions if t < sampling.max_tokens] if self.alpha and n < self.n else []
        length, *later = [*lengths, sampling.max_tokens]
        first = replace(sampling, max_tokens=length)
        survivors = await draw(prompt, first, engine, reward, n=self.n, guides=self.guides, beginnings=bool(later))
        dropped: list[Candidate] = []
        decided: list[dict[str, int]] = []
        while later and any(is_running(c, length) for c in survivors):
            keep = max(n, round((1 - self.alpha) * len(survivors)))
            dropped += [_drop(c) if is_running(c, length) else c for c in rank(survivors)[keep:]]
            decided.append({"tokens": length, "candidates": len(survivors), "kept": keep})
            survivors = rank(survivors)[:keep]  # (1)
            here = length
            length, *later = later if keep > n else later[-1:]  # nothing more to decide: on to the end
            survivors = await self._carried_on(survivors, here, length, prompt, sampling, engine, reward)
            leader = rank_eligible(survivors, dropped, reward)[0]
            best_so_far = leader.tokens if leader.value is not None else None
            engine.report_progress(
                SearchProgress(stage="grow", done=length, of=sampling.max_tokens, best=best_so_far, value=leader.value)
            )
        eligible = rank_eligible(survivors, dropped, reward)
        best = eligible[:n]  # (2)
        pool = sorted([*eligible, *(c for c in dropped if c.finish == DROPPED)], key=lambda c: c.index)
        reports: list[Report] = [{"value": c.value, "candidate": c.index, "decisions": decided} for c in best]
        async with aclosing(show_chosen(best, pool, include, reports)) as chunks:
            async for chunk in chunks:
                yield chunk

    def work(self, max_tokens: int, *, n: int, include: frozenset[str]) -> Work:
        lengths = [t for t in self.decisions if t < max_tokens] if self.alpha and n < self.n else []
        survivors, here, sampled, reward_tokens, readings = self.n, 0, 0, 0, 0
        for length in [*lengths, max_tokens]:
            sampled, reward_tokens, here = (
                sampled + survivors * (length - here),
                reward_tokens + survivors * length,
                length,
            )
            readings += survivors
            survivors = max(n, round((1 - self.alpha) * survivors))
        return Work(
            candidates=self.n,
            sampled=sampled,
            reward_tokens=reward_tokens,
            readings=readings,
            mixtures={"": self.guides},
            terms={"candidates": "n"},
        )

    async def _carried_on(
        self,
        survivors: Sequence[Candidate],
        here: int,
        length: int,
        prompt: Tokens,
        sampling: Sampling,
        engine: Engine,
        reward: Reward,
    ) -> list[Candidate]:
        """The candidates, those that run at length `here` drawn up to `length` and scored."""

        async def longer(c: Candidate) -> Candidate:
            if not is_running(c, here):
                return c
            seed = derive_seed(sampling.seed, c.index, here)
            segment = replace(sampling, max_tokens=length - here, stream=False, seed=seed, begun=here)
            async with aclosing(engine.generate([*prompt, *c.tokens], segment, n=1, guides=self.guides)) as chunks:
                drawn = [replace(chunk, engine_output=None) async for chunk in chunks]
            before = [replace(piece, finish=None, engine_output=None) for piece in c.pieces]
            c = replace(c, pieces=(*before, *drawn))
            if (end := stop_position(c.tokens, here, sampling.stop, engine)) is not None:
                c = replace(c, pieces=(Chunk(index=c.index, tokens=c.tokens[:end], finish="stop"),))
            if not c.whole:
                return c
            try:
                [score] = await score_all(reward, prompt, [c.tokens])
            except LimitReached:  # a beginning keeps the value that it had
                return c if is_running(c, length) and length < sampling.max_tokens else replace(c, value=None)
            return replace(c, value=score)

        return await gather_or_cancel(longer(c) for c in survivors)


DROPPED = "rejected"
"""The finish of an answer that (1) ended."""


def is_running(candidate: Candidate, length: int) -> bool:
    """Whether it was only interrupted, at `length`."""
    return candidate.finish == "length" and len(candidate.tokens) == length


def rank_eligible(survivors: Sequence[Candidate], dropped: Sequence[Candidate], reward: Reward) -> list[Candidate]:
    """What (2) chooses from, best first: what is not dropped, or had ended when it was."""
    eligible = [*survivors, *(c for c in dropped if c.finish != DROPPED)]
    unread = find_unread([c.finish for c in eligible], reward)
    eligible = [replace(c, value=None) if drop else c for c, drop in zip(eligible, unread, strict=True)]
    return sorted(rank(eligible), key=lambda c: not c.whole)


def _drop(candidate: Candidate) -> Candidate:
    return replace(candidate, pieces=(*candidate.pieces[:-1], replace(candidate.pieces[-1], finish=DROPPED)))
