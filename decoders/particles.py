"""Particle filtering (arXiv 2502.01618): N answers that grow side by side, the promising ones in more and more copies.

    target    pi(y) exp(r(x, y) / beta) / Z                                                                         (1)
    blocks    b^i ~ q(. | x, s^i),    s^i <- s^i b^i                                                                (2)
    weights   log w^i += [psi(s^i b^i) - psi(s^i)] / beta + log pi(b^i | s^i) - log q(b^i | s^i),    psi(empty) = 0  (3)

psi is the reward, of a beginning as of a whole answer, where it is r. The differences of (3) sum to r / beta, so the
particles' law tends to (1) at O(1 / N) whatever psi says of beginnings, which decides only how many particles it takes;
best is the soft value of a beginning. An ended particle keeps its weight. Under a verifier one that was cut at
`max_tokens` has none while another was not: the target is then (1) over the answers that end. When the effective
sample size of w falls below `ess` N, ancestors are drawn by systematic resampling and weights start anew. The product
over resamplings of the mean weight estimates E_pi exp(r / beta) without bias: `log_normaliser` is its logarithm.

q is the base or, with `guides`, their mixture, and `target` says what is tilted: the mixture (pi = q), or the base.

`variant: "pf_reference"` is the published code's: each block multiplies w by exp(psi / beta) itself, and ancestors are
drawn anew, multinomially, after every block. Its target is pi(y) prod_t exp(psi(s_t) / beta), the posterior of the
paper's state-space model, and not (1). Unlike the code, an ended particle is not weighed again while others go on,
which would make the law hang on the slowest.

| `answer`   | is                                                                      |
|------------|-------------------------------------------------------------------------|
| sample     | drawn by weight: asymptotically a draw from the target                   |
| max_reward | the particle of the highest reward                                       |
| vote       | a particle that gives the answer, by `extractor`, of the greatest weight |

`kl_estimate`, told of a sample, is E_w r / beta - log_normaliser: KL(target || pi) as N grows.

Best so far: the same, of the particles that have ended; before the first, of the beginnings.
Cost: N answers drawn, N beginnings scored per block.
Neutral value: n = 1 is plain sampling, token for token; a block of max_tokens, or ess = 0, is soft best of N.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
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
    is_base_alone,
    no_reward,
)
from trimtab.decoders.report import Report
from trimtab.decoders.shared.answers import count_votes, make_reader
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
from trimtab.decoders.shared.candidates import (
    Beta,
    Guides,
    Pool,
    Target,
    Vector,
    VoteBy,
    bound,
    check_answers,
    check_target,
    correction,
    derive_seed,
    find_unread,
    make_generator,
    silence_unfinished,
    softmax,
    warn_of_warped_law,
)
from trimtab.decoders.shared.gather import gather_or_cancel

STREAM = 2502_01618


@dataclass(frozen=True, kw_only=True)
class Particles:
    """Sequential Monte Carlo over answers: the base's law tilted by exp(reward / beta)."""

    n: Pool = 16
    beta: Beta = 1.0
    block: Block = 16
    step: Step = ""
    prefix_reward: PrefixReward = None
    ess: Annotated[float, Field(ge=0, le=1, description="resample below this share of n; 0 never, 1 always")] = 0.5
    variant: Annotated[
        Literal["increments", "pf_reference"],
        Field(description="weigh by what the reward has grown, or as the published code does by the reward, each time"),
    ] = "increments"
    answer: Annotated[
        Literal["sample", "max_reward", "vote"], Field(description="what is answered from the particles")
    ] = "sample"
    extractor: VoteBy = "number"
    target: Target = "proposal"
    guides: Guides = field(default_factory=base_alone)

    def __post_init__(self) -> None:
        make_reader(self.extractor)

    async def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        check_answers(n, self.n)
        check_target(self.target, sampling)
        rng = make_generator(sampling.seed, STREAM)
        system = System(particles=[PartialAnswer()] * self.n, logw=np.zeros(self.n), reward=reward)
        finish: str | None = None
        longest = report_growth(engine, (), reward, longest=0, max_tokens=sampling.max_tokens)
        while finish is None and not all(one.finish for one in system.particles):
            grew, finish = await self._grown(system, prompt, sampling, engine, reward)
            if finish is not None:
                break
            try:
                increments = await self._increments(system.particles, grew, prompt, engine)
            except LimitReached as reached:
                finish = str(reached)
                break
            system.weigh(grew, increments)
            longest = report_growth(engine, grew, reward, longest=longest, max_tokens=sampling.max_tokens)
            if any(one.finish is None for one in grew):
                system.resample(rng, self.ess, self.variant)
        if finish is not None:
            pool = [replace(one, finish=one.finish or finish) for one in [*grew, *system.particles] if one.tokens]
            if not pool:
                raise LimitReached(finish)
            chosen = take_distinct(rank(drop_unread(pool, reward)), n)
        else:
            system.particles = drop_unread(system.particles, reward)
            chosen = take_distinct(await asyncio.to_thread(self._order, system, rng, engine), n)
        shared = system.report()
        if finish is None and (self.variant, self.answer) == ("increments", "sample"):
            shared["kl_estimate"] = system.mean_reward / self.beta - shared["log_normaliser"]
        if warnings := warn_of_warped_law(sampling):
            shared["warnings"] = warnings
        if "candidates" in include:
            shared["candidates"] = [
                describe(i, one) | {"weight": float(w)}
                for i, (one, w) in enumerate(zip(system.particles, system.weights, strict=True))
            ]
        places = [particle.tokens for particle in system.particles]
        for i, one in enumerate(chosen):
            report: Report = {"value": one.value, **shared} if i == 0 else {"value": one.value}
            if one.tokens in places:  # one that grew until a limit is no particle
                report["candidate"] = places.index(one.tokens)
            yield Chunk(index=i, tokens=one.tokens, finish=one.finish, report=report)

    def work(self, max_tokens: int, *, n: int, include: frozenset[str]) -> Work:
        alone = self.n == 1
        block, step = (max_tokens, "") if alone else (self.block, self.step)
        work = expansion_cost(self.n, max_tokens, block, step, guides=self.guides)
        corrected = 2 * work.sampled if self.target == "base" and not is_base_alone(self.guides) else 0
        return replace(work, scored=corrected)

    async def _grown(
        self, system: System, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward
    ) -> tuple[list[PartialAnswer], str | None]:
        whole = self.n == 1  # nothing to compare: drawn in one piece
        begun = system.blocks > 0
        return await expand(
            prompt,
            system.particles if begun else [PartialAnswer()],
            sampling,
            engine,
            reward,
            n=1 if begun else self.n,
            block=sampling.max_tokens if whole else self.block,
            step="" if whole else self.step,
            guides=self.guides,
            seeds=[derive_seed(sampling.seed, j, system.blocks) if begun else sampling.seed for j in range(self.n)],
        )

    async def _increments(
        self, before: Sequence[PartialAnswer], after: Sequence[PartialAnswer], prompt: Tokens, engine: Engine
    ) -> Vector:
        """[N] (3) of those that grew, 0 of the others."""

        async def increment(old: PartialAnswer, new: PartialAnswer) -> float:
            if old.finish is not None or not new.tokens:  # the context has no room for a token
                return 0.0
            assert new.value is not None
            grown_by = new.value - (old.value or 0.0 if self.variant == "increments" else 0.0)
            begun, block = [*prompt, *old.tokens], new.tokens[len(old.tokens) :]
            return grown_by / self.beta + await correction(begun, block, engine, target=self.target, guides=self.guides)

        return bound(await gather_or_cancel(increment(o, a) for o, a in zip(before, after, strict=True)))

    def _order(self, system: System, rng: np.random.Generator, engine: Engine) -> list[PartialAnswer]:
        """The particles, best first by `answer`."""
        if self.answer == "max_reward":
            return rank(system.particles)
        if self.answer == "sample":
            with np.errstate(divide="ignore"):
                keys = np.log(system.weights) + rng.gumbel(size=self.n)  # without replacement, the first by weight
            return [system.particles[i] for i in np.argsort(-keys, kind="stable")]
        cut = [one.unfinished for one in system.particles]
        completions = silence_unfinished([engine.parts(one.tokens) for one in system.particles], cut)
        merit = count_votes(completions, system.weights, self.extractor)
        return [system.particles[i] for i in np.argsort(-np.array(merit), kind="stable")]


