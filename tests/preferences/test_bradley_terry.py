"""A person inferred from choices: against integration on a grid, a closed form, and people whose weights are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.preferences.bradley_terry import Person, choices_from_ratings, entropy, infer_person, sigmoid


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def choices(w: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    """[n, K] r(chosen) - r(rejected) of a person's choices among pairs of independent answers."""
    d = generator.standard_normal((n, len(w))) * math.sqrt(2)
    chosen = generator.random(n) < sigmoid(d @ w)
    return np.where(chosen[:, None], d, -d)


def test_nothing_said_is_the_prior() -> None:
    person = infer_person(np.zeros((0, 3)), [], mean_K=[1.0, 0.0, -2.0], std=0.5)
    assert person.mean == pytest.approx([1, 0, -2])
    assert person.covariance == pytest.approx(np.eye(3) / 4)
    assert infer_person(np.zeros((0, 2)), [], mean_K=[0, 0], std=1).direction is None


def test_the_mode_is_where_the_gradient_vanishes_however_far_the_rewards_lie_apart() -> None:
    for scale in (1e-3, 1.0, 1e3):
        d = choices(np.array([2.0, -1.0, 0.5]), 40, rng(1)) * scale
        person = infer_person(d, np.ones(40), mean_K=[0, 0, 0], std=2.0)
        gradient = -sigmoid(-(d @ person.mean)) @ d + person.mean / 4
        assert np.abs(gradient).max() < 1e-6 * scale
        eps = 1e-5 / scale
        up, down = (
            -sigmoid(-(d @ (person.mean + s * eps * np.eye(3)[0]))) @ d + (person.mean + s * eps * np.eye(3)[0]) / 4
            for s in (1, -1)
        )
        assert np.linalg.inv(person.covariance)[0] == pytest.approx((up - down) / (2 * eps), rel=1e-3, abs=1e-6)


def test_the_normal_law_is_near_the_exact_posterior() -> None:
    """Of one objective, where it can be integrated."""
    d = choices(np.array([1.5]), 30, rng(2))
    person = infer_person(d, np.ones(30), mean_K=[0.0], std=2.0)
    w = np.linspace(-8, 12, 20001)
    log = -np.logaddexp(0, -(w[:, None] * d[:, 0])).sum(axis=1) - w**2 / 8
    p = np.exp(log - log.max())
    p /= p.sum()
    mean = float(p @ w)
    assert person.mean[0] == pytest.approx(w[log.argmax()], abs=1e-3)
    assert person.mean[0] == pytest.approx(mean, abs=0.3 * math.sqrt(p @ (w - mean) ** 2))
    assert person.covariance[0, 0] == pytest.approx(float(p @ (w - mean) ** 2), rel=0.25)


def test_a_choice_that_counts_twice_is_two() -> None:
    d = choices(np.array([1.0, 1.0]), 5, rng(3))
    twice = infer_person(np.concatenate([d, d]), np.ones(10), mean_K=[0, 0], std=1.0)
    counted = infer_person(d, np.full(5, 2.0), mean_K=[0, 0], std=1.0)
    assert counted.mean == pytest.approx(twice.mean)
    assert counted.covariance == pytest.approx(twice.covariance)


def test_information_is_the_mutual_information() -> None:
    """Against a sum over many draws of w, and its bounds: nothing of a pair that is alike, at most one coin."""
    person = Person(mean=np.array([0.5, -1.0]), covariance=np.array([[1.0, 0.3], [0.3, 0.5]]))
    pairs = rng(4).standard_normal((6, 2)) * np.array([[0.1], [0.5], [1], [2], [5], [20]])
    w = rng(5).multivariate_normal(person.mean, person.covariance, size=400_000)
    p = sigmoid(w @ pairs.T)
    expected = entropy(p.mean(axis=0)) - entropy(p).mean(axis=0)
    assert person.probability(pairs) == pytest.approx(p.mean(axis=0), abs=0.004)
    assert person.information(pairs) == pytest.approx(expected, abs=0.004)
    assert person.information(np.zeros((1, 2))) == pytest.approx([0.0], abs=1e-12)
    assert (person.information(pairs) <= math.log(2)).all()
    assert person.information(pairs) == pytest.approx(person.information(-pairs))


def test_stated_uncertainty_is_right_on_people_drawn_from_the_prior() -> None:
    """The middle 95 % hold the truth 95 % of the time, in coefficients and in directions, within 5 sigma."""
    people, held, held_direction = 400, 0, 0
    generator = rng(6)
    for _ in range(people):
        w = generator.standard_normal(3) * 2
        person = infer_person(choices(w, 24, generator), np.ones(24), mean_K=[0, 0, 0], std=2.0)
        off = (w - person.mean) / np.sqrt(np.diag(person.covariance))
        held += int((np.abs(off) < 1.96).sum())
        low, high = np.quantile(person.draw_directions()[:2000], [0.025, 0.975], axis=0)
        u = w / np.linalg.norm(w)
        held_direction += int(((low <= u) & (u <= high)).sum())
    n = 3 * people
    tolerance = 5 * math.sqrt(0.95 * 0.05 / people)  # a person's three are not independent
    assert held / n == pytest.approx(0.95, abs=tolerance)
    assert held_direction / n == pytest.approx(0.95, abs=tolerance)


def test_more_choices_tell_more_and_chosen_questions_most() -> None:
    """Cosine of inferred and true weights, mean over people: it rises, and faster where pairs are chosen."""
    generator = rng(7)
    cosines: dict[tuple[str, int], list[float]] = {}
    for _ in range(30):
        w = generator.standard_normal(4) * 2
        for how in ("random", "active"):
            d = np.zeros((0, 4))
            for n in range(1, 17):
                pairs = generator.standard_normal((32, 4)) * math.sqrt(2)
                person = infer_person(d, np.ones(len(d)), mean_K=[0] * 4, std=2.0)
                pair = pairs[0] if how == "random" else pairs[int(person.information(pairs).argmax())]
                chosen = pair if generator.random() < sigmoid(pair @ w) else -pair
                d = np.vstack([d, chosen])
                if n in (2, 16):
                    direction = infer_person(d, np.ones(n), mean_K=[0] * 4, std=2.0).direction
                    assert direction is not None
                    cosines.setdefault((how, n), []).append(float(direction @ w / np.linalg.norm(w)))
    mean = {key: float(np.mean(values)) for key, values in cosines.items()}
    assert mean["random", 16] > mean["random", 2] + 0.2
    difference = np.array(cosines["active", 16]) - np.array(cosines["random", 16])
    assert difference.mean() > 0


def test_ratings_are_compared_and_count_as_one_fewer() -> None:
    assert choices_from_ratings([1.0, 3.0]) == [(1, 0, 1.0)]
    assert choices_from_ratings([2.0, 2.0]) == []
    assert choices_from_ratings([]) == choices_from_ratings([1.0]) == []
    three = choices_from_ratings([1.0, 2.0, 3.0])
    assert {(i, j) for i, j, _ in three} == {(1, 0), (2, 0), (2, 1)}
    assert sum(count for *_, count in three) == pytest.approx(2)
