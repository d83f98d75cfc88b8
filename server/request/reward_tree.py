"""What a request's answers are scored by: a tree of rewards, combined and transformed, and its arithmetic.

Written as a reward's name, `name.label` for one of several scores, an objective's name, or

    {"of": …, "combine": …, "transform": …}

with `of` one such thing, a list of them, or an object from name to weight. Shapes: N answers, M reference answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from trimtab.rewards import COMBINES, TRANSFORMS, RewardEntry
from trimtab.rewards.combine import Combine, Weighted
from trimtab.rewards.protocols import RewardError
from trimtab.rewards.transforms import LARGEST, Standardise, Transform
from trimtab.server.config import Config
from trimtab.server.errors import ApiError
from trimtab.server.wording import quote, suggest

MAX_DEPTH, MAX_REWARDS = 4, 32
"""Levels of a tree, and rewards in it."""

MAX_SHOWN = 200
"""Characters of a tree's name in a message."""

Rows = Mapping[str, Sequence[float]]
"""a leaf's name -> one score per answer"""


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One score of one reward."""

    reward: str
    label: str | None = None

    @property
    def name(self) -> str:
        return self.reward if self.label is None else f"{self.reward}.{self.label}"

    @property
    def leaves(self) -> Iterator[Leaf]:
        yield self

    @property
    def references(self) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class Node:
    """transform(combine(of))"""

    of: tuple[Spec, ...]
    name: str
    combine: Combine = field(default_factory=Weighted)
    transform: Transform | None = None

    @property
    def leaves(self) -> Iterator[Leaf]:
        for spec in self.of:
            yield from spec.leaves

    @property
    def references(self) -> int:
        """How many reference answers a transform asks for."""
        return max(self.transform.n_references if self.transform else 0, *(spec.references for spec in self.of))


Spec = Leaf | Node


class Score(float):
    """An answer's value, which carries what it came from wherever a strategy takes it."""

    __slots__ = ("explanation",)
    explanation: dict[str, Any]
    """{"value", "rewards", "transformed"}"""

    def __new__(cls, value: float, explanation: dict[str, Any]) -> Score:
        score = super().__new__(cls, value)
        score.explanation = explanation
        return score


def explain(value: object) -> dict[str, Any]:
    """What a value that a strategy reports came from; empty where it is no score of a request's reward."""
    return value.explanation if isinstance(value, Score) else {}


@dataclass(kw_only=True)
class ScoreSpread:
    """Whether a reward tells the answers to one prompt apart."""

    texts: set[int] = field(default_factory=set)
    """Hashes of those read, as long as all had one score."""
    score: float | None = None
    differs: bool = False

    def add(self, text: str, score: float) -> None:
        if self.differs:
            return
        self.differs = self.score is not None and score != self.score
        self.score = score
        if self.differs:
            self.texts.clear()
        else:
            self.texts.add(hash(text))

    def warn(self, name: str) -> str | None:
        """What to tell a client of a reward that gave different answers the same score."""
        if self.differs or len(self.texts) < 2:
            return None
        return f"reward {name!r} gave all {len(self.texts)} answers that it read the same score, {self.score:g}"


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Of N answers: their values, and by name what they came from."""

    values: list[float]
    raw: dict[str, list[float]]
    transformed: dict[str, list[float]]

    def explain(self, i: int) -> dict[str, Any]:
        """Of the i-th answer."""
        explanation: dict[str, Any] = {"value": self.values[i]}
        explanation["rewards"] = {name: scores[i] for name, scores in self.raw.items()}
        if self.transformed:
            explanation["transformed"] = {name: scores[i] for name, scores in self.transformed.items()}
        return explanation


def evaluate(spec: Spec, rows: Rows, references: Rows) -> Breakdown:
    """The tree's arithmetic over the [N] scores of each leaf, and over the [M] of reference answers.

    Raises RewardError where finite scores become infinite: parameters are bounded, so the scores were too large.
    """
    raw: dict[str, list[float]] = {}
    transformed: dict[str, list[float]] = {}

    def evaluate_node(spec: Spec) -> tuple[list[float], list[float]]:
        if isinstance(spec, Leaf):
            raw[spec.name] = [float(score) for score in rows[spec.name]]
            return raw[spec.name], [float(score) for score in references.get(spec.name, ())]
        parts = [evaluate_node(child) for child in spec.of]
        values, reference_values = (_combine(spec, columns) for columns in zip(*parts, strict=True))
        if spec.transform is not None:
            if len(spec.of) == 1 and isinstance(spec.of[0], Leaf):
                del raw[spec.of[0].name]  # shown under this node's name
            raw[spec.name] = values
            compared = reference_values[: spec.transform.n_references]
            values = _transform_scores(spec, values, compared)
            reference_values = _transform_scores(spec, reference_values, compared)
            transformed[spec.name] = values
        return values, reference_values

    values, _ = evaluate_node(spec)
    return Breakdown(values=values, raw=raw, transformed=transformed)


def _combine(node: Node, columns: Sequence[Sequence[float]]) -> list[float]:
    """[N] one value of each row."""
    with _finite_scores(node):
        return _check_finite([value for [value] in node.combine(list(zip(*columns, strict=True)))])


def _transform_scores(node: Node, scores: Sequence[float], references: Sequence[float]) -> list[float]:
    """[N]"""
    assert node.transform is not None
    with _finite_scores(node):
        return _check_finite(node.transform(scores, references)) if scores else []


def _check_finite(values: list[float]) -> list[float]:
    if not all(map(math.isfinite, values)):
        raise OverflowError
    return values


@contextmanager
def _finite_scores(node: Node) -> Iterator[None]:
    """Raises RewardError where a node's arithmetic leaves the numbers."""
    try:
        yield
    except OverflowError:
        rewards = ", ".join(dict.fromkeys(repr(leaf.name) for leaf in node.leaves))
        raise RewardError(
            f"{node.name[:MAX_SHOWN]} is no finite number: {rewards} gave scores too large for it"
        ) from None


