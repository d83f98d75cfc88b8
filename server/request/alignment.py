"""The request field `alignment`: what a client may ask, checked against what this server has, made into a strategy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trimtab.decoders import STRATEGIES, Entry
from trimtab.decoders.protocols import BASE, Strategy
from trimtab.server.config import Config, ConfigError
from trimtab.server.errors import ApiError, explained, shown, unknown
from trimtab.server.request.parameters import MADE_HERE, check_rewards, parameters
from trimtab.server.request.preference_prompts import checked, wish
from trimtab.server.request.reward_tree import Spec, parsed, standard, weighted
from trimtab.server.request.weights import By, number, orchestrator, preferences, pulls

AT = "alignment"
SECOND = ("baseline_reward", "prefix_reward")
"""Parameters that name a second reward, as `reward` names the first."""


class Budget(BaseModel):
    """What a request may spend at the most; what is in hand when it is spent is the answer."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    max_sampled_tokens: int = Field(default=0, ge=1, le=10**8)
    deadline_ms: int = Field(default=0, ge=1, le=3_600_000)


class Given(BaseModel):
    """What answers are compared with, for rewards that compare."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    references: list[str] = Field(default=[], min_length=1, max_length=64)
    answer: str = Field(default="", min_length=1)


class AlignmentRequest(BaseModel):
    """As a client sends it; names and numbers are checked against the server afterwards. No key may be null."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    strategy: str = ""
    weights: dict[str, Any] | Literal["auto"] = {}
    guides: dict[str, Any] = {}
    params: dict[str, Any] = {}
    reward: Any = None
    given: Given = Given()
    budget: Budget = Budget()
    include: list[str] = Field(default=[], alias="return")
    on_error: Literal["fail", "degrade"] = "fail"

    @classmethod
    def parse(cls, raw: object) -> AlignmentRequest:
        """Raises ApiError naming the key."""
        fields = [field.alias or name for name, field in cls.model_fields.items()]
        if not isinstance(raw, Mapping):
            raise ApiError(f"{AT} must be an object with keys among {', '.join(fields)}; got {shown(raw)}", param=AT)
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            inside: dict[str, type[BaseModel]] = {"budget": Budget, "given": Given}
            within = inside.get(str(error.errors()[0]["loc"][0]))
            raise explained(error, at=AT, fields=within.model_fields if within else fields) from None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request understood: what will run, and what to say of it."""

    name: str
    entry: Entry
    strategy: Strategy
    params: Mapping[str, Any]
    """The strategy's parameters as a client would write them, defaults included."""
    weights: Mapping[str, float]
    guides: Mapping[str, float]
    """Exponent per guide as the strategy got it."""
    auto: bool = False
    """Whether the server chose the weights."""
    include: frozenset[str]
    objective: Spec | None = None
    """What the reward is made of; None where the strategy wants none."""
    others: Mapping[str, Spec] = field(default_factory=dict)
    """Where more rewards are asked for, and what they are made of: a parameter of `SECOND`, or each objective of a
    direction. The strategy gets their scores in columns behind the first."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """What rewards compare with."""
    max_sampled_tokens: int | None = None
    deadline_ms: int | None = None
    degrade: bool = False
    """Whether a reward that fails is answered plainly."""

    @property
    def is_plain(self) -> bool:
        return self.name == "plain"

    @property
    def bounded(self) -> bool:
        return self.max_sampled_tokens is not None or self.deadline_ms is not None

    def described(self) -> dict[str, Any]:
        told: dict[str, Any] = {"strategy": self.name}
        if self.weights:
            told["weights"] = dict(self.weights)
        if self.params:
            told["params"] = dict(self.params)
        if self.auto:
            told["auto_weights"] = True
        if self.guides:
            told["guides"] = dict(self.guides)
        if not self.is_plain:
            told["streaming"] = "native" if self.entry.streams else "buffered"
        return told


def check(config: Config) -> None:
    """Raises ConfigError for a reward, an objective, a preset or a default that no request could be answered with, and
    for keys that cannot be read."""
    _ = config.keys
    check_rewards(config)
    checked(config)
    orchestrator(config)
    for name, objective in config.objectives.items():
        if objective.reward is not None:
            try:
                parsed(objective.reward, config, at=f"objectives.{name}.reward", objectives=False)
            except ApiError as error:
                raise ConfigError(error.message.removeprefix(f"{error.param}: "), key=error.param or "") from None
    asked = {"default_strategy": {}, **{f"presets.{name}": preset for name, preset in config.presets.items()}}
    for key, raw in asked.items():
        try:
            plan(raw, config)
        except ApiError as error:
            raise ConfigError(error.message, key=key) from None


def plan(raw: object, config: Config, auto: Callable[[], Mapping[str, float]] | None = None) -> Plan:
    """The plan for a request's `alignment`; raises ApiError naming the key, the value and what is valid.

    `auto` gives the weights of a request that leaves them to the server, where that is known.
    """
    asked = AlignmentRequest.parse(raw)
    given = asked.model_fields_set
    wanted = asked.weights if isinstance(asked.weights, dict) else _chosen(config, auto)
    name = config.default_strategy
    if "strategy" in given:
        name = asked.strategy
    elif given & {"weights", "guides"} and not _rewarded(wanted, config):
        name = "guided"
    if name not in STRATEGIES:
        raise ApiError(unknown("strategy", name, STRATEGIES.keys()), param=f"{AT}.strategy")
    entry = STRATEGIES[name]
    _honoured(given, name, entry)
    searches = "reward" in entry.takes
    directed = "direction" in entry.takes
    by: By = "direction" if directed else "reward" if searches else "guide"
    weights = preferences(wanted, config, at=f"{AT}.weights", by=by) if "weights" in given else {}
    exponents = _exponents(asked.guides, config)
    for key in asked.include:
        if key not in entry.shows:
            raise ApiError(f"strategy {name!r}: {unknown('return', key, entry.shows)}", param=f"{AT}.return")

    if "guides" in asked.params:
        message = f"write {AT}.guides, beside params"
        raise ApiError(message, param=f"{AT}.params.guides", code="unknown_parameter")
    filled: dict[str, Any] = {}
    if entry.takes:
        filled["guides"] = exponents if searches or directed else pulls(weights, config) | exponents
    if directed:
        wished = wish(weights, asked.params, config, at=f"{AT}.weights")
        filled["wish"], weights = wished, wished.named(wished.v)
    strategy, params = _build(name, asked.params, filled)
    mixture = dict(getattr(strategy, "mixture", {BASE: 1.0, **exponents} if exponents else {}))
    _bounded(mixture, config, param=f"{AT}.params" if asked.params else f"{AT}.weights")
    _bounded(getattr(strategy, "baseline", {}), config, param=f"{AT}.params.baseline")
    _bounded(getattr(strategy, "farthest", {}), config, param=f"{AT}.params.alpha")
    _small(strategy, config)
    lacking = [o for o in weights if searches and config.objectives[o].reward is None]
    if lacking:
        raise ApiError(f"objective {lacking[0]!r} has no reward on this server", param=f"{AT}.weights")
    objective = None
    if searches and given & {"weights", "reward"}:
        objective = parsed(asked.reward, config, at=f"{AT}.reward") if "reward" in given else weighted(weights, config)
    others = {
        f"params.{key}": parsed(raw, config, at=f"{AT}.params.{key}")
        for key in SECOND
        if (raw := getattr(strategy, key, None)) is not None
    }
    if searches and directed:
        others = {f"weights.{o}": standard(o, config) for o in weights}
    return Plan(
        name=name,
        entry=entry,
        strategy=strategy,
        params=params,
        weights=weights,
        guides=mixture,
        include=frozenset(asked.include),
        objective=objective,
        others=others,
        auto=asked.weights == "auto",
        given=asked.given.model_dump(exclude_unset=True),
        max_sampled_tokens=asked.budget.max_sampled_tokens or None,
        deadline_ms=_deadline(asked.budget, config.limits.max_deadline_ms),
        degrade=asked.on_error == "degrade",
    )


def _deadline(budget: Budget, most: int | None) -> int | None:
    asked = budget.deadline_ms or None
    if asked is not None and most is not None and asked > most:
        at = f"{AT}.budget.deadline_ms"
        raise ApiError(f"{at} must be at most {most} on this server; got {asked}", param=at, code="out_of_range")
    return asked or most


def _chosen(config: Config, auto: Callable[[], Mapping[str, float]] | None) -> dict[str, float]:
    """The weights of a request that leaves them to the server."""
    adapter = orchestrator(config)
    if adapter is None:
        raise ApiError("this server has no auto_weights: name objectives", param=f"{AT}.weights")
    return dict(auto() if auto is not None else adapter([]))


def _rewarded(weights: Mapping[str, Any], config: Config) -> bool:
    """Whether a request without a strategy can be meant for the server's default one, a search."""
    guided = all(config.objectives[name].guide for name in weights if name in config.objectives)
    return "reward" in STRATEGIES[config.default_strategy].takes and not guided