@dataclass(kw_only=True)
class System:
    """N particles and their weights."""

    particles: list[PartialAnswer]
    logw: Vector
    """[N] since the last resampling."""
    reward: Reward = no_reward
    blocks: int = 0
    resampled: int = 0
    log_normaliser: float = 0.0
    """Of the resamplings so far."""

    @property
    def counted(self) -> Vector:
        """[N] `logw`, and -inf of those that count for nothing: `find_unread`."""
        unread = find_unread([one.finish for one in self.particles], self.reward)
        return np.where(unread, -np.inf, self.logw)

    @property
    def weights(self) -> Vector:
        """[N], summing to 1."""
        return softmax(self.counted.tolist(), 1.0)

    @property
    def effective(self) -> float:
        return float(1 / np.sum(self.weights**2))

    @property
    def log_mean(self) -> float:
        return float(np.logaddexp.reduce(self.counted) - math.log(len(self.logw)))

    def weigh(self, grew: list[PartialAnswer], increments: Vector) -> None:
        self.particles, self.logw, self.blocks = grew, self.logw + increments, self.blocks + 1

    def resample(self, rng: np.random.Generator, ess: float, variant: str) -> None:
        n = len(self.particles)
        if variant == "increments" and self.effective >= ess * n:
            return
        multinomial = variant == "pf_reference"
        ancestors = rng.choice(n, size=n, p=self.weights) if multinomial else resample_systematically(self.weights, rng)
        self.log_normaliser += self.log_mean
        self.resampled += 1
        self.particles, self.logw = [self.particles[i] for i in ancestors], np.zeros(n)

    @property
    def mean_reward(self) -> float:
        return float(self.weights @ bound([one.value or 0.0 for one in self.particles]))

    def report(self) -> Report:
        return {
            "blocks": self.blocks,
            "resampled": self.resampled,
            "effective_sample_size": self.effective,
            "unfinished": sum(one.unfinished for one in self.particles),
            "distinct": len({one.tokens for one in self.particles}),
            "log_normaliser": self.log_normaliser + self.log_mean,
        }


def resample_systematically(weights: Vector, rng: np.random.Generator) -> NDArray[np.int64]:
    """[N] ancestors: each i between floor(N w_i) and ceil(N w_i) times."""
    places = (np.arange(len(weights)) + rng.random()) / len(weights)
    return np.minimum(np.searchsorted(np.cumsum(weights), places, side="right"), len(weights) - 1).astype(np.int64)
