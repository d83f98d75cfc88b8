"""Soft best of N (arXiv 2505.03156): draw N answers, return one of them at random, the better ones more often.

    P(i) = exp(r_i / lambda) / sum_j exp(r_j / lambda),    y_1 … y_N ~ pi                                            (1)

pi is the base or, with `guides`, their mixture; r_i = r(x, y_i). The law of the answer tends to the tilted
pi*(y) ~ pi(y) exp(r(x, y) / lambda) at O(1 / N), in KL and in expected reward: the aligned model itself with
lambda = beta, where best of N goes as far as N allows.

`n` answers are n draws from (1) without replacement, by Gumbel-top-k: the n largest of

    r_i / lambda + g_i,    g_i ~ Gumbel(0, 1) independent,                                                           (2)

of which the first alone has the law (1). g is a function of the request's seed. Best so far: a draw from (1) over the
answers that have ended. Cost: N answers drawn, N scored.
Neutral value: N = 1 is plain sampling, token for token; lambda to infinity is so in law, and to 0 is best of N.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated

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
    Guides,
    Pool,
    check_answers,
    draw,
    draw_cost,
    fill_up,
    make_generator,
    perturb,
    select_scored,
    show_chosen,
    softmax,
    warn_of_warped_law,
)

STREAM = 2505_03156


@dataclass(frozen=True, kw_only=True)
class SoftBestOfN:
    """One of n candidates, drawn with probability proportional to exp(reward / lambda)."""

    lambda_: Annotated[
        float,
        Field(alias="lambda", gt=0, le=1e6, description="temperature of the rewards, in their units; to 0 best of n"),
    ]
    n: Pool = 16
    guides: Guides = field(default_factory=base_alone)

    async def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        check_answers(n, self.n)
        pool = await draw(prompt, sampling, engine, reward, n=self.n, guides=self.guides)
        candidates, rewards = select_scored(pool)
        weights = softmax(rewards, self.lambda_)  # (1)
        order = np.argsort(-perturb(rewards, self.lambda_, make_generator(sampling.seed, STREAM)), kind="stable")  # (2)
        chosen = fill_up([candidates[i] for i in order], pool, n)
        reports: list[Report] = [{"value": c.value, "candidate": c.index} for c in chosen]
        if candidates:
            size = float(1 / np.square(weights).sum())
            reports = [{**report, "effective_sample_size": size} for report in reports]
        warnings = warn_of_warped_law(sampling)
        async with aclosing(show_chosen(chosen, pool, include, reports, warnings=warnings)) as chunks:
            async for chunk in chunks:
                yield chunk

    def work(self, max_tokens: int, *, n: int, include: frozenset[str]) -> Work:
        return draw_cost(self.n, max_tokens, guides=self.guides)
