"""Statistical rejection sampling, RSO (arXiv 2309.06657): draw N answers, accept each with a chance that grows with
its reward, and return the first accepted.

    accept y_i  where  u_i < exp((r_i - r_max) / beta),    u_i ~ U[0, 1),    y_1 … y_N ~ pi                          (1)

pi is the base or, with `guides`, their mixture; r_i = r(x, y_i). r_max stands for the unknown maximum of r: it is the
largest reward among the answers not yet accepted, taken anew before each pass over them, in the order drawn. Equal
answers are separate proposals, each with its own u: merging them would bias the law on small supports.

The law of the first acceptance tends to the tilted pi*(y) ~ pi(y) exp(r(x, y) / beta) as N grows. `n` answers are the
first n acceptances and no more; they are drawn without replacement, hence not independent draws from pi*. u is a
function of the request's seed. Best so far: the same over the answers that have ended.
Cost: N answers drawn, N scored. The paper draws 64 at temperature 0.7 and top-k 40, and keeps 8.
Neutral value: N = 1 is plain sampling, token for token; beta to infinity is so too, and to 0 is best of N.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

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
    Pool,
    check_answers,
    draw,
    draw_cost,
    fill_up,
    make_generator,
    select_scored,
    show_chosen,
    temper,
    warn_of_warped_law,
)

STREAM = 2309_06657


@dataclass(frozen=True, kw_only=True)
class RejectionSampling:
    """The first of n candidates that is accepted with probability exp((reward - largest reward) / beta)."""

    n: Pool = 64
    beta: Beta = 0.5
    guides: Guides = field(default_factory=base_alone)

    async def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        check_answers(n, self.n)
        pool = await draw(prompt, sampling, engine, reward, n=self.n, guides=self.guides)
        candidates, rewards = select_scored(pool)
        accepted = list(islice(acceptances(rewards, self.beta, make_generator(sampling.seed, STREAM)), n))
        chosen = fill_up([candidates[i] for i, _ in accepted], pool, n)
        reports: list[Report] = [{"value": c.value, "candidate": c.index} for c in chosen]
        for k, (report, (_, proposals)) in enumerate(zip(reports, accepted, strict=False), 1):
            report.update({"proposals": proposals, "acceptance_rate": k / proposals})
        warnings = warn_of_warped_law(sampling)
        async with aclosing(show_chosen(chosen, pool, include, reports, warnings=warnings)) as chunks:
            async for chunk in chunks:
                yield chunk

    def work(self, max_tokens: int, *, n: int, include: frozenset[str]) -> Work:
        return draw_cost(self.n, max_tokens, guides=self.guides)


def acceptances(rewards: list[float], beta: float, random: np.random.Generator) -> Iterator[tuple[int, int]]:
    """(place, proposals looked at so far) of each acceptance in turn, until all are accepted."""
    left, looked = list(range(len(rewards))), 0
    while left:
        chances = np.exp(temper([rewards[i] for i in left], beta))
        rejected = []
        for i, chance in zip(left, chances, strict=True):
            looked += 1
            if random.random() < chance:  # (1)
                yield i, looked
            else:
                rejected.append(i)
        left = rejected
