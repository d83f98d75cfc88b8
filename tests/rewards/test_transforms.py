from __future__ import annotations

import math
import random
import statistics
from typing import Any

import pytest

from trimtab.rewards import TRANSFORMS
from trimtab.rewards.transforms import Transform, log_sigmoid

SCORES = [-1e4, -30.0, -1.0, -1e-3, 0.0, 0.5, 2.0, 20.0]


def transform(name: str, **params: Any) -> Transform:
    built: Transform = TRANSFORMS[name].build(params)
    return built


def test_centre_and_identity() -> None:
    assert transform("centre", references=3)([1, 2, 7], [0, 1, 5]) == [-1, 0, 5]
    assert transform("identity")(SCORES, []) == SCORES


def test_lsc_by_hand() -> None:
    assert transform("lsc", references=1)([3.0], [1.0]) == [pytest.approx(math.log(1 / (1 + math.exp(-2))), rel=1e-14)]
    references = [0.0, 1.0, 2.0, 3.0]  # mean 1.5, variance 5 / 3
    good = 1.5 + 1.0364333894937898 * math.sqrt(5 / 3)
    assert transform("lsc", references=4)([good], references) == [pytest.approx(-math.log(2), rel=1e-12)]
    assert transform("lsc", quantile=0.5)([1.5], references) == [pytest.approx(-math.log(2), rel=1e-12)]


def test_lscs_laws() -> None:
    lsc = transform("lsc", references=1)
    u = lsc(SCORES, [0.5])
    assert all(value < 0 for value in u)
    assert u == sorted(u)
    assert len(set(u)) == len(u)
    assert u[0] == -1e4 - 0.5  # far below it is r - r_ref, where the logarithm of sigma is minus infinity
    assert u[1] == pytest.approx(-30.5, abs=1e-12)
    assert lsc([40.5], [0.5])[0] == pytest.approx(0, abs=1e-17)
    assert lsc([1e308, -1e308], [0.0]) == [0, -1e308]


def test_log_sigmoid_where_the_plain_formula_holds() -> None:
    for x in (-20.0, -1.0, 0.0, 1.0, 20.0):
        assert log_sigmoid(x) == pytest.approx(math.log(1 / (1 + math.exp(-x))), rel=1e-7)


def test_pars_laws() -> None:
    references = [-1.0, 0.0, 3.0]
    par = transform("par", references=3)
    u = par([-5.0, -1.0, 0.0, 0.5, 2.0, 20.0], references)
    assert all(0 < value < 1 for value in u)
    assert u == sorted(u)
    assert par([-1e4, 1e4], references) == [0, 1]

    def beaten(r: float, reference: float) -> float:
        """P(y preferred to the reference) under Bradley-Terry."""
        return math.exp(r) / (math.exp(r) + math.exp(reference))

    assert u[4] == pytest.approx(statistics.fmean(beaten(2.0, r) for r in references), rel=1e-14)
    assert transform("par", k=3.0)([0.4], [0.1]) == [pytest.approx(beaten(0.9, 0.0), rel=1e-14)]
    assert transform("par")([1.5], [1.5]) == [0.5]


def test_standardise_and_clip() -> None:
    assert transform("standardise", mean=2.0, std=4.0)([2, 6, 0], []) == [0, 1, -0.5]
    assert transform("clip", low=-1.0, high=2.0)([-5, -1, 0.5, 3], []) == [-1, -1, 0.5, 2]


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_each_is_a_function_of_one_score_and_never_turns_the_order(name: str) -> None:
    params: dict[str, Any] = {"standardise": {"mean": 1.0, "std": 2.0}, "clip": {"low": -1.0, "high": 1.0}}
    built = transform(name, **params.get(name, {}))
    draw = random.Random(3)
    scores = [draw.gauss(0, 3) for _ in range(50)]
    references = [draw.gauss(0, 3) for _ in range(built.n_references)]
    together = built(scores, references)
    assert together == [built([score], references)[0] for score in scores]
    by_score = [u for _, u in sorted(zip(scores, together, strict=True))]
    assert by_score == sorted(by_score)


def test_references_wanted() -> None:
    assert {name: transform(name).n_references for name in ("centre", "identity", "lsc", "par")} == {
        "centre": 1,
        "identity": 0,
        "lsc": 8,
        "par": 1,
    }
    for name in ("centre", "lsc", "par"):
        with pytest.raises(ValueError, match="at least one reference"):
            transform(name)([1.0], [])


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("clip", {"low": 1.0, "high": 1.0}, "low must lie below high; got low=1, high=1"),
        ("clip", {"low": math.nan, "high": 1.0}, "low"),
        ("standardise", {"mean": 0.0, "std": 0.0}, "std: .*greater than or equal to 0.000001"),
        ("standardise", {"mean": 1e7, "std": 1.0}, "mean: .*less than or equal to"),
        ("clip", {"low": -1e300, "high": 1.0}, "low"),
        ("par", {"k": 1e7}, "k: "),
        ("par", {"k": 10**400}, "k: "),
        ("standardise", {"std": 1.0}, "mean is required"),
        ("lsc", {"quantile": 1.0}, "quantile"),
        ("par", {"k": 0.0}, "k: "),
        ("par", {"references": 0}, "references: "),
        ("centre", {"reference": 2}, "unknown parameter 'reference'; valid: references"),
        ("identity", {"k": 2}, "unknown parameter 'k'; valid: none"),
    ],
)
def test_refused(name: str, params: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        transform(name, **params)
