"""The request field `alignment`: what a client may ask, checked against what this server has, made into a strategy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from decoders import STRATEGIES, Entry
from decoders.protocols import BASE, Strategy
from server.config import Config, ConfigError
from server.errors import ApiError, explained, shown, unknown

AT = "alignment"


class AlignmentRequest(BaseModel):
    """As a client sends it; names and numbers are checked against the server afterwards. No key may be null."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    strategy: str = ""
    weights: dict[str, Any] = {}
    guides: dict[str, Any] = {}
    params: dict[str, Any] = {}
    want: list[str] = Field(default=[], alias="return")

    @classmethod
    def parse(cls, raw: object) -> AlignmentRequest:
        """Raises ApiError naming the key."""
        fields = [field.alias or name for name, field in cls.model_fields.items()]
        if not isinstance(raw, Mapping):
            raise ApiError(f"{AT} must be an object with keys among {', '.join(fields)}; got {shown(raw)}", param=AT)
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise explained(error, at=AT, fields=fields) from None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request understood: what will run, and what to say of it."""

    name: str
    entry: Entry
    strategy: Strategy
    weights: Mapping[str, float]
    guides: Mapping[str, float]
    """Exponent per guide as the strategy got it."""
    want: frozenset[str]

    @property
    def is_plain(self) -> bool:
        return self.name == "plain"

    def described(self) -> dict[str, Any]:
        told: dict[str, Any] = {"strategy": self.name}
        if self.weights:
            told["weights"] = dict(self.weights)
        if self.guides:
            told["guides"] = dict(self.guides)
        if not self.is_plain:
            told["streaming"] = "native" if self.entry.streams else "buffered"
        return told


@cache
def parameters(name: str) -> type[BaseModel]:
    """A strategy's parameters as a model, from the signature of what builds it."""
    build = STRATEGIES[name].load()
    hints = get_type_hints(build, include_extras=True)
    fields: dict[str, Any] = {
        p.name: (hints[p.name], ... if p.default is p.empty else p.default)
        for p in signature(build).parameters.values()
    }
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
    return create_model(name, __config__=config, **fields)


def check(config: Config) -> None:
    """Raises ConfigError for a preset or a default that no request could be answered with."""
    asked = {"default_strategy": {}, **{f"presets.{name}": preset for name, preset in config.presets.items()}}
    for key, raw in asked.items():
        try:
            plan(raw, config)
        except ApiError as error:
            raise ConfigError(error.message, key=key) from None


def plan(raw: object, config: Config) -> Plan:
    """The plan for a request's `alignment`; raises ApiError naming the key, the value and what is valid."""
    asked = AlignmentRequest.parse(raw)
    given = asked.model_fields_set
    weights = _preferences(asked.weights, config) if "weights" in given else {}
    exponents = _exponents(asked.guides, config)
    name = config.default_strategy
    if "strategy" in given:
        name = asked.strategy
    elif given & {"weights", "guides"}:
        name = "guided"
    if name not in STRATEGIES:
        raise ApiError(unknown("strategy", name, STRATEGIES.keys()), param=f"{AT}.strategy")
    entry = STRATEGIES[name]
    for field in ("weights", "guides"):
        if field in given and field not in entry.takes:
            message = f"{AT}.{field} cannot be honoured by strategy {name!r}"
            raise ApiError(message, param=f"{AT}.{field}", code="unsupported_pair")
    if entry.takes and not given & entry.takes:
        wanted = " or ".join(f"{AT}.{field}" for field in sorted(entry.takes))
        raise ApiError(f"strategy {name!r} needs {wanted}", param=AT, code="missing_required_parameter")
    for wish in asked.want:
        if wish not in entry.shows:
            raise ApiError(f"strategy {name!r}: {unknown('return', wish, entry.shows)}", param=f"{AT}.return")

    if "guides" in asked.params:
        message = f"write {AT}.guides, beside params"
        raise ApiError(message, param=f"{AT}.params.guides", code="unknown_parameter")
    pulls = {"guides": _pulls(weights, config) | exponents} if entry.takes else {}
    strategy = _build(name, {**asked.params, **pulls})
    mixture = dict(getattr(strategy, "mixture", {}))
    _bounded(mixture, config, param=f"{AT}.params" if asked.params else f"{AT}.weights")
    return Plan(name=name, entry=entry, strategy=strategy, weights=weights, guides=mixture, want=frozenset(asked.want))


def _number(value: object, param: str, config: Config) -> float:
    limit = config.max_weight
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= limit:
        raise ApiError(f"{param} must be a number in [-{limit:g}, {limit:g}]; got {shown(value)}", param=param)
    return float(value)


def _preferences(raw: Mapping[str, Any], config: Config) -> dict[str, float]:
    at = f"{AT}.weights"
    if not raw:
        raise ApiError(
            f"{at} is empty; name at least one objective of {', '.join(sorted(config.objectives))}", param=at
        )
    for name in raw:
        if name not in config.objectives:
            raise ApiError(unknown("objective", name, config.objectives.keys()), param=f"{at}.{name[:64]}")
        if config.objectives[name].guide is None:
            raise ApiError(f"objective {name!r} has no guide on this server", param=f"{at}.{name}")
    weights = {name: _number(value, f"{at}.{name}", config) for name, value in raw.items()}
    if not any(weights.values()):
        raise ApiError(f"{at} are all zero: nothing is preferred; use strategy 'plain' for the base alone", param=at)
    return weights


def _exponents(raw: Mapping[str, Any], config: Config) -> dict[str, float]:
    at = f"{AT}.guides"
    members = {*config.guides, BASE}
    for name in raw:
        if name not in members:
            raise ApiError(unknown("guide", name, members), param=f"{at}.{name[:64]}")
    return {name: _number(value, f"{at}.{name}", config) for name, value in raw.items()}


def _pulls(weights: Mapping[str, float], config: Config) -> dict[str, float]:
    """Preference weights as exponents: the sum over objectives of weight times gain, per guide."""
    pulls: dict[str, float] = {}
    for name, weight in weights.items():
        objective = config.objectives[name]
        if objective.guide is not None:
            pulls[objective.guide] = pulls.get(objective.guide, 0.0) + weight * objective.gain
    return pulls


def _build(name: str, params: dict[str, Any]) -> Strategy:
    at, model = f"{AT}.params", parameters(name)
    fields = {field.alias or key for key, field in model.model_fields.items()} - {"guides"}
    if surplus := next((key for key in params if key not in fields and key != "guides"), None):
        message = f"strategy {name!r}: {unknown('parameter', surplus, fields)}"
        raise ApiError(message, param=f"{at}.{surplus[:64]}", code="unknown_parameter")
    try:
        checked = model.model_validate(params)
        strategy: Strategy = STRATEGIES[name].load()(**{key: getattr(checked, key) for key in model.model_fields})
    except ValidationError as error:
        raise explained(error, at=at, fields=fields) from None
    except ValueError as error:
        raise ApiError(str(error), param=at if fields else f"{AT}.guides") from None
    return strategy


def _bounded(mixture: Mapping[str, float], config: Config, *, param: str) -> None:
    for member, weight in mixture.items():
        if member != BASE and member not in config.guides:
            raise ApiError(unknown("guide", member, config.guides.keys()), param=f"{AT}.params")
        if not abs(weight) <= config.max_weight:
            message = f"the exponent of {member!r} must lie in [-{config.max_weight:g}, {config.max_weight:g}]"
            raise ApiError(f"{message}; got {weight:g}", param=param, code="out_of_range")
