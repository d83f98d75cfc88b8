"""A preference as a direction in reward space: its neighbours, the cone it must lie in, and the prompt that states it.

A direction is a unit vector v over d objectives. With two, theta is its angle from the first objective towards the
second: v = (cos theta, sin theta). DPA (arXiv 2402.18571) states v in the prompt of a model trained to follow it; RPS
(arXiv 2510.20498) also uses the neighbours {v' : angle(v, v') <= theta_max}. Angles are in degrees. Shapes:
d objectives, k directions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trimtab.decoders.protocols import BASE, Mixture

Vector = NDArray[np.float64]
Role = Literal["system", "user"]

Prompt = Annotated[
    str | None, Field(description="which of the server's preference prompts says the direction; none is the first")
]

TOLERANCE = 1e-6
"""Degrees by which rounding may put a direction outside its cone."""
TRIES = 200_000
"""Draws for one direction inside a cone before it counts as unreachable."""
GRID = range(-40, 41, 5)
"""The angles of the published code, the same for every target."""
STEP = 5
"""Degrees between the angles of a grid around the target."""


def unit_vector(weights: Sequence[float]) -> Vector:
    """[d] of length 1; raises ValueError for weights that are all 0."""
    v = np.asarray(weights, dtype=np.float64)
    v = v / max(float(np.abs(v).max(initial=0)), np.finfo(float).tiny)  # so that no square overflows or vanishes
    length = float(np.linalg.norm(v))
    if not length:
        raise ValueError("a direction of length 0 says nothing")
    return np.asarray(v / length)


def from_angle(theta: float) -> Vector:
    """[2] the direction at an angle from the first objective."""
    return np.array([math.cos(math.radians(theta)), math.sin(math.radians(theta))])


def angle_of(v: Sequence[float] | Vector) -> float:
    """The angle of a direction over two objectives from the first, in (-180, 180]."""
    return math.degrees(math.atan2(v[1], v[0]))


def angle_between(u: Sequence[float] | Vector, v: Sequence[float] | Vector) -> float:
    """Of two unit vectors."""
    a, b = np.asarray(u), np.asarray(v)
    return math.degrees(2 * math.atan2(float(np.linalg.norm(a - b)), float(np.linalg.norm(a + b))))


@dataclass(frozen=True, kw_only=True)
class Cone:
    """The directions within an angle of an axis, optionally those without negative components alone."""

    axis: tuple[float, ...]
    """[d], of length 1."""
    degrees: float = 180.0
    nonnegative: bool = False
    """Whether every component must be at least 0."""

    def contains(self, v: Sequence[float] | Vector) -> bool:
        if self.nonnegative and min(v) < -math.radians(TOLERANCE):
            return False
        return angle_between(self.axis, v) <= self.degrees + TOLERANCE

    def clip(self, angle: float) -> float:
        """The nearest angle inside the cone, over two objectives."""
        middle = angle_of(self.axis)
        aside = (angle - middle + 180.0) % 360.0 - 180.0
        inside = (middle + min(max(aside, -self.degrees), self.degrees) + 180.0) % 360.0 - 180.0
        return min(max(inside, 0.0), 90.0) if self.nonnegative else inside

    def describe(self, objectives: Sequence[str]) -> str:
        axis = ", ".join(f"{name}: {share:g}" for name, share in zip(objectives, self.axis, strict=True) if share)
        limits = [f"at most {self.degrees:g} degrees from {{{axis}}}"] if self.degrees < 180 else []
        return " and ".join(limits + ["without negative weights"] * self.nonnegative) or "any"


@dataclass(frozen=True, kw_only=True)
class Template:
    """The text that states a direction in a prompt."""

    text: str
    """With slots `{name}`, or with one `{values}` that describes all of them in words."""
    role: Role
    """system: a message of its own; user: before the user's text, with a blank line between."""
    slots: tuple[str, ...]
    """[d]; with `{values}`, the name of each objective in the text."""
    signs: tuple[float, ...]
    """[d] -1 where a slot means the opposite of its objective, as verbosity is of brevity."""
    scale: float = 100.0
    """The number that a slot shows for a component of 1."""
    decimals: int = 0

    @property
    def longest(self) -> int:
        """Bytes of the text for any direction, at most."""
        figure = len(f"{-self.scale:.{self.decimals}f}")
        words = sum(len(f"as little {slot} as possible and ".encode()) for slot in self.slots)
        slots = sum(self.text.count(f"{{{slot}}}") for slot in self.slots)
        return len(self.text.encode()) + words * self.text.count("{values}") + figure * slots

    def render(self, v: Sequence[float] | Vector) -> str:
        """The text for a direction."""
        shares = [sign * float(share) for sign, share in zip(self.signs, v, strict=True)]
        if "{values}" in self.text:
            return self.text.replace("{values}", describe_values(dict(zip(self.slots, shares, strict=True))))
        text = self.text
        for slot, share in zip(self.slots, shares, strict=True):
            shown = round(self.scale * share, self.decimals) + 0.0
            text = text.replace(f"{{{slot}}}", f"{shown:.{self.decimals}f}")
        return text


