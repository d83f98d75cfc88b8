"""What every search shares: drawing candidates, having them scored, weighing, ranking and showing them.

Shapes: N candidates.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from bisect import bisect_left
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Discriminator, Field, Tag

from trimtab.decoders.protocols import (
    LIMIT_REASONS,
    UNFINISHED,
    Chunk,
    Engine,
    LimitReached,
    Mixture,
    Parts,
    Reward,
    Sampling,
    Tokens,
    UnsupportedSampling,
    Work,
    base_alone,
    is_base_alone,
    reads_final_answer,
)
from trimtab.decoders.report import Report, SearchProgress
from trimtab.decoders.shared.answers import Extractor
from trimtab.decoders.shared.diverse_beam import Diverse, search_hypotheses
from trimtab.decoders.shared.gather import gather_or_cancel, join_or_cancel
from trimtab.decoders.shared.joint_sampling import HEADING_TOKENS, Jointly, draw_jointly, instruct

Pool = Annotated[int, Field(ge=1, le=4096, description="candidates drawn")]
Guides = Annotated[
    Mixture, Field(description="exponent per guide that the candidates are drawn with; none is the base")
]
PoolMethod = Annotated[
    Annotated[
        Annotated[Diverse, Tag("one-of-Diverse")] | Annotated[Jointly, Tag("one-of-Jointly")],
        Discriminator(
            lambda how: "one-of-Jointly" if isinstance(how, Mapping) and "together" in how else "one-of-Diverse"
        ),
    ]
    | None,
    Field(
        description="draw the pool by diverse beam search, {groups, penalty}, or with several answers in one that "
        "follow different values, {together}; none is by sampling"
    ),
]
Beta = Annotated[float, Field(gt=0, le=1e6, description="temperature of the rewards, in their units")]
Target = Annotated[
    Literal["proposal", "base"], Field(description="with guides: what is tilted, their mixture or the base")
]
VoteBy = Annotated[Extractor, Field(description="for vote: as the strategy vote has it")]
Vector = NDArray[np.float64]
HUGE = 1e300
"""Rewards beyond it count as it: sums and quotients of those within are finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """An answer that a search may choose."""

    index: int
    """Its place in the pool, which breaks ties."""
    pieces: tuple[Chunk, ...]
    """As the engine gave them, the last one with `finish`."""
    value: float | None = None
    """Its reward; None where it was not scored."""

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for piece in self.pieces for token in piece.tokens)

    @property
    def finish(self) -> str:
        return self.pieces[-1].finish or ""

    @property
    def alone(self) -> bool:
        """Whether it was drawn by itself for want of one that was drawn together with others."""
        return any(piece.report.get("alone") for piece in self.pieces)

    @property
    def whole(self) -> bool:
        """Whether it ended at its end of sequence or at `max_tokens`, and not at a limit of the request's."""
        return self.finish not in LIMIT_REASONS

    @property
    def unfinished(self) -> bool:
        """Whether it did not end by itself."""
        return self.finish in UNFINISHED

    def described(self) -> dict[str, Any]:
        """As `return: ["candidates"]` shows it; the server puts text in the place of tokens."""
        return {"index": self.index, "tokens": self.tokens, "finish_reason": self.finish, "value": self.value}


async def draw(
    prompt: Tokens,
    sampling: Sampling,
    engine: Engine,
    reward: Reward | None,
    *,
    n: int,
    guides: Mixture,
    diverse: Diverse | Jointly | None = None,
    beginnings: bool = False,
) -> list[Candidate]:
    """[N] candidates in order of index, over the mixture `guides`, scored as they are drawn: `score_as_drawn`."""
    answers = (
        engine.generate(prompt, replace(sampling, stream=False), n=n, guides=guides)
        if diverse is None
        else draw_diverse(prompt, sampling, engine, diverse, n=n, guides=guides)
    )
    return await score_as_drawn(prompt, answers, engine, reward, n=n, beginnings=beginnings)


