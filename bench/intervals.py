"""95 % intervals over independent values, such as one for each prompt: of a mean, and of a win rate."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Hashable, Sequence

import mpmath

LEVEL = 0.95


@functools.cache
def t_quantile(freedom: int, comparisons: int = 1) -> float:
    """The t with P(|T| < t) = 1 - 0.05 / comparisons, T being Student's of so many degrees of freedom."""
    outside = (1 - LEVEL) / comparisons

    def excess(log_t: mpmath.mpf) -> mpmath.mpf:
        # P(|T| > t) is the regularised incomplete beta function I_x(freedom / 2, 1 / 2), x = freedom / (freedom + t^2);
        # its logarithm is nearly straight in that of t
        x = freedom / (freedom + mpmath.exp(2 * log_t))
        return mpmath.log(mpmath.betainc(freedom / 2, 0.5, 0, x, regularized=True) / outside)

    normal = statistics.NormalDist().inv_cdf(1 - outside / 2)
    return float(mpmath.exp(mpmath.findroot(excess, math.log(normal))))


def half(values: Sequence[float], comparisons: int = 1) -> float:
    """Half Student's interval of the mean, of two values at least; wide enough for all of so many comparisons to hold
    together (Bonferroni's)."""
    return t_quantile(len(values) - 1, comparisons) * statistics.stdev(values) / math.sqrt(len(values))


def plus_minus(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.2f} ± {half(values):.2f}"


def count_effective(values: Sequence[float], groups: Sequence[Hashable]) -> float:
    """How many independent values the mean of these is as sure as, where those of one group may vary together: their
    number by Kish's design effect, the variance of the mean between groups over that of independent values, and by
    Student's t of as many groups (Korn and Graubard, 1998). At most as many as there are; where none differs from
    another, as many as there are groups."""
    n, mean = len(values), statistics.fmean(values)
    sums: dict[Hashable, float] = {}
    for value, group in zip(values, groups, strict=True):
        sums[group] = sums.get(group, 0.0) + value - mean
    g = len(sums)
    alone = math.fsum((value - mean) ** 2 for value in values) * n / (n - 1) if n > 1 else 0.0
    if g < 2 or not alone:
        return g
    together = math.fsum(of**2 for of in sums.values()) * g / (g - 1)
    return n / max(1.0, together / alone) * (t_quantile(n - 1) / t_quantile(g - 1)) ** 2


def win_interval(wins: Sequence[float], groups: Sequence[Hashable] | None = None) -> tuple[float, float]:
    """Wilson's interval of the mean of values in [0, 1], such as 1 for a win and 1/2 for a tie; values of one group,
    such as pairs of one prompt, count as `count_effective` says.

    Wilson's variance p (1 - p) is that of wins and losses alone. Ties, and means over several answers, vary less, so
    that the interval is then too wide rather than too narrow.
    """
    p = statistics.fmean(wins)
    n = len(wins) if groups is None else count_effective(wins, groups)
    z2 = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2) ** 2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    reach = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, centre - reach), min(1.0, centre + reach)
