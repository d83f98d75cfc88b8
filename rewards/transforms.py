"""Scalar transforms of one reward, against its own rewards on reference answers to the same prompt.

| class         | paper            | u(r)                                                             |
|---------------|------------------|------------------------------------------------------------------|
| `Identity`    |                  | r                                                                |
| `Centre`      |                  | r - mean_m r_m                                                   |
| `Lsc`         | arXiv 2402.00742 | log sigma(r - r_q), r_q the references' quantile q               |
| `Par`         | arXiv 2502.18770 | (1/M) sum_m sigma(k (r - r_m))                                   |
| `Standardise` |                  | (r - mean) / std, both of the reward on the base's own answers   |
| `Clip`        |                  | min(max(r, low), high)                                           |

r_1 .. r_M  rewards of M answers of the frozen base to the prompt; the caller draws, scores and caches them

Each is a function of r and of references that do not depend on it, never of other candidates, so a chain may use it.
All but `Clip` are strictly increasing in r, so with one reward they do not change what best-of-N chooses.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import Field

LARGEST = 1e6
"""Parameters of transforms and combinations lie within ±LARGEST, and those that divide are no less than 1 / LARGEST, so
that scores of any sane size stay numbers."""

References = Annotated[int, Field(ge=1, le=256, description="M, answers of the base that are scored as references")]


class Transform(Protocol):
    @property
    def n_references(self) -> int:
        """Reference rewards needed per prompt."""
        ...

    def __call__(self, scores: Sequence[float], references: Sequence[float]) -> list[float]:
        """A value per score; `references` holds `n_references` rewards. Raises ValueError where one is missing."""
        ...


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The reward as it is."""

    @property
    def n_references(self) -> int:
        return 0

    def __call__(self, scores: Sequence[float], references: Sequence[float]) -> list[float]:
        return list(scores)


@dataclass(frozen=True, kw_only=True)
class Centre:
    """How much better than the base's mean answer."""

    references: References = 1

    @property
    def n_references(self) -> int:
        return self.references

    def __call__(self, scores: Sequence[float], references: Sequence[float]) -> list[float]:
        mean = statistics.fmean(non_empty(references))
        return [score - mean for score in scores]


@dataclass(frozen=True, kw_only=True)
class Lsc:
    """Log-sigmoid centred: the log-probability of being good, so that a sum over rewards is that of all being good.

    r_q = mean + Phi^-1(q) std, the references taken as normal and std with M - 1, 0 for one; q = 0.5 is the mean.
    """

    quantile: Annotated[
        float, Field(gt=0, lt=1, description="how good among the references an answer must be to count as good")
    ] = 0.85
    references: References = 8

    @property
    def n_references(self) -> int:
        return self.references

    def __call__(self, scores: Sequence[float], references: Sequence[float]) -> list[float]:
        spread = statistics.stdev(references) if len(references) > 1 else 0.0
        good = statistics.fmean(non_empty(references)) + statistics.NormalDist().inv_cdf(self.quantile) * spread
        return [log_sigmoid(score - good) for score in scores]


@dataclass(frozen=True, kw_only=True)
class Par:
    """Preference as reward: the mean probability of being preferred to a reference under Bradley-Terry, in (0, 1)."""

    references: References = 1
    k: Annotated[float, Field(gt=0, le=LARGEST, description="steepness")] = 1.0

    @property
    def n_references(self) -> int:
        return self.references

    def __call__(self, scores: Sequence[float], references: Sequence[float]) -> list[float]:
        non_empty(references)
        return [statistics.fmean(sigmoid(self.k * (score - r)) for r in references) for score in scores]


@dataclass(frozen=True, kw_only=True)
class Standardise:
    """In standard deviations, by a mean and std measured once: rewards of different scales become comparable."""

    mean: Annotated[float, Field(ge=-LARGEST, le=LARGEST, description="of the reward on the base's own answers")]
    std: Annotated[float, Field(ge=1 / LARGEST, le=LARGEST, description="of the reward on the base's own answers")]

    @property
    def n_references(self) -> int:
        return 0

    def __call__(self, scores: Sequence[float], references: Sequence[float]) -> list[float]:
        return [(score - self.mean) / self.std for score in scores]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Within bounds."""

    low: Annotated[float, Field(ge=-LARGEST, le=LARGEST, description="no reward is less")]
    high: Annotated[float, Field(ge=-LARGEST, le=LARGEST, description="no reward is more; above low")]

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must lie below high; got low={self.low:g}, high={self.high:g}")

    @property
    def n_references(self) -> int:
        return 0

    def __call__(self, scores: Sequence[float], references: Sequence[float]) -> list[float]:
        return [min(max(score, self.low), self.high) for score in scores]


def non_empty(references: Sequence[float]) -> Sequence[float]:
    if not references:
        raise ValueError("this transform needs at least one reference reward")
    return references


def sigmoid(x: float) -> float:
    """Without overflow at either end."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def log_sigmoid(x: float) -> float:
    """log sigma(x), also where sigma(x) underflows: about x far below 0."""
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))
