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
    found = summarise([2.0, -1.0, 0.0, 3.0], [0.1, 0.1, 0.7, 0.2])
    assert (found["pairs"], found["prompts"], found["accuracy"]) == (4, 3, 2.5 / 4)
    assert found["loss"] == pytest.approx(np.mean([np.log1p(np.exp(-m)) for m in (2.0, -1.0, 0.0, 3.0)]))


def test_pairs_of_one_prompt_are_no_more_than_it() -> None:
    """132 pairs of 27 prompts, all of a prompt alike, are as uncertain as 27, and as 132 where each has its own."""
    right = [2.0] * 20 + [-2.0] * 7
    margins, places = [m for m in right for _ in range(5)], [p / 27 for p in range(27) for _ in range(5)]
    found, alone = summarise(margins, places), summarise(right, places[::5])
    assert found["accuracy"] == alone["accuracy"]
    assert found["accuracy_low"] == pytest.approx(alone["accuracy_low"], abs=0.02)
    assert found["accuracy_low"] < summarise(margins, range(135))["accuracy_low"] - 0.05


def test_a_calibrated_model_has_no_error_and_a_boastful_one_has() -> None:
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 2, 200_000)
    right = rng.random(len(margins)) < 1 / (1 + np.exp(-np.abs(margins)))
    honest = np.where(right, np.abs(margins), -np.abs(margins))
    assert calibration_error(honest.tolist()) < 0.005
    boastful = np.where(rng.random(1000) < 0.6, 5.0, -5.0)
    sure = 1 / (1 + math.exp(-5))
    assert calibration_error(boastful.tolist()) == pytest.approx(sure - np.mean(boastful > 0))
