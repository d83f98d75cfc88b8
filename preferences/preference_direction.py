"""A person's wish as a direction in reward space: its neighbourhood, where it is obeyed, and the prompt that says it.

A direction is a unit vector v over d objectives. With two, theta is its angle from the first objective towards the
second: v = (cos theta, sin theta). DPA (arXiv 2402.18571) says v to a model trained to obey it; RPS (arXiv 2510.20498)
asks the neighbourhood {v' : angle(v, v') <= theta_max} too. Angles are in degrees. Shapes: d objectives, k directions.
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

SLACK = 1e-6
"""Degrees by which rounding may lead out of a cone."""
TRIES = 200_000
"""Draws for one direction inside of a cone, before it counts as unreachable."""
GRID = range(-40, 41, 5)
"""The published code's angles, whatever the target."""
STEP = 5
"""Between the angles of a grid around the target."""


def unit(weights: Sequence[float]) -> Vector:
    """[d] of length 1; raises ValueError for a wish of no length."""
    v = np.asarray(weights, dtype=np.float64)
    v = v / max(float(np.abs(v).max(initial=0)), np.finfo(float).tiny)  # so that no square overflows or vanishes
    length = float(np.linalg.norm(v))
    if not length:
        raise ValueError("a direction of length 0 says nothing")
    return np.asarray(v / length)


def angled(theta: float) -> Vector:
    """[2] the direction at an angle from the first objective."""
    return np.array([math.cos(math.radians(theta)), math.sin(math.radians(theta))])


def theta(v: Sequence[float] | Vector) -> float:
    """The angle of a direction over two objectives from the first, in (-180, 180]."""
    return math.degrees(math.atan2(v[1], v[0]))


def between(u: Sequence[float] | Vector, v: Sequence[float] | Vector) -> float:
    """The angle of two unit vectors."""
    a, b = np.asarray(u), np.asarray(v)
    return math.degrees(2 * math.atan2(float(np.linalg.norm(a - b)), float(np.linalg.norm(a + b))))


@dataclass(frozen=True, kw_only=True)
class Cone:
    """The directions within an angle of an axis, all objectives being wished for or not."""

    axis: tuple[float, ...]
    """[d], of length 1."""
    degrees: float = 180.0
    nonnegative: bool = False
    """Whether no objective may be wished away."""

    def holds(self, v: Sequence[float] | Vector) -> bool:
        rounding = math.radians(SLACK)
        wished = not self.nonnegative or min(v) >= -rounding
        return wished and between(self.axis, v) <= self.degrees + SLACK

    def clipped(self, angle: float) -> float:
        """The angle of two objectives nearest to this one that lies inside."""
        middle = theta(self.axis)
        aside = (angle - middle + 180.0) % 360.0 - 180.0
        inside = (middle + min(max(aside, -self.degrees), self.degrees) + 180.0) % 360.0 - 180.0
        return min(max(inside, 0.0), 90.0) if self.nonnegative else inside

    def described(self, objectives: Sequence[str]) -> str:
        axis = ", ".join(f"{name}: {share:g}" for name, share in zip(objectives, self.axis, strict=True) if share)
        limits = [f"at most {self.degrees:g} degrees from {{{axis}}}"] if self.degrees < 180 else []
        return " and ".join(limits + ["without negative weights"] * self.nonnegative) or "any"


@dataclass(frozen=True, kw_only=True)
class Template:
    """The text that says a direction to a model."""

    text: str
    """Its slots are `{name}`, or one `{values}` that describes them all in words."""
    role: Role
    """Whose message it is: a system message, or before the user's own words with a blank line between."""
    slots: tuple[str, ...]
    """[d]; under `{values}` what each objective is called there."""
    signs: tuple[float, ...]
    """[d] -1 where a slot means the opposite of its objective, as verbosity is of brevity."""
    scale: float = 100.0
    """What a slot shows of a share of 1."""
    decimals: int = 0

    def said(self, v: Sequence[float] | Vector) -> str:
        """The text for a direction."""
        shares = [sign * float(share) for sign, share in zip(self.signs, v, strict=True)]
        if "{values}" in self.text:
            return self.text.replace("{values}", valued(dict(zip(self.slots, shares, strict=True))))
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
"""The published ones, and one in words in the manner of Janus (arXiv 2405.17977), whose wording is ours."""
PUBLISHED_DEGREES = 45.0
"""DPA's models were trained within this of pure helpfulness."""