def weigh_objectives(weights: Mapping[str, float], config: Config) -> Spec:
    """sum_i w_i (r_i - mean_i) / spread_i over objectives, so that equal weights pull equally."""
    return Node(
        of=tuple(standardise_objective(name, config) for name in weights),
        name="weighted",
        combine=Weighted(weights=tuple(weights.values())),
    )


def standardise_objective(objective: str, config: Config) -> Spec:
    """An objective's reward in spreads of the base's own answers."""
    o = config.objectives[objective]
    spec = parse_spec(o.reward, config, at=f"objectives.{objective}.reward", objectives=False)
    return Node(of=(spec,), name=objective, transform=Standardise(mean=o.mean, std=o.spread))


def parse_spec(raw: object, config: Config, *, at: str, objectives: bool = True) -> Spec:
    """The tree that a request or the config writes; raises ApiError naming the key."""
    spec = _parse_node(raw, config, at, objectives, depth=1)
    if len(list(spec.leaves)) > MAX_REWARDS:
        raise ApiError(f"{at} names more than {MAX_REWARDS} rewards", param=at)
    return spec


def _parse_node(raw: object, config: Config, at: str, objectives: bool, depth: int) -> Spec:
    if isinstance(raw, str):
        return _parse_name(raw, config, at, objectives)
    if not isinstance(raw, Mapping):
        raise ApiError(f"{at} must be a reward's name or an object with the key `of`; got {quote(raw)}", param=at)
    if depth > MAX_DEPTH:
        raise ApiError(f"{at} is nested more than {MAX_DEPTH} levels deep", param=at)
    keys = ("of", "combine", "transform")
    if surplus := next((key for key in raw if key not in keys), None):
        raise ApiError(suggest("key", str(surplus), keys), param=f"{at}.{str(surplus)[:64]}", code="unknown_parameter")
    if not raw.get("of"):
        raise ApiError(f"{at}.of is required: one or more rewards", param=f"{at}.of", code="missing_required_parameter")
    inner, weights = raw["of"], None
    if isinstance(inner, Mapping) and not set(inner) & set(keys):
        weights = [_weight(w, f"{at}.of.{name}") for name, w in inner.items()]
        inner = list(inner)
    if not isinstance(inner, list):
        inner = [inner]
    if len(inner) > MAX_REWARDS:
        raise ApiError(f"{at}.of names more than {MAX_REWARDS} rewards", param=f"{at}.of")
    of = tuple(_parse_node(child, config, f"{at}.of", objectives, depth + 1) for child in inner)
    how = raw.get("combine", "weighted")
    if weights is not None and "combine" in raw:
        raise ApiError(
            f"{at}.of has weights, which no other combination has: leave `combine` out", param=f"{at}.combine"
        )
    combine: Combine = Weighted(weights=weights)
    if "combine" in raw:
        combine = _combination(how, f"{at}.combine", len(of))
    transform = None
    if "transform" in raw:
        transform = _transform(raw["transform"], f"{at}.transform")
    names = ", ".join(spec.name for spec in of)
    joined = names if len(of) == 1 else f"{how if isinstance(how, str) else next(iter(how))}({names})"
    changed = raw.get("transform")
    named = joined if changed is None else f"{changed if isinstance(changed, str) else next(iter(changed))}({joined})"
    return Node(of=of, name=named, combine=combine, transform=transform)


def _parse_name(name: str, config: Config, at: str, objectives: bool) -> Spec:
    if name in config.rewards:
        return Leaf(reward=name)
    reward, _, label = name.rpartition(".")
    if reward in config.rewards:
        return Leaf(reward=reward, label=label)
    scored = [o for o, objective in config.objectives.items() if objective.reward is not None] if objectives else []
    if name in scored:
        return standardise_objective(name, config)
    raise ApiError(suggest("reward", name, [*config.rewards, *scored]), param=at)


def _weight(value: object, at: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise ApiError(f"{at} must be a number within ±{LARGEST:g}; got {quote(value)}", param=at)
    return float(value)


def _combination(raw: object, at: str, count: int) -> Combine:
    name, combine = _build_entry(raw, COMBINES, "combination", at)
    if combine.in_pool:
        message = f"combination {name!r} compares the candidates of a pool, and answers are scored as they come"
        raise ApiError(message, param=at, code="unsupported_pair")
    try:
        combine([[0.0] * count])
    except ValueError as error:
        raise ApiError(f"{at}.{name}: {error}", param=f"{at}.{name}") from None
    return combine  # type: ignore[no-any-return]


def _transform(raw: object, at: str) -> Transform:
    _, transform = _build_entry(raw, TRANSFORMS, "transform", at)
    return transform  # type: ignore[no-any-return]


def _build_entry(raw: object, table: Mapping[str, RewardEntry], kind: str, at: str) -> tuple[str, Any]:
    """ "name" or {"name": {parameter: value}}, and what it names."""
    name: Any = raw
    params: Any = {}
    if isinstance(raw, Mapping) and len(raw) == 1:
        [(name, params)] = raw.items()
    if not isinstance(name, str) or name not in table:
        raise ApiError(suggest(kind, name if isinstance(name, str) else quote(raw), table), param=at)
    if not isinstance(params, Mapping):
        raise ApiError(f"{at}.{name} must be an object of parameters; got {quote(params)}", param=f"{at}.{name}")
    try:
        return name, table[name].build(params)
    except ValueError as error:
        raise ApiError(f"{at}.{name}: {error}", param=f"{at}.{name}") from None
