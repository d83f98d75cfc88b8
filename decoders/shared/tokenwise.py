"""Search token by token: the next one from the likeliest few, tilted by what each is worth.

    z ~ softmax over C(s) of [log pi(z | x, s) + Q(s z) / alpha],    C(s): the k likeliest tokens after s            (1)

pi is the base or, with `guides`, their mixture. Temperature, top-k and top-p of the request act on (1), and temperature
0 takes the best of it. Transfer Q* and ARGS are (1), each with its Q, and Q is what a decision costs: so where `min_p`
leaves one token in C(s) it is taken as it is, and tokens are looked at several ahead, along the greedy path.

Shapes: k candidates.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from trimtab.decoders.protocols import (
    LIMIT_REASONS,
    Chunk,
    Engine,
    LimitReached,
    Mixture,
    Reward,
    Sampling,
    Tokens,
    Work,
    base_alone,
    is_base_alone,
)
from trimtab.decoders.report import Report
from trimtab.decoders.shared.candidates import (
    HUGE,
    Guides,
    Vector,
    bound,
    derive_seed,
    make_generator,
    stop_position,
    temper,
    warp,
)
from trimtab.decoders.shared.rollouts import Answer, end_reason, roll_out
from trimtab.decoders.shared.streams import merge

STREAM = 2405_20495
AHEAD = 16
"""Tokens looked ahead, at most, where some will need no decision."""

Likeliest = Annotated[int, Field(ge=1, le=256, description="candidates: the k likeliest next tokens")]
MinP = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="candidates need p >= min_p * max p, and a single one is taken unseen; an approximation, 0 is off",
    ),
]
Block = Annotated[
    int,
    Field(
        ge=1,
        le=1_000_000,
        description="tokens decided at a time, those behind a candidate drawn from the base; an approximation",
    ),
]
Worth = Callable[[int, int, Sequence[Answer]], Awaitable[list[tuple[float, float | None]]]]
"""(answer, tokens decided, [k] beginnings of it) -> [k] Q, and the beginning's own reward where it was scored"""


