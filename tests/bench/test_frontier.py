"""The frontier's distance: nothing for a coin toss between the extremes, positive for what beats it."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.bench.quality.guided import CONFLICT, above_the_line
from trimtab.bench.quality.points import Point

FIRST, SECOND = CONFLICT


def point(first: np.ndarray, second: np.ndarray) -> Point:
    return Point(alignment={}, scores={FIRST: tuple(first), SECOND: tuple(second)}, kl=(0.0,) * len(first))


@pytest.fixture
def extremes() -> tuple[np.ndarray, np.ndarray]:
    noise = np.random.default_rng(1).normal(size=(2, 400))
    return np.array([2.0, 8.0])[:, None] + noise, np.array([8.0, 2.0])[:, None] + noise[::-1]


@pytest.mark.parametrize("bonus", [0.0, 1.0, -1.0])
def test_the_distance_is_what_was_put_there(extremes: tuple[np.ndarray, np.ndarray], bonus: float) -> None:
    first, second = extremes
    toss = np.arange(400) % 2  # half the prompts get one extreme's answer, half the other's
    mixed = point(np.where(toss, first[0], first[1]), np.where(toss, second[0], second[1]) + bonus)
    frontier = {0.0: point(first[0], second[0]), 0.5: mixed, 1.0: point(first[1], second[1])}
    [(distance, error)] = above_the_line(frontier).values()
    assert 0 < error < 0.5
    assert distance == pytest.approx(bonus, abs=2.5 * error)
