"""Best of N: draw N answers, return the one that the reward prefers.

    y* = argmax_i r(x, y_i),    y_1 … y_N ~ pi                                                                       (1)

pi is the base or, with `guides`, their mixture. For a reward without ties the law of y* is that of the largest of N
draws, P(r(y*) <= t) = F(t)^N with F the law of r under pi. For any reward

    KL(y* || pi) <= log N - (N - 1) / N                                                                              (2)

if the N are drawn independently, as `diverse` pools are not, and none is cut by a budget or deadline.

Ties go to the answer drawn first. `n` answers are the n best. Best so far: the best of the answers that have ended.
Cost: N answers drawn, N scored.
Neutral value: N = 1 is plain sampling, token for token.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

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
    PoolMethod,
    check_answers,
    draw,
    draw_cost,
    rank,
    show_chosen,
)


@dataclass(frozen=True, kw_only=True)
class BestOfN:
    """The best of n candidates by the reward."""

    n: Pool = 16
    guides: Guides = field(default_factory=base_alone)
    diverse: PoolMethod = None

    async def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        check_answers(n, self.n)
        pool = await draw(prompt, sampling, engine, reward, n=self.n, guides=self.guides, diverse=self.diverse)
        best = rank(pool)[:n]  # (1)
        reports: list[Report] = [{"value": c.value, "candidate": c.index} for c in best]
        if self.diverse is None and all(c.whole for c in pool):
            reports[0]["kl_bound"] = math.log(self.n) - (self.n - 1) / self.n  # (2)
        async with aclosing(show_chosen(best, pool, include, reports)) as chunks:
            async for chunk in chunks:
                yield chunk

    def work(self, max_tokens: int, *, n: int, include: frozenset[str]) -> Work:
        return draw_cost(self.n, max_tokens, self.diverse, guides=self.guides)
