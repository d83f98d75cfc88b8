"""Directions: the geometry of a neighbourhood, and the text that says one, against the published figures and texts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.preferences.preference_direction import (
    DPA,
    RPS,
    TEXTS,
    VALUES,
    Cone,
    PreferenceDirection,
    Template,
    angle_between,
    angle_of,
    choose_neighbours,
    describe_values,
    draw_on_cap,
    from_angle,
    unit_vector,
)

PUBLISHED = Cone(axis=(1.0, 0.0), degrees=45)


def wish(*v: float, cone: Cone | None = None) -> PreferenceDirection:
    shares = tuple(map(float, unit_vector(v)))
    names = tuple(f"o{i}" for i in range(len(v)))
    return PreferenceDirection(objectives=names, v=shares, cone=cone or Cone(axis=shares))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sigmas(below: float, n: int, p: float) -> float:
    """How far a count of n trials of probability p lies from its mean, in standard deviations."""
    return (below - n * p) / math.sqrt(n * p * (1 - p))


def test_a_direction_has_length_one_whatever_the_weights() -> None:
    assert unit_vector([3, 4]) == pytest.approx([0.6, 0.8])
    assert unit_vector([3e300, 4e300]) == pytest.approx([0.6, 0.8])
    assert unit_vector([3e-300, 4e-300]) == pytest.approx([0.6, 0.8])
    for weights in ([0.0, 0.0], []):
        with pytest.raises(ValueError, match="length 0"):
            unit_vector(weights)
    for angle in (-179.0, -45.0, 0.0, 1e-7, 90.0, 180.0):
        assert angle_of(from_angle(angle)) == pytest.approx(angle, abs=1e-9)
        assert angle_between(from_angle(angle), from_angle(0)) == pytest.approx(abs(angle), abs=1e-9)


@pytest.mark.parametrize("d", [2, 3, 5])
@pytest.mark.parametrize("theta_max", [12.0, 30.0, 100.0])
def test_neighbours_are_uniform_on_the_cap(d: int, theta_max: float) -> None:
    """The angle's law is the integral of sin^(d-2), its tenths each hit a tenth of the time; what is orthogonal has no
    preferred side."""
    n = 4000
    v = unit_vector(list(range(1, d + 1)))
    generator = rng(d)
    drawn = np.array([draw_on_cap(v, theta_max, generator) for _ in range(n)])
    assert np.linalg.norm(drawn, axis=1) == pytest.approx(np.ones(n))
    phi = np.degrees(np.arccos(np.clip(drawn @ v, -1, 1)))
    assert phi.max() <= theta_max + 1e-6
    grid = np.radians(np.linspace(0, theta_max, 20001))
    mass = np.cumsum(np.sin(grid) ** (d - 2))
    for tenth in range(1, 10):
        edge = np.degrees(grid[np.searchsorted(mass, mass[-1] * tenth / 10)])
        assert abs(sigmas(int((phi <= edge).sum()), n, tenth / 10)) < 5
    aside = drawn - (drawn @ v)[:, None] * v
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    scatter = aside.mean(axis=0) * math.sqrt(n * (d - 1))  # each side's mean is 0, its variance 1 / (d - 1)
    assert np.abs(scatter).max() < 5


@pytest.mark.parametrize("d", [2, 3, 5])
def test_sampled_neighbours_stay_in_the_cone_and_near_the_target(d: int) -> None:
    axis = unit_vector([1.0, *[0.2] * (d - 1)])
    target = unit_vector([1.0, *[0.0] * (d - 1)])
    cone = Cone(axis=tuple(axis), degrees=40, nonnegative=True)
    neighbours = choose_neighbours(wish(*target, cone=cone), 500, 30.0, rng())
    assert all(cone.contains(v) and angle_between(v, target) <= 30 + 1e-6 for v in neighbours)
    assert max(angle_between(v, target) for v in neighbours) > 20
    assert choose_neighbours(wish(*target, cone=cone), 3, 0.0, rng())[2] == pytest.approx(target)


def test_two_objectives_are_put_on_the_cone_s_edge() -> None:
    """At 45 degrees, where half of the neighbourhood is not valid, half of the draws are the target itself."""
    neighbours = choose_neighbours(wish(1, 1, cone=PUBLISHED), 4000, 30.0, rng())
    at_edge = sum(angle_of(v) == pytest.approx(45, abs=1e-9) for v in neighbours)
    assert abs(sigmas(at_edge, 4000, 0.5)) < 5
    assert min(angle_of(v) for v in neighbours) >= 15 - 1e-9
    below = [angle_of(v) for v in neighbours if angle_of(v) < 45 - 1e-9]
    assert abs(np.mean(below) - 30) < 5 * np.std(below) / math.sqrt(len(below))
    assert Cone(axis=(1.0, 0.0), nonnegative=True).clip(-20) == 0
    behind = Cone(axis=tuple(from_angle(170)), degrees=45)
    for angle, nearest in ((-160, -160), (-100, -145), (120, 125), (190, -170), (30, 125), (-40, -145)):
        assert behind.clip(angle) == pytest.approx(nearest)
        assert behind.contains(from_angle(nearest))


def test_a_cone_that_hardly_meets_the_neighbourhood_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.preferences.preference_direction.TRIES", 5)
    corner = wish(1, 0, 0, 0, 0, 0, 0, 0, 0, 0, cone=Cone(axis=(1.0, *[0.0] * 9), nonnegative=True))
    with pytest.raises(ValueError, match="theta_max=170"):
        choose_neighbours(corner, 1, 170.0, rng())


REFERENCE = {
    10: [0, 5, 10, 15, 20],
    15: [5, 10, 15, 20, 25],
    20: [10, 15, 20, 25, 30],
    25: [15, 20, 25, 30, 35],
    30: [20, 25, 30, 35, 40],
    35: [20, 25, 30, 35, 40],
    40: [20, 25, 30, 35, 40],
    45: [20, 25, 30, 35, 40],
}
"""The published code's sets, as ALGORITHMS 2.9 lists them."""


