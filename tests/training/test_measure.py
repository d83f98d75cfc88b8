"""Accuracy, its interval and calibration, against plain sums and known values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.training.measure import calibration_error, log_sigmoid, summarise


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