DPA = (
    "You are a helpful, respectful, and honest assistant who always responds to the user in a harmless way. "
    "Your response should maximize weighted rating = helpfulness*{h} + verbosity*{w}"
)
RPS = "You are a helpful assistant. Your response should maximize weighted rating = helpfulness*{h} + verbosity*{w}."
VALUES = "You are an assistant to a person who values {values}."
TEXTS: dict[str, tuple[str, Role]] = {"dpa": (DPA, "system"), "rps": (RPS, "user"), "values": (VALUES, "system")}
"""Two published texts, and one in words after Janus (arXiv 2405.17977); its wording is ours."""
PUBLISHED_DEGREES = 45.0
"""DPA's models were trained on directions within this of pure helpfulness."""


def describe_values(shares: Mapping[str, float]) -> str:
    """ "useful steps above all, kind words a little, and little length"; shares below a tenth are left out."""
    phrases = []
    for name, share in sorted(shares.items(), key=lambda item: -abs(item[1])):
        if share >= 0.1:
            phrases.append(f"{name} {'above all' if share >= 0.75 else 'much' if share >= 0.4 else 'a little'}")
        elif share <= -0.4:
            phrases.append(f"as little {name} as possible")
        elif share <= -0.1:
            phrases.append(f"little {name}")
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)


@dataclass(frozen=True, kw_only=True)
class PreferenceDirection:
    """A direction, and what can steer towards it: a template and its reader, or guides."""

    objectives: tuple[str, ...]
    """[d]"""
    v: tuple[float, ...]
    """[d], of length 1."""
    cone: Cone
    template: Template | None = None
    """None: no prompt states the direction."""
    reader: str = BASE
    """The member that reads the template."""
    guides: Mapping[str, Mixture] | None = None
    """objective -> the guide that pulls towards it, with its exponent at a share of 1"""

    @property
    def reader_mixture(self) -> Mixture:
        """The mixture that answers a prompt with the template in it."""
        return {BASE: 1.0} if self.reader == BASE else {BASE: 0.0, self.reader: 1.0}

    def by_objective(self, v: Sequence[float] | Vector) -> dict[str, float]:
        return {name: float(share) for name, share in zip(self.objectives, v, strict=True)}


def choose_neighbours(
    direction: PreferenceDirection, k: int, theta_max: float, rng: np.random.Generator, *, mode: str = "sample"
) -> list[Vector]:
    """[k] directions within `theta_max` of a direction and inside its cone; raises ValueError where there are fewer.

    `sample`: uniform on the spherical cap. A draw outside the cone is moved to its edge where there are two objectives,
    and drawn again where there are more. Two modes are for two objectives only. `grid_relative`: the k nearest of a
    grid of step STEP around the target. `grid_reference`: the k nearest of GRID, as the published code has it; the
    target need not be among them, and beyond 30 degrees they all lie on one side of it.
    """
    if mode == "sample":
        return [_draw_neighbour(direction, theta_max, rng) for _ in range(k)]
    if len(v := direction.v) != 2:
        raise ValueError(f"params.mode {mode!r} is for two objectives; this direction has {len(v)}: use 'sample'")
    target = angle_of(v)
    reach = int((theta_max + TOLERANCE) // STEP)
    angles = (
        [target + STEP * i for i in range(-reach, reach + 1)] if mode == "grid_relative" else [float(a) for a in GRID]
    )
    near = [a for a in angles if abs(a - target) <= theta_max + TOLERANCE and direction.cone.contains(from_angle(a))]
    if len(near) < k:
        raise ValueError(
            f"params.k must be at most {len(near)}, the grid's directions within params.theta_max; got {k}"
        )
    return [from_angle(a) for a in sorted(sorted(near, key=lambda a: round(abs(a - target), 6))[:k])]


def _draw_neighbour(direction: PreferenceDirection, theta_max: float, rng: np.random.Generator) -> Vector:
    target, cone = np.array(direction.v), direction.cone
    if len(target) == 2:
        if not theta_max:
            return target
        return from_angle(cone.clip(angle_of(target) + rng.uniform(-theta_max, theta_max)))
    for _ in range(TRIES):
        v = draw_on_cap(target, theta_max, rng)
        if cone.contains(v):
            return v
    raise ValueError(f"hardly any direction within params.theta_max={theta_max:g} is valid; it must be smaller")


def draw_on_cap(v: Vector, theta_max: float, rng: np.random.Generator) -> Vector:
    """A unit vector uniform on the spherical cap of directions within `theta_max` of v.

    cos(phi) v + sin(phi) u, with u uniform among the unit vectors orthogonal to v, and the density of phi proportional
    to sin^(d-2) phi on [0, theta_max]: phi^(d-2) is drawn, and accepted with probability (sin(phi) / phi)^(d-2).
    """
    d, most = len(v), math.radians(theta_max)
    if d == 1 or not most:
        return v
    while True:
        phi = most * rng.random() ** (1 / (d - 1))
        if rng.random() <= float(np.sinc(phi / math.pi)) ** (d - 2):
            break
    u = rng.standard_normal(d)
    u -= (u @ v) * v
    return np.asarray(math.cos(phi) * v + math.sin(phi) * u / np.linalg.norm(u))