@pytest.mark.parametrize("target", REFERENCE)
def test_grids(target: int) -> None:
    direction = wish(*from_angle(target), cone=PUBLISHED)
    reference = [angle_of(v) for v in choose_neighbours(direction, 5, 30.0, rng(), mode="grid_reference")]
    assert reference == pytest.approx(REFERENCE[target])
    relative = [angle_of(v) for v in choose_neighbours(direction, 5, 30.0, rng(), mode="grid_relative")]
    span = range(target - 10, target + 15, 5) if target <= 35 else range(25, 50, 5)
    assert relative == pytest.approx(list(span))


def test_the_published_sets_beyond_30_degrees_are_centred_on_30() -> None:
    for target in (35, 40, 45):
        assert np.mean(REFERENCE[target]) == 30


def test_grids_are_refused_where_they_are_none() -> None:
    with pytest.raises(ValueError, match="for two objectives"):
        choose_neighbours(wish(1, 1, 1), 2, 30.0, rng(), mode="grid_relative")
    with pytest.raises(ValueError, match=r"params\.k must be at most 5.*got 6"):
        choose_neighbours(wish(1, 0, cone=PUBLISHED), 6, 10.0, rng(), mode="grid_relative")


@pytest.mark.parametrize(("angle", "numbers"), [(0, (100, 0)), (-15, (97, -26)), (45, (71, 71)), (-45, (71, -71))])
def test_the_published_texts(angle: float, numbers: tuple[int, int]) -> None:
    """Byte for byte."""
    h, w = numbers
    rating = f"Your response should maximize weighted rating = helpfulness*{h} + verbosity*{w}"
    both = {"slots": ("h", "w"), "signs": (1.0, 1.0)}
    texts = {
        name: Template(text=text, role=role, **both).render(from_angle(angle)) for name, (text, role) in TEXTS.items()
    }
    assert texts["dpa"] == (
        "You are a helpful, respectful, and honest assistant who always responds to the user in a harmless way. "
        + rating
    )
    assert texts["rps"] == f"You are a helpful assistant. {rating}."
    assert TEXTS["dpa"] == (DPA, "system")
    assert TEXTS["rps"] == (RPS, "user")


def test_a_text_of_one_s_own() -> None:
    template = Template(
        text='{"b": {b}, "c": {c}}', role="user", slots=("b", "c"), signs=(1.0, 1.0), scale=10, decimals=1
    )
    assert template.render([0.6, -0.8]) == '{"b": 6.0, "c": -8.0}'
    assert template.render([1.0, -0.0001]) == '{"b": 10.0, "c": 0.0}'


def test_a_slot_may_mean_the_opposite() -> None:
    text, role = TEXTS["dpa"]
    assert "helpfulness*97 + verbosity*-26" in Template(
        text=text, role=role, slots=("h", "w"), signs=(1.0, -1.0)
    ).render(from_angle(15))
    words = Template(text="{values}", role=role, slots=("steps", "length"), signs=(1.0, -1.0))
    assert words.render([0.6, 0.8]) == "as little length as possible and steps much"


@pytest.mark.parametrize("text", [DPA, RPS, VALUES, "{h}{w}{h}", "{values}, {values}", "no slot"])
def test_no_direction_s_text_is_longer_than_the_longest(text: str) -> None:
    names = ("h", "w") if "{h}" in text else ("nützliche Schritte", "length")
    template = Template(text=text, role="system", slots=names, signs=(1.0, -1.0), scale=1234.5, decimals=2)
    lengths = [len(template.render(from_angle(theta)).encode()) for theta in range(-180, 181, 5)]
    assert max(lengths) <= template.longest <= max(lengths) + 40


def test_values_in_words() -> None:
    assert describe_values({"kind words": 0.1, "useful steps": 0.98, "length": -0.2}) == (
        "useful steps above all, little length and kind words a little"
    )
    assert describe_values({"kind words": 0.6, "length": -0.8}) == "as little length as possible and kind words much"
    assert describe_values({"kind words": 1.0, "length": 0.05}) == "kind words above all"
