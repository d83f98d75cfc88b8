"""Many rewards as one: a row of K scores becomes one number.

| class          | paper            | R(r_1 .. r_K)                                                      |
|----------------|------------------|--------------------------------------------------------------------|
| `Weighted`     |                  | sum_k w_k r_k                                                      |
| `Mean`         | arXiv 2312.09244 | mean_k r_k                                                         |
| `Median`       | arXiv 2312.09244 | median_k r_k                                                       |
| `Min`          | see below        | min_k r_k                                                          |
| `MeanMinusStd` | arXiv 2312.09244 | mean_k r_k - lambda std_k r_k                                      |
| `Uwo`          | arXiv 2310.02743 | mean_k r_k - lambda var_k r_k                                      |
| `LscSum`       | arXiv 2402.00742 | sum_k log sigma(r_k)                                               |
| `Heron`        | arXiv 2309.02632 | candidates that y beats, minus those that beat it; see the class   |

`Min` is the worst case of an ensemble (WCO, 2310.02743), and MaxMin-RLHF's egalitarian choice among groups of people
(2402.08925), taken per answer. Variance and standard deviation are those of a sample, with K - 1, and 0
for one column. Columns of different scales are standardised first, each by its own `transforms.Standardise`, or
centred for `LscSum`; the mean and spread of a pool would make a row depend on the others.
Shapes: N candidates, K rewards: [N, K] -> [N, 1].
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import numpy as np
from pydantic import Field

from trimtab.rewards.transforms import LARGEST, log_sigmoid

Rows = Sequence[Sequence[float]]

Caution = Annotated[
    float, Field(ge=0, le=LARGEST, alias="lambda", description="how much disagreement costs; 0 is the mean")
]


class Combine(Protocol):
    in_pool: ClassVar[bool]
    """Whether a row's value depends on the other rows. Chains and filters refuse that: their target must be fixed."""

    def __call__(self, rows: Rows) -> list[list[float]]:
        """[N, 1]. Raises ValueError for a number of columns that does not fit the parameters."""
        ...


def combine_each(rows: Rows, value: Callable[[Sequence[float]], float]) -> list[list[float]]:
    """[N, 1] row by row; raises ValueError for rows without a column."""
    if any(not row for row in rows):
        raise ValueError("there is no reward to combine")
    return [[float(value(row))] for row in rows]


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """The weighted sum."""

    in_pool: ClassVar[bool] = False
    weights: Annotated[
        Sequence[Annotated[float, Field(ge=-LARGEST, le=LARGEST)]] | None,
        Field(min_length=1, description="one per reward, in their order; all 1 if not given"),
    ] = None

    def __call__(self, rows: Rows) -> list[list[float]]:
        def weighted_sum(row: Sequence[float]) -> float:
            weights = [1.0] * len(row) if self.weights is None else self.weights
            if len(weights) != len(row):
                raise ValueError(f"weights must be {len(row)} numbers, one per reward; got {len(weights)}")
            return math.fsum(w * r for w, r in zip(weights, row, strict=True))

        return combine_each(rows, weighted_sum)


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean of an ensemble."""

    in_pool: ClassVar[bool] = False

    def __call__(self, rows: Rows) -> list[list[float]]:
        return combine_each(rows, statistics.fmean)


@dataclass(frozen=True, kw_only=True)
class Median:
    """The median of an ensemble."""

    in_pool: ClassVar[bool] = False

    def __call__(self, rows: Rows) -> list[list[float]]:
        return combine_each(rows, statistics.median)


@dataclass(frozen=True, kw_only=True)
class Min:
    """The worst reward."""

    in_pool: ClassVar[bool] = False

    def __call__(self, rows: Rows) -> list[list[float]]:
        return combine_each(rows, min)


@dataclass(frozen=True, kw_only=True)
class MeanMinusStd:
    """The mean, less for members that disagree."""

    in_pool: ClassVar[bool] = False
    lambda_: Caution = 0.5

    def __call__(self, rows: Rows) -> list[list[float]]:
        return combine_each(rows, lambda row: statistics.fmean(row) - self.lambda_ * math.sqrt(variance(row)))


@dataclass(frozen=True, kw_only=True)
class Uwo:
    """Uncertainty-weighted: the mean less lambda times the *variance*."""

    in_pool: ClassVar[bool] = False
    lambda_: Caution = 0.5

    def __call__(self, rows: Rows) -> list[list[float]]:
        return combine_each(rows, lambda row: statistics.fmean(row) - self.lambda_ * variance(row))


@dataclass(frozen=True, kw_only=True)
class LscSum:
    """The log-probability that the answer is good by every reward, of rewards that are 0 where good begins."""

    in_pool: ClassVar[bool] = False

    def __call__(self, rows: Rows) -> list[list[float]]:
        return combine_each(rows, lambda row: math.fsum(map(log_sigmoid, row)))


@dataclass(frozen=True, kw_only=True)
class Heron:
    """A hierarchy of signals with margins, as a Copeland count.

    Of two candidates the first reward that differs by more than its margin decides, if any does. That relation is not
    transitive, so what ranks N candidates is how many each beats less how many beat it, in -(N - 1) .. N - 1.
    """

    in_pool: ClassVar[bool] = True
    margins: Annotated[
        Sequence[Annotated[float, Field(ge=0, le=LARGEST)]],
        Field(min_length=1, description="one per reward, the most important first: what difference decides nothing"),
    ]

    def __call__(self, rows: Rows) -> list[list[float]]:
        if any(len(row) != len(self.margins) for row in rows):
            raise ValueError(f"margins must be one per reward; got {len(self.margins)} for {len(rows[0])} rewards")
        signals_NK = np.array(rows, dtype=np.float64)
        margins_K = np.array(self.margins)
        return [[float(self._lead(row_K, signals_NK, margins_K))] for row_K in signals_NK]

    @staticmethod
    def _lead(row_K: np.ndarray, signals_NK: np.ndarray, margins_K: np.ndarray) -> int:
        """How many rows this one beats, minus how many beat it."""
        ahead_NK = row_K - signals_NK
        decides_NK = np.abs(ahead_NK) > margins_K
        first_N1 = decides_NK.argmax(axis=1, keepdims=True)  # the first that decides; 0 where none does
        verdicts = np.take_along_axis(np.sign(ahead_NK) * decides_NK, first_N1, axis=1)
        return int(verdicts.sum())


def variance(row: Sequence[float]) -> float:
    """Of a sample; 0 for one member."""
    return statistics.variance(row) if len(row) > 1 else 0.0