def draw_cost(n: int, max_tokens: int, diverse: Diverse | Jointly | None = None, *, guides: Mixture) -> Work:
    """What `draw` can cost, every candidate scored once."""
    sampled, instruction = n * max_tokens, ""
    if diverse is not None and "together" in diverse:
        k = min(diverse["together"], n)
        instruction = instruct(k)
        sampled += -(-n // k) * k * (max_tokens + HEADING_TOKENS)  # before, where none came out, each is drawn alone
    beams = diverse is not None and "groups" in diverse
    return Work(
        candidates=n,
        sampled=sampled,
        reward_tokens=n * max_tokens,
        instructed=int(bool(instruction)),
        instruction_bytes=len(instruction.encode()),
        top_logprobs=n if beams else 0,
        mixtures={"": guides},
        terms={"candidates": "n", "top_logprobs": "n"},
    )


@dataclass(kw_only=True)
class PoolProgress:
    """How far a pool of `n` is, which its engine hears of: first how many are drawn, then how many are scored."""

    engine: Engine
    n: int
    drawn: int = 0
    to_score: int = 0
    scored: int = 0
    best: Candidate | None = None

    def report(self) -> None:
        drawing = self.drawn < self.n or not self.to_score
        tokens, value = (self.best.tokens, self.best.value) if self.best is not None else (None, None)
        self.engine.report_progress(
            SearchProgress(
                stage="draw" if drawing else "score",
                done=self.drawn if drawing else self.scored,
                of=self.n if drawing else self.to_score,
                best=tokens,
                value=value,
            )
        )

    def add_scored(self, candidates: Sequence[Candidate]) -> None:
        self.scored += len(candidates)
        self.best = rank([*candidates, *([] if self.best is None else [self.best])])[0]
        self.report()


async def score_as_drawn(
    prompt: Tokens,
    answers: AsyncGenerator[Chunk, None],
    engine: Engine,
    reward: Reward | None,
    *,
    n: int,
    beginnings: bool = False,
) -> list[Candidate]:
    """[N] candidates of the answers that come, scored as answers to `prompt` while others are still drawn.

    One call of the reward is under way at a time, and the next takes all that ended meanwhile: together they cost less.
    Whole candidates are scored; those that a budget or deadline cut are scored only where no other is, and under a
    reward that reads final answers, those cut at `max_tokens` too, unless they are `beginnings` that go on; one without
    a token never. So with a reward at least one has a value, unless the deadline passed before; without one none has.
    Raises LimitReached where there is nothing to choose from.
    """
    pieces: list[list[Chunk]] = [[] for _ in range(n)]
    unread = UNFINISHED if reads_final_answer(reward) and not beginnings else LIMIT_REASONS
    scores: dict[int, float] = {}
    ready: dict[int, Tokens] = {}
    at_work: asyncio.Task[None] | None = None
    progress = PoolProgress(engine=engine, n=n)
    progress.report()

    def candidate(i: int) -> Candidate:
        return Candidate(index=i, pieces=tuple(pieces[i]), value=scores.get(i))

    async def work(reward: Reward) -> None:
        while ready:
            batch = dict(ready)
            ready.clear()
            with suppress(LimitReached):  # these stay without a value
                scores.update(zip(batch, await score_all(reward, prompt, list(batch.values())), strict=True))
                progress.add_scored([candidate(i) for i in batch])

    async with join_or_cancel() as group:

        def score(index: int) -> None:
            nonlocal at_work
            tokens = [token for piece in pieces[index] for token in piece.tokens]
            if reward is not None and tokens:
                ready[index] = tokens
                progress.to_score += 1
                if at_work is None or at_work.done():
                    at_work = group.create_task(work(reward))

        async with aclosing(answers) as drawn:
            async for chunk in drawn:
                pieces[chunk.index].append(chunk)
                if chunk.finish is None:
                    continue
                progress.drawn += 1
                if chunk.finish not in unread:
                    score(chunk.index)
                progress.report()
        if at_work is None:
            whole = [i for i in range(n) if pieces[i][-1].finish not in LIMIT_REASONS]
            for i in whole or range(n):
                score(i)
    pool = [candidate(i) for i in range(n)]
    if not any(one.tokens for one in pool) and pool[0].finish in LIMIT_REASONS:
        raise LimitReached(pool[0].finish)
    return pool


async def draw_diverse(
    prompt: Tokens, sampling: Sampling, engine: Engine, diverse: Diverse | Jointly, *, n: int, guides: Mixture
) -> AsyncGenerator[Chunk, None]:
    """A pool that is spread out; raises ValueError for sampling that it would not carry out."""
    for requested, what in (
        (sampling.stop, "stop strings"),
        ("together" in diverse and {*sampling.stop_token_ids} - engine.eos_ids, "stop_token_ids"),
        (sampling.logprobs, "logprobs"),
    ):
        if requested:
            raise ValueError(f"params.diverse cannot be combined with {what}")
    if sampling.constrained:
        message = "params.diverse cannot be combined with penalties, grammars, logit_bias and the like"
        raise UnsupportedSampling(message)
    if "together" in diverse:
        async with aclosing(draw_jointly(prompt, sampling, engine, diverse, n=n, guides=guides)) as chunks:
            async for chunk in chunks:
                yield chunk
        return
    ends = sampling.stop_token_ids
    for chunk in await search_hypotheses(
        prompt, sampling.max_tokens, engine, diverse, n=n, guides=guides, stop_token_ids=ends
    ):
        yield chunk


async def score_all(reward: Reward, prompt: Tokens, completions: Sequence[Tokens]) -> list[float]:
    """[N] the one score of each; raises ValueError for a reward of none or several."""
    rows = await reward(prompt, completions)
    for row in rows:
        if len(row) != 1:
            raise ValueError(f"one reward is needed to choose by; {len(row)} given")
    return [score for [score] in rows]


async def correction(prompt: Tokens, tokens: Tokens, engine: Engine, *, target: str, guides: Mixture) -> float:
    """sum_t [log p_base - log q] of tokens drawn from the mixture q, where it is the base that is tilted; else 0."""
    if target == "proposal" or is_base_alone(guides):
        return 0.0
    base, mixed = await gather_or_cancel(
        engine.score(prompt, tokens, guides=mixture) for mixture in (base_alone(), guides)
    )
    return math.fsum(base) - math.fsum(mixed)


def warn_of_warped_law(sampling: Sampling) -> list[str]:
    """Where the law that is tilted is not the model's own."""
    warnings = []
    if not sampling.exact:
        warped = [
            f"{name}={value:g}"
            for name, value, neutral in (
                ("temperature", sampling.temperature, 1),
                ("top_k", sampling.top_k, 0),
                ("top_p", sampling.top_p, 1),
            )
            if value != neutral
        ]
        warped += ["penalties, grammars and the like"] if sampling.constrained else []
        warnings.append(f"the law tilted by the reward is the model's under {', '.join(warped)}, not the model's own")
    if sampling.stop:
        warnings.append("the law tilted by the reward is that of answers ended at a stop string")
    return warnings


def check_target(target: str, sampling: Sampling) -> None:
    """Raises UnsupportedSampling for a target whose densities the request's sampling warps."""
    if target == "base" and not sampling.exact:
        raise UnsupportedSampling("params.target 'base' needs temperature 1 without top_k and top_p", inexact=True)


def stop_position(tokens: Tokens, known: int, stop: Sequence[str], engine: Engine) -> int | None:
    """Where a stop string first ends an answer, in tokens, if its first `known` tokens hold none; None: nowhere.

    An engine that carries an answer on sees no stop string that begins before it took over.
    """

    def ended(count: int) -> bool:
        text = engine.decode(tokens[:count])
        return any(end in text for end in stop)

    if not stop or not ended(len(tokens)):
        return None
    counts = range(known + 1, len(tokens) + 1)
    return counts[bisect_left(counts, True, key=ended)]


def check_answers(n: int, pool: int) -> None:
    """Raises ValueError for more answers than candidates."""
    if n > pool:
        raise ValueError(f"n={n} answers cannot be chosen from params.n={pool} candidates")


def make_generator(seed: int | None, stream: int) -> np.random.Generator:
    """A strategy's own randomness: a function of the request's seed and of `stream`, a constant of the strategy's."""
    key = secrets.randbits(64) if seed is None else seed % 2**64
    return np.random.Generator(np.random.Philox(key=np.array([key, stream], dtype=np.uint64)))


def derive_seed(seed: int | None, *place: int) -> int | None:
    """The seed of one draw among many of a request: were it the same for two, their draws would be too."""
    if seed is None:
        return None
    state = np.random.SeedSequence(seed % 2**64, spawn_key=place).generate_state(1, np.uint64)
    return int(state[0] >> 2)


def bound(values: Sequence[float] | Sequence[Sequence[float]] | Vector) -> Vector:
    """[N], or a table, within ±`HUGE`."""
    return np.clip(np.asarray(values, dtype=np.float64), -HUGE, HUGE)


def temper(values: Sequence[float], beta: float) -> Vector:
    """[N] (r_i - max r) / beta: the logarithm of exp(r_i / beta), up to a constant, without overflow."""
    r = bound(values)
    with np.errstate(over="ignore"):  # -inf is as good as any number beyond exp's reach
        return np.asarray((r - r.max(initial=-HUGE)) / beta)


def softmax(values: Sequence[float], beta: float) -> Vector:
    """[N] exp(r_i / beta), summing to 1."""
    weights = np.exp(temper(values, beta))
    return np.asarray(weights / weights.sum())


def perturb(values: Sequence[float], beta: float, rng: np.random.Generator) -> Vector:
    """[N] r_i / beta + g_i, g_i ~ Gumbel(0, 1): the order of these, largest first, is of draws without replacement with
    probabilities proportional to exp(r_i / beta)."""
    return np.asarray(temper(values, beta) + rng.gumbel(size=len(values)))


def warp(logits: Vector, sampling: Sampling) -> Vector:
    """[V] probabilities after temperature, top-k and top-p, in that order; greedy takes the first of the best."""
    if sampling.temperature == 0:
        return np.asarray(np.eye(len(logits))[int(np.argmax(logits))])
    p = np.exp((logits - logits.max()) / sampling.temperature)
    order = np.argsort(-p, kind="stable")
    if sampling.top_k:
        p[order[sampling.top_k :]] = 0
    p /= p.sum()
    kept_before = np.cumsum(p[order]) - p[order]
    p[order[kept_before >= sampling.top_p]] = 0
    return np.asarray(p / p.sum())


def select_scored(pool: Iterable[Candidate]) -> tuple[list[Candidate], list[float]]:
    """The candidates with a value, and their values."""
    having = [(c, c.value) for c in pool if c.value is not None]
    return [c for c, _ in having], [r for _, r in having]


def select_finished(pool: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that ended by themselves, and so say what they came to; where there is none, `select_ended`."""
    return [c for c in pool if not c.unfinished and c.tokens] or select_ended(pool)


def silence_unfinished(completions: Sequence[Parts], unfinished: Sequence[bool]) -> list[Parts]:
    """[N] completions for a vote: where some ended by themselves, nothing of those that did not."""
    ended = not all(unfinished)
    return [Parts() if cut and ended else parts for parts, cut in zip(completions, unfinished, strict=True)]


def find_unread(finishes: Sequence[str | None], reward: Reward) -> list[bool]:
    """[N] whether what a reward makes of an answer counts for nothing: the reward reads final answers, and this one was
    cut at `max_tokens` where another was not. None is the finish of one that goes on."""
    counts = not reads_final_answer(reward) or UNFINISHED.issuperset(finishes)
    return [finish == "length" and not counts for finish in finishes]


def select_ended(pool: Sequence[Candidate]) -> list[Candidate]:
    """The whole candidates; where there is none, those that were cut after some tokens."""
    return [c for c in pool if c.whole and c.tokens] or [c for c in pool if c.tokens]


def fill_up(chosen: Sequence[Candidate], pool: Iterable[Candidate], n: int) -> list[Candidate]:
    """n candidates: the chosen in their order, then as many of the others as are wanting, best first."""
    taken = {c.index for c in chosen}
    return [*chosen, *rank(c for c in pool if c.index not in taken)][:n]


def rank(pool: Iterable[Candidate]) -> list[Candidate]:
    """Best first: by value, then by place; those without a value last, whole ones before cut ones."""
    return sorted(pool, key=lambda c: (c.value is None, -(c.value or 0.0), c.unfinished + (not c.whole), c.index))


async def show_chosen(
    chosen: Sequence[Candidate],
    pool: Sequence[Candidate],
    include: frozenset[str],
    reports: Sequence[Report],
    *,
    more: Sequence[Mapping[str, Any]] | None = None,
    warnings: Sequence[str] = (),
) -> AsyncGenerator[Chunk, None]:
    """The chosen candidates as a strategy's answers, with a report each; the pool, if asked for, with the first.

    `more` holds what a strategy shows of each of the pool beside what every pool shows, and `warnings` what it says of
    all of it.
    """
    for i, (candidate, report) in enumerate(zip(chosen, reports, strict=True)):
        whole: Report = {**report}
        if i == 0:
            whole["unfinished"] = sum(c.unfinished for c in pool)
        if "candidates" in include and i == 0:
            whole["candidates"] = [{**c.described(), **(more[c.index] if more else {})} for c in pool]
        notes = [*warnings]
        if alone := sum(c.alone for c in pool):
            missing = "the base wrote fewer answers in one than it was asked for"
            notes.append(f"{alone} of {len(pool)} candidates were drawn by themselves: {missing}")
        if notes and i == 0:
            whole["warnings"] = notes
        for piece in candidate.pieces:
            yield replace(piece, index=i, report=whole if piece is candidate.pieces[-1] else {})
