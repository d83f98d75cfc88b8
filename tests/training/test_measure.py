"""Accuracy, its interval and calibration, against plain sums and known values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.training.measure import calibration_error, log_sigmoid, summarise, wilson


def test_wilsons_interval() -> None:
    """Of 9 in 9 and of 5 in 10; R's binom.confint(method = "wilson") has 0.7008550, 1 and 0.2365931, 0.7634069."""
    assert wilson(1.0, 9) == pytest.approx((0.7008550, 1.0), abs=1e-6)
    assert wilson(0.5, 10) == pytest.approx((0.2365931, 0.7634069), abs=1e-6)


def test_log_sigmoid_does_not_overflow() -> None:
    for x in (-800.0, -3.0, 0.0, 3.0, 800.0):
        assert log_sigmoid(x) == pytest.approx(-np.logaddexp(0, -x))


def test_a_summary() -> None:
    found = summarise([2.0, -1.0, 0.0, 3.0])
    assert (found["pairs"], found["accuracy"]) == (4, 2.5 / 4)
    assert found["loss"] == pytest.approx(np.mean([np.log1p(np.exp(-m)) for m in (2.0, -1.0, 0.0, 3.0)]))


def test_a_calibrated_model_has_no_error_and_a_boastful_one_has() -> None:
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 2, 200_000)
    right = rng.random(len(margins)) < 1 / (1 + np.exp(-np.abs(margins)))
    honest = np.where(right, np.abs(margins), -np.abs(margins))
    assert calibration_error(honest.tolist()) < 0.005
    boastful = np.where(rng.random(1000) < 0.6, 5.0, -5.0)
    sure = 1 / (1 + math.exp(-5))
    assert calibration_error(boastful.tolist()) == pytest.approx(sure - np.mean(boastful > 0))