@dataclass(frozen=True, kw_only=True)
class Tokenwise:
    """(1), with the Q of one request."""

    worth: Worth
    k: int
    alpha: float
    min_p: float = 0.0
    block: int = 1
    guides: Guides = field(default_factory=base_alone)
    exact: bool = True
    """Whether Q is a function of the answer so far. Where it is drawn, the KL of (1) from pi, summed over the answer,
    is in the mean at or above that of the answers' law, and so an estimate."""

    async def answers(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        """n answers, each token as it is decided; `reward` is asked for what came of a whole one."""
        answers = [self._answer(i, prompt, sampling, engine, reward, include) for i in range(n)]
        async with aclosing(merge(answers)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _answer(
        self, i: int, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        rng = make_generator(sampling.seed, STREAM + i)
        answer: Answer = ()
        path: list[list[tuple[int, float]]] = []
        """Of the next tokens, as long as they are the likeliest."""
        decisions: list[dict[str, Any]] = []
        kl, ended, length = 0.0, None, 1
        value: float | None = None
        """The reward of the answer so far, where it was scored."""
        while ended is None:
            position = len(answer)
            try:
                if not path:
                    limit = min(length, sampling.max_tokens - position)
                    path = await engine.greedy_top_logprobs(
                        [*prompt, *answer], k=self.k, length=limit, guides=self.guides
                    )
                    length = min(2 * length, AHEAD) if self.min_p else 1  # the next time, if this one is followed
                if not path:
                    raise LimitReached("length")  # the model's context is full
                candidates = keep_plausible(path.pop(0), self.min_p)
                begun = [(*answer, token) for token, _ in candidates]
                p, chosen = np.ones(1), 0
                worths: list[tuple[float, float | None]] = [(0.0, None)]
                if len(candidates) > 1:
                    begun = await self._blocks(i, begun, prompt, sampling, engine)
                    worths = await self.worth(i, position, begun)
                    values = bound([q for q, _ in worths]).tolist()
                    p = self.law(candidates, values, sampling)
                    chosen = int(np.searchsorted(np.cumsum(p), rng.random() * p.sum(), side="right"))
                    decisions.append(describe_decision(position, candidates, values, p, chosen))
            except LimitReached as cut:
                ended = str(cut)
            else:
                kl += math.fsum(q * (math.log(q) - lp) for q, (_, lp) in zip(p, candidates, strict=True) if q > 0)
                answer, value = begun[chosen], worths[chosen][1]
                if chosen or len(answer) > position + 1:
                    path, length = [], 1
                if (end := stop_position(answer, position, sampling.stop, engine)) is not None:
                    answer, ended = answer[:end], "stop"
                else:
                    ended = end_reason(answer, sampling, engine)
            report: Report = {}
            if ended:
                report = {"decisions": len(decisions)}
                if self.block == 1:
                    report["kl_exact" if self.exact and is_base_alone(self.guides) else "kl_estimate"] = kl
                if ended not in LIMIT_REASONS:
                    report["value"] = await self._final_reward(prompt, answer, reward)
                elif value is not None:
                    report["value"] = value
                if "trace" in include:
                    report["trace"] = decisions
            yield Chunk(index=i, tokens=answer[position:], finish=ended, report=report)

    async def _final_reward(self, prompt: Tokens, answer: Answer, reward: Reward) -> float | None:
        """The reward of a whole answer; None where the deadline passes first."""
        try:
            [[value, *_]] = await reward(prompt, [answer])
        except LimitReached:
            return None
        return value

    def law(self, candidates: Sequence[tuple[int, float]], values: Sequence[float], sampling: Sampling) -> Vector:
        """[k] (1) as the request's sampling has it."""
        return warp(np.array([lp for _, lp in candidates]) + temper(values, self.alpha), sampling)

    async def _blocks(
        self, i: int, begun: list[Answer], prompt: Tokens, sampling: Sampling, engine: Engine
    ) -> list[Answer]:
        if self.block == 1:
            return begun
        at = len(begun[0])
        drawn = await roll_out(
            prompt,
            begun,
            sampling,
            engine,
            n=1,
            limits=[at - 1 + self.block] * len(begun),
            guides=self.guides,
            seeds=[derive_seed(sampling.seed, i, at, j) for j in range(len(begun))],
        )
        return [answer for [answer] in drawn]


def decision_cost(
    max_tokens: int,
    *,
    k: int,
    min_p: float,
    block: int = 1,
    rollouts: int = 1,
    horizon: int = 0,
    n: int,
    mixtures: Mapping[str, Mixture],
) -> Work:
    """What n answers can cost with `rollouts` of `horizon` tokens behind each candidate, each scored whole."""
    block, horizon = min(block, max_tokens), min(horizon, max_tokens)
    decisions = -(-max_tokens // block)
    earlier = block * decisions * (decisions - 1) // 2  # tokens decided before each decision, summed
    looked = max_tokens * (2 if min_p else 1)  # as far again ahead, where what is seen is not followed
    behind = min(horizon * decisions, max_tokens * decisions - earlier)
    read = min(earlier + (block + horizon) * decisions, max_tokens * decisions)
    return Work(
        candidates=k * rollouts,
        sampled=looked + k * ((block - 1) * decisions + rollouts * behind),
        reward_tokens=k * rollouts * read + max_tokens,
        readings=k * rollouts * decisions + 1,
        draws=1,
        top_logprobs=k,
        mixtures=mixtures,
        terms={"candidates": "k * rollouts" if rollouts > 1 else "k", "top_logprobs": "k"},
    ).times(n)


def keep_plausible(candidates: Sequence[tuple[int, float]], min_p: float) -> list[tuple[int, float]]:
    """Those that are possible, with p >= min_p * max p, the first being the likeliest."""
    floor = candidates[0][1] + math.log(min_p) if min_p else -HUGE
    return [(token, logprob) for token, logprob in candidates if logprob >= floor]


def describe_decision(
    at: int, candidates: Sequence[tuple[int, float]], values: Sequence[float], p: Vector, chosen: int
) -> dict[str, Any]:
    """What a trace shows of a decision."""
    return {
        "position": at,
        "tokens": [token for token, _ in candidates],
        "logprobs": [logprob for _, logprob in candidates],
        "values": list(values),
        "probabilities": p.tolist(),
        "chosen": chosen,
    }