def valued(shares: Mapping[str, float]) -> str:
    """ "useful steps above all, kind words a little, and little length": what weighs under a tenth is left out."""
    found = []
    for name, share in sorted(shares.items(), key=lambda item: -abs(item[1])):
        if share >= 0.1:
            found.append(f"{name} {'above all' if share >= 0.75 else 'much' if share >= 0.4 else 'a little'}")
        elif share <= -0.4:
            found.append(f"as little {name} as possible")
        elif share <= -0.1:
            found.append(f"little {name}")
    return " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A direction, and what can carry it out."""

    objectives: tuple[str, ...]
    """[d]"""
    v: tuple[float, ...]
    """[d], of length 1."""
    cone: Cone
    template: Template | None = None
    """None: nothing reads directions."""
    reader: str = BASE
    """The member that reads the template."""
    guides: Mapping[str, Mixture] | None = None
    """objective -> the guide that pulls towards it, with its exponent at a share of 1"""

    @property
    def reads(self) -> Mixture:
        """The mixture that answers the template."""
        return {BASE: 1.0} if self.reader == BASE else {BASE: 0.0, self.reader: 1.0}

    def named(self, v: Sequence[float] | Vector) -> dict[str, float]:
        return {name: float(share) for name, share in zip(self.objectives, v, strict=True)}


def neighbours(wish: Wish, k: int, theta_max: float, rng: np.random.Generator, *, mode: str = "sample") -> list[Vector]:
    """[k] directions within `theta_max` of the wish and inside of its cone; raises ValueError where there are none.

    `sample`: uniform on the spherical cap; with two objectives what leaves the cone is put on its edge, with more it is
    drawn again. With two objectives only: `grid_relative`, the k nearest of the target and angles STEP apart from it,
    and `grid_reference`, the k nearest of GRID, which is what the published code does: the target itself need not be
    among them, and beyond 30 degrees they all lie to one side of it.
    """
    if mode == "sample":
        return [_drawn(wish, theta_max, rng) for _ in range(k)]
    if len(wish.v) != 2:
        raise ValueError(f"params.mode {mode!r} is for two objectives; this direction has {len(wish.v)}: use 'sample'")
    target = theta(wish.v)
    reach = int((theta_max + SLACK) // STEP)
    angles = (
        [target + STEP * i for i in range(-reach, reach + 1)] if mode == "grid_relative" else [float(a) for a in GRID]
    )
    near = [a for a in angles if abs(a - target) <= theta_max + SLACK and wish.cone.holds(angled(a))]
    if len(near) < k:
        raise ValueError(
            f"params.k must be at most {len(near)}, the grid's directions within params.theta_max; got {k}"
        )
    return [angled(a) for a in sorted(sorted(near, key=lambda a: round(abs(a - target), 6))[:k])]


def _drawn(wish: Wish, theta_max: float, rng: np.random.Generator) -> Vector:
    if len(wish.v) == 2:
        angle = theta(wish.v)
        return angled(wish.cone.clipped(angle + rng.uniform(-theta_max, theta_max))) if theta_max else np.array(wish.v)
    for _ in range(TRIES):
        v = on_cap(np.array(wish.v), theta_max, rng)
        if wish.cone.holds(v):
            return v
    raise ValueError(f"hardly any direction within params.theta_max={theta_max:g} is valid; it must be smaller")


def on_cap(v: Vector, theta_max: float, rng: np.random.Generator) -> Vector:
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