def _honoured(given: set[str], name: str, entry: Entry) -> None:
    """Raises ApiError for a field that the strategy could not carry out, or one that it lacks."""
    honours = entry.takes | ({"weights"} if "direction" in entry.takes else set())
    honours |= {"weights", "given"} if "reward" in entry.takes else set()
    for key in ("weights", "guides", "reward", "given"):
        if key in given and key not in honours:
            message = f"{AT}.{key} cannot be honoured by strategy {name!r}"
            raise ApiError(message, param=f"{AT}.{key}", code="unsupported_pair")
    if "direction" in entry.takes and "reward" in given:
        message = f"strategy {name!r} chooses by {AT}.weights, so {AT}.reward cannot be honoured"
        raise ApiError(message, param=f"{AT}.reward", code="unsupported_pair")
    if {"weights", "reward"} <= given:
        message = f"{AT}.weights and {AT}.reward are two ways to say what is wanted: give one"
        raise ApiError(message, param=f"{AT}.reward", code="unsupported_pair")
    if not entry.takes or entry.reward_optional:
        return
    needed: Set[str] = {"weights", "reward"} if "reward" in entry.takes else entry.takes
    needed = {"weights"} if "direction" in entry.takes else needed
    if not given & needed:
        wanted = " or ".join(f"{AT}.{key}" for key in sorted(needed))
        raise ApiError(f"strategy {name!r} needs {wanted}", param=AT, code="missing_required_parameter")


