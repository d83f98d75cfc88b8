"""Minimum Bayes risk: draw N answers, return the one most like the others.

    y* = argmax_i sum_j w_j u(y_i, y_j),    y_1 … y_N ~ pi                                                           (1)

pi is the base or, with `guides`, their mixture. w_j = 1 / N, or exp(r_j / beta) / sum_k exp(r_k / beta) with
`weighting` softmax: then the expectation of u is one under the tilted pi*(y) ~ pi(y) exp(r(x, y) / beta) (QAlign,
arXiv 2504.03790). The utility is an F1 over multisets, with c_i(v) how often v occurs in y_i and |y_i| = sum_v c_i(v):

    u(y_i, y_j) = 2 sum_v min(c_i(v), c_j(v)) / (|y_i| + |y_j|),    u(y_i, y_i) = 1                                  (2)

The sum is over all j, y_i's own term w_i among them: it is what makes an answer of a high reward likely to be right.
`expected_utility` is the sum: the mean of u between the answer and one drawn from the candidates by their weights.

v are the words of the text (`rouge1`: ROUGE-1, whose words are lower-cased runs of letters and digits, here of any
script) or token ids (`token_f1`).

Ties go to the answer drawn first; `n` answers are the n best. Best so far: (1) over the answers that have ended,
weighted over those that have been scored as well.
Cost: N answers drawn, N scored where weighted, N^2 / 2 utilities.
Neutral value: N = 1 is plain sampling, token for token; with weights, beta to infinity is uniform, and to 0
best of N, but for answers that (2) cannot tell from the best one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Hashable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from trimtab.decoders.protocols import (
    Chunk,
    Engine,
    Reward,
    Sampling,
    Tokens,
    Work,
    base_alone,
)
from trimtab.decoders.report import Report
from trimtab.decoders.shared.candidates import (
    Beta,
    Guides,
    PoolMethod,
    check_answers,
    draw,
    draw_cost,
    fill_up,
    select_ended,
    select_scored,
    show_chosen,
    softmax,
)
from trimtab.decoders.shared.similarity import f1, split_words


@dataclass(frozen=True, kw_only=True)
class MinimumBayesRisk:
    """The one of n candidates that is most like the others."""

    n: Annotated[int, Field(ge=1, le=1024, description="candidates drawn")] = 16
    utility: Annotated[
        Literal["rouge1", "token_f1"], Field(description="similarity of two candidates: F1 of their words or of tokens")
    ] = "rouge1"
    weighting: Annotated[
        Literal["uniform", "softmax"],
        Field(description="what similarity to a candidate counts: 1, exp(reward / beta)"),
    ] = "uniform"
    beta: Beta = 1.0
    guides: Guides = field(default_factory=base_alone)
    diverse: PoolMethod = None

    async def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        check_answers(n, self.n)
        scorer = None if self.weighting == "uniform" else reward
        pool = await draw(prompt, sampling, engine, scorer, n=self.n, guides=self.guides, diverse=self.diverse)
        candidates, rewards = (select_ended(pool), []) if scorer is None else select_scored(pool)
        completions = [engine.parts(c.tokens) for c in candidates]
        tokens = [
            engine.tokens(parts.text) if parts.thoughts else c.tokens
            for c, parts in zip(candidates, completions, strict=True)
            if self.utility == "token_f1"
        ]
        weights = softmax(rewards, self.beta) if rewards else np.full(len(candidates), 1 / max(len(candidates), 1))

        def expected() -> list[float]:
            bags: Sequence[Sequence[Hashable]] = tokens or [split_words(parts.text) for parts in completions]
            similarity = f1(bags)
            np.fill_diagonal(similarity, 1)  # (2)
            # Rounded, for equal candidates tie whatever order their terms are added in.
            return [float(u) for u in np.round(similarity @ weights, 12)]  # (1)

        utilities = await asyncio.to_thread(expected)
        order = sorted(range(len(candidates)), key=lambda i: -utilities[i])
        chosen = fill_up([candidates[i] for i in order], pool, n)
        expected_utility = {candidate.index: u for candidate, u in zip(candidates, utilities, strict=True)}
        reports: list[Report] = [{"value": c.value, "candidate": c.index} for c in chosen]
        for report in reports:
            if report["candidate"] in expected_utility:
                report["expected_utility"] = expected_utility[report["candidate"]]
        async with aclosing(show_chosen(chosen, pool, include, reports)) as chunks:
            async for chunk in chunks:
                yield chunk

    def work(self, max_tokens: int, *, n: int, include: frozenset[str]) -> Work:
        work = draw_cost(self.n, max_tokens, self.diverse, guides=self.guides)
        return replace(work, reward_tokens=0) if self.weighting == "uniform" else work
