"""Intervals against printed tables, a simulation and the equations that define them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.bench.intervals import count_effective, half, t_quantile, win_interval


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (29, 2.045), (120, 1.980), (10**6, 1.960)]
)
def test_students_table(freedom: int, t: float) -> None:
    assert t_quantile(freedom) == pytest.approx(t, abs=5e-4)


def test_it_holds_the_mean_as_often_as_it_says_even_of_five() -> None:
    """1.96 standard errors would hold it in 88 % of samples of five."""
    samples = np.random.default_rng(0).normal(3.0, 2.0, (4000, 5))
    held = [abs(sample.mean() - 3.0) <= half(sample.tolist()) for sample in samples]
    assert np.mean(held) == pytest.approx(0.95, abs=5 * math.sqrt(0.95 * 0.05 / 4000))


@pytest.mark.parametrize("wins", [[1.0, 0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 1.0], [0.25] * 40 + [1.0]])
def test_wilsons_ends_are_as_far_from_the_rate_as_they_could_be(wins: list[float]) -> None:
    rate = np.mean(wins)
    for end in win_interval(wins):
        assert abs(rate - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / len(wins)), rel=1e-5)


def test_ten_wins_of_ten_are_no_certainty() -> None:
    low, high = win_interval([1.0] * 10)
    assert low == pytest.approx(0.7225, abs=1e-4)
    assert high == 1.0


def test_wilsons_interval() -> None:
    """Of 9 in 9 and of 5 in 10; R's binom.confint(method = "wilson") has 0.7008550, 1 and 0.2365931, 0.7634069."""
    assert win_interval([1.0] * 9) == pytest.approx((0.7008550, 1.0), abs=1e-6)
    assert win_interval([1.0] * 5 + [0.0] * 5) == pytest.approx((0.2365931, 0.7634069), abs=1e-6)


@pytest.mark.parametrize("comparisons", [1, 3])
def test_several_comparisons_hold_together(comparisons: int) -> None:
    """Of as many independent means of eight, all are held in (1 - 0.05 / k)^k of the draws, 0.95 or a little more."""
    draws = np.random.default_rng(1).normal(0.0, 1.0, (4000, comparisons, 8))
    held = [all(abs(values.mean()) <= half(values.tolist(), comparisons) for values in draw) for draw in draws]
    expected = (1 - 0.05 / comparisons) ** comparisons
    assert np.mean(held) == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / 4000))


@pytest.mark.parametrize("wins", [[1.0, 0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 1.0], [1.0] * 9])
def test_groups_of_one_change_nothing(wins: list[float]) -> None:
    assert win_interval(wins, range(len(wins))) == pytest.approx(win_interval(wins), rel=1e-9)


@pytest.mark.parametrize("copies", [2, 7])
def test_copies_say_no_more_than_one(copies: int) -> None:
    """Of twelve values, each several times, the variance of the mean is that of twelve."""
    values = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    repeated, groups = values * copies, [*range(12)] * copies
    t = t_quantile(12 * copies - 1) / t_quantile(11)
    spread = np.var(values) / np.var(values, ddof=1) * np.var(repeated, ddof=1) / np.var(repeated)
    assert count_effective(repeated, groups) == pytest.approx(12 * spread * t**2)
    assert count_effective([1.0] * 24, [*range(12)] * 2) == 12


def test_it_holds_a_rate_as_often_as_it_says_where_prompts_differ() -> None:
    """27 prompts of 1 to 10 pairs, whose rates are 0.4 and 0.95: pairs taken for independent hold it less often."""
    rng = np.random.default_rng(3)
    held, held_alone = [], []
    for _ in range(2000):
        sizes, rates = rng.integers(1, 11, 27), rng.choice([0.4, 0.95], 27)
        groups = np.repeat(np.arange(27), sizes)
        wins = (rng.random(len(groups)) < rates[groups]).astype(float).tolist()
        for kept, (low, high) in ((held, win_interval(wins, groups.tolist())), (held_alone, win_interval(wins))):
            kept.append(low <= 0.675 <= high)
    assert np.mean(held) > 0.93
    assert np.mean(held_alone) < 0.85
