"""Diverse beam search (arXiv 1610.02424): a pool that is deterministic and spread out, in place of a sampled one.

N hypotheses in G groups of W = N / G. At each step the groups choose in turn, each the W best of its expansions by

    theta(y_<=t) - lambda * (times that earlier groups chose y_t at this step)                                       (1)
    theta(y_<=t) = sum_{s<=t} log pi(y_s | x, y_<s)                                                                  (2)

pi is the base or, with `guides`, their mixture. (1) decides this step alone: what is carried on is (2). A hypothesis
that has ended stays, with its (2). Temperature, truncation and seeds do not apply, and a stop string does not end a
hypothesis.
Cost: N next-token distributions per step, each a request whose prefix the engine's cache holds in whole blocks. Of
each its N likeliest tokens are read, among which the W best by (1) always are: at most N - W are penalised.
Neutral value: lambda = 0 and G = 1 is beam search, and with N = 1 too greedy decoding.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Annotated, final

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict  # of typing, pydantic takes it only from Python 3.12 on

from trimtab.decoders.protocols import Chunk, Engine, LimitReached, Mixture, Tokens
from trimtab.decoders.report import SearchProgress
from trimtab.decoders.shared.gather import gather_or_cancel


@final
class Diverse(TypedDict):
    """How a pool is spread out."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # type: ignore[misc]

    groups: Annotated[int, Field(ge=1, le=4096, description="G, a divisor of n; n is greedy search in every group")]
    penalty: Annotated[float, Field(ge=0, le=1e6, description="lambda, nats for a token that an earlier group chose")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hypothesis:
    tokens: tuple[int, ...] = ()
    theta: float = 0.0
    """(2)"""
    finish: str | None = None


async def search_hypotheses(
    prompt: Tokens,
    max_tokens: int,
    engine: Engine,
    how: Diverse,
    *,
    n: int,
    guides: Mixture,
    stop_token_ids: Tokens = (),
) -> list[Chunk]:
    """[N] whole answers, group by group, each group's best first; raises ValueError where G does not divide N."""
    if n % how["groups"]:
        raise ValueError(f"params.diverse.groups={how['groups']} must divide params.n={n}")
    width, ends = n // how["groups"], engine.eos_ids.union(stop_token_ids)
    groups = [[Hypothesis()] for _ in range(how["groups"])]
    while any(h.finish is None for group in groups for h in group):
        longest = max(len(h.tokens) for group in groups for h in group)
        engine.report_progress(SearchProgress(stage="grow", done=longest, of=max_tokens))
        open_ones = [h for group in groups for h in group if h.finish is None]
        try:
            lists = await gather_or_cancel(
                engine.greedy_top_logprobs([*prompt, *h.tokens], k=n, length=1, guides=guides) for h in open_ones
            )
        except LimitReached as cut:
            return [_chunk(i, h, str(cut)) for i, h in enumerate(_flat(groups, width))]
        expansions = {id(h): steps for h, steps in zip(open_ones, lists, strict=True)}
        chosen: Counter[int] = Counter()
        for g, group in enumerate(groups):
            # where the model goes on no further, its context is full
            group = [h if h.finish or expansions[id(h)] else replace(h, finish="length") for h in group]
            scored = [(h.theta, h) for h in group if h.finish is not None]
            for h in group:
                if h.finish is None:
                    scored += [
                        (
                            h.theta + logprob - how["penalty"] * chosen[token],
                            _extend(h, token, logprob, max_tokens, ends),
                        )
                        for token, logprob in expansions[id(h)][0]
                    ]  # (1)
            scored.sort(key=lambda pair: -pair[0])
            ended = [h for h in group if h.finish is not None]
            groups[g] = [h for _, h in scored[:width]]
            chosen.update(h.tokens[-1] for h in groups[g] if h not in ended)
    return [_chunk(i, h) for i, h in enumerate(_flat(groups, width))]


def _extend(h: Hypothesis, token: int, logprob: float, max_tokens: int, ends: frozenset[int]) -> Hypothesis:
    tokens = (*h.tokens, token)
    finish = "stop" if token in ends else "length" if len(tokens) >= max_tokens else None
    return Hypothesis(tokens=tokens, theta=h.theta + logprob, finish=finish)  # (2)


def _flat(groups: list[list[Hypothesis]], width: int) -> list[Hypothesis]:
    """N hypotheses; a group cut before it could fill up repeats its best."""
    return [group[min(i, len(group) - 1)] for group in groups for i in range(width)]


def _chunk(index: int, h: Hypothesis, cut: str = "") -> Chunk:
    return Chunk(index=index, tokens=h.tokens, finish=h.finish or cut)
