from __future__ import annotations

import math
import random
from typing import Any

import pytest

from trimtab.rewards import COMBINES
from trimtab.rewards.combine import Combine

ROW = [1.0, 2.0, 6.0]
PARAMS: dict[str, dict[str, Any]] = {"heron": {"margins": [0.3, 0.2, 0.0]}, "sum": {"weights": [2.0, -1.0, 0.5]}}


def combine(name: str, **params: Any) -> Combine:
    built: Combine = COMBINES[name].build(params)
    return built


def pool(n: int, k: int = 3, seed: int = 7) -> list[list[float]]:
    draw = random.Random(seed)
    return [[round(draw.gauss(0, 1), 1) for _ in range(k)] for _ in range(n)]


@pytest.mark.parametrize(
    ("name", "params", "value"),
    [
        ("sum", {}, 9),
        ("sum", {"weights": [2.0, -1.0, 0.5]}, 3),
        ("mean", {}, 3),
        ("median", {}, 2),
        ("min", {}, 1),
        ("uwo", {}, 3 - 0.5 * 7),  # variance ((-2)^2 + (-1)^2 + 3^2) / 2 = 7
        ("uwo", {"lambda": 2.0}, 3 - 2 * 7),
        ("uwo", {"lambda": 0.0}, 3),
        ("mean_minus_std", {}, 3 - 0.5 * math.sqrt(7)),
        ("mean_minus_std", {"lambda": 0}, 3),
        ("lsc", {}, sum(math.log(1 / (1 + math.exp(-r))) for r in ROW)),
    ],
)
def test_by_hand(name: str, params: dict[str, Any], value: float) -> None:
    assert combine(name, **params)([ROW, ROW]) == [[pytest.approx(value, rel=1e-14)]] * 2


@pytest.mark.parametrize("name", ["mean", "median", "min", "uwo", "mean_minus_std"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_members_that_agree_are_their_ensemble(name: str, k: int) -> None:
    for member in (-3.7, 0.0, 0.1, 1e6):
        assert combine(name)([[member] * k]) == [[pytest.approx(member, rel=1e-12, abs=1e-12)]]


def test_the_ensembles_order() -> None:
    rows = pool(50)
    means, mins = combine("mean")(rows), combine("min")(rows)
    assert all(low <= mean for [low], [mean] in zip(mins, means, strict=True))
    assert combine("uwo", **{"lambda": 0.0})(rows) == means
    assert combine("uwo")(rows) != means


def test_lsc_is_a_log_probability_and_does_not_underflow() -> None:
    assert combine("lsc")([[-1e4, -1e4], [50.0, 50.0]]) == [[-2e4], [pytest.approx(0, abs=1e-20)]]


@pytest.mark.parametrize("name", sorted(COMBINES))
def test_permuting_the_pool_permutes_the_values(name: str) -> None:
    rows = pool(20)
    built = combine(name, **PARAMS.get(name, {}))
    values = built(rows)
    order = random.Random(1).sample(range(20), 20)
    assert built([rows[i] for i in order]) == [values[i] for i in order]
    assert len({value for [value] in values}) > 5


@pytest.mark.parametrize("name", sorted(COMBINES))
def test_in_pool_says_whether_a_row_depends_on_the_others(name: str) -> None:
    rows = pool(20)
    built = combine(name, **PARAMS.get(name, {}))
    alone = [built([row])[0] for row in rows]
    assert (alone != built(rows)) == built.in_pool
    assert built([]) == []


def test_heron_the_first_difference_beyond_its_margin_decides() -> None:
    heron = combine("heron", margins=[0.5, 0.0])
    assert heron([[1.0, 0.0], [0.0, 9.0]]) == [[1], [-1]]
    assert heron([[0.5, 0.0], [0.0, 9.0]]) == [[-1], [1]]  # 0.5 is not more than the margin
    assert heron([[0.5, 3.0], [0.0, 3.0]]) == [[0], [0]]
    assert heron([[4.0, 4.0]]) == [[0]]


def test_heron_counts_through_a_cycle() -> None:
    # Margin 1 on the first signal: a = (0, 2) beats b = (1, 1) and b beats c = (2, 0) by the second, c beats a by the
    # first.
    cycle = [[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]]
    heron = combine("heron", margins=[1.0, 0.0])
    assert heron(cycle) == [[0], [0], [0]]
    # d loses to all three by the first signal.
    assert heron([*cycle, [-5.0, 0.0]]) == [[1], [1], [1], [-3]]
    # e beats a and b by the first signal and loses to c by the second.
    assert heron([*cycle, [2.5, -1.0]]) == [[-1], [-1], [1], [1]]


def test_heron_without_margins_is_lexicographic_rank() -> None:
    rows = pool(30)
    counts = [value for [value] in combine("heron", margins=[0, 0, 0])(rows)]
    assert [row for _, row in sorted(zip(counts, rows, strict=True))] == sorted(rows)
    assert sum(counts) == 0


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("sum", {"weights": []}, "weights"),
        ("sum", {"weights": [1.0, math.nan]}, "weights.1: .*finite"),
        ("sum", {"weights": [1.0, 1e7]}, "weights.1: "),
        ("uwo", {"lambda": 1e300}, "lambda: "),
        ("uwo", {"lambda": -0.1}, "lambda: .*got '-0.1'"),
        ("uwo", {"lambda_": 1.0}, "unknown parameter 'lambda_'; valid: lambda"),
        ("heron", {}, "margins is required"),
        ("heron", {"margins": [-1.0]}, "margins.0"),
    ],
)
def test_refused(name: str, params: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        combine(name, **params)


@pytest.mark.parametrize(
    ("name", "params", "row", "says"),
    [
        ("sum", {"weights": [1.0]}, [1.0, 2.0], "weights must be 2 numbers, one per reward; got 1"),
        ("heron", {"margins": [1.0]}, [1.0, 2.0], "margins must be one per reward; got 1 for 2 rewards"),
        ("mean", {}, [], "no reward"),
    ],
)
def test_columns_that_do_not_fit(name: str, params: dict[str, Any], row: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        combine(name, **params)([row])