def _small(strategy: Strategy, config: Config) -> None:
    at_once = {"n": "n", "chains": "chains", "rollouts": "k * rollouts", "m": "k * m"}
    for key, written in at_once.items():
        count = getattr(strategy, key, 1) * (getattr(strategy, "k", 1) if written.startswith("k") else 1)
        if count > config.max_candidates:
            message = f"{AT}.params.{written} must be at most {config.max_candidates} on this server"
            raise ApiError(f"{message}; got {count}", param=f"{AT}.params.{key}", code="out_of_range")
    most = config.engine.get("max_logprobs", 20)  # of which vLLM shows no more; 20 is its default, -1 all
    if not hasattr(strategy, "wish") and (k := getattr(strategy, "k", 1)) > most >= 0:
        message = f"{AT}.params.k must be at most engine.max_logprobs, {most} on this server; got {k}"
        raise ApiError(message, param=f"{AT}.params.k", code="out_of_range")
    draws = getattr(strategy, "draws", 1)
    if draws > config.max_draws:
        message = f"{AT}.params: chains * (steps + 1) must be at most {config.max_draws} on this server"
        raise ApiError(f"{message}; got {draws}", param=f"{AT}.params.steps", code="out_of_range")


def _exponents(raw: Mapping[str, Any], config: Config) -> dict[str, float]:
    at = f"{AT}.guides"
    members = {*config.guides, BASE}
    for name in raw:
        if name not in members:
            raise ApiError(unknown("guide", name, members), param=f"{at}.{name[:64]}")
    return {name: number(value, f"{at}.{name}", config.max_weight) for name, value in raw.items()}


def _build(name: str, params: Mapping[str, Any], filled: Mapping[str, Any]) -> tuple[Strategy, dict[str, Any]]:
    """The strategy, and its parameters in JSON, defaults included; `params` are the client's, `filled` are what the
    server makes of the rest of the request."""
    at, model = f"{AT}.params", parameters(name)
    fields = {field.alias or key for key, field in model.model_fields.items()} - MADE_HERE
    if surplus := next((key for key in params if key not in fields), None):
        message = f"strategy {name!r}: {unknown('parameter', surplus, fields)}"
        raise ApiError(message, param=f"{at}.{surplus[:64]}", code="unknown_parameter")
    try:
        checked = model.model_validate({**params, **filled})
        strategy: Strategy = STRATEGIES[name].load()(**{key: getattr(checked, key) for key in model.model_fields})
    except ValidationError as error:
        where = error.errors()[0]["loc"]
        raise explained(error, at=at, fields=_inside(model, where) if len(where) > 1 else fields) from None
    except ValueError as error:
        raise ApiError(str(error), param=at if fields else f"{AT}.guides") from None
    return strategy, checked.model_dump(mode="json", by_alias=True, exclude=set(MADE_HERE))


def _inside(model: type[BaseModel], where: Sequence[int | str]) -> set[str]:
    """The keys of the object that a parameter is, of the kind in `where` if it may be one of several."""
    schema = model.model_json_schema()
    kinds = re.findall(r"#/\$defs/(\w+)", json.dumps(schema["properties"][where[0]]))
    chosen = [kind for kind in kinds if f"one-of-{kind}" in where] or kinds
    return {key for kind in chosen for key in schema["$defs"][kind].get("properties", ())}


def _bounded(mixture: Mapping[str, float], config: Config, *, param: str) -> None:
    for member, weight in mixture.items():
        if member != BASE and member not in config.guides:
            raise ApiError(unknown("guide", member, config.guides.keys()), param=param)
        if not abs(weight) <= config.max_weight:
            message = f"the exponent of {member!r} must lie in [-{config.max_weight:g}, {config.max_weight:g}]"
            raise ApiError(f"{message}; got {weight:g}", param=param, code="out_of_range")
