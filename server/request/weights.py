"""Preference weights: what a request may say, who chooses them where it does not, and the exponents that they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from trimtab.preferences.from_prompt import Orchestrator, load
from trimtab.server.config import Config, ConfigError
from trimtab.server.errors import ApiError
from trimtab.server.request.preference_prompts import ANGLE
from trimtab.server.wording import quote, suggest

By = Literal["guide", "reward", "direction"]
"""What carries weights out."""


def load_orchestrator(config: Config) -> Orchestrator | None:
    """What chooses weights by the prompt; raises ConfigError for an adapter of other objectives than the server's."""
    if config.auto_weights is None:
        return None
    try:
        adapter = load(config.auto_weights)
    except ValueError as error:
        raise ConfigError(str(error), key="auto_weights") from None
    for name in adapter.objectives:
        if name not in config.objectives:
            raise ConfigError(suggest("objective", name, config.objectives), key="auto_weights")
    return adapter


def parse_number(value: object, param: str, limit: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= limit:
        raise ApiError(f"{param} must be a number in [-{limit:g}, {limit:g}]; got {quote(value)}", param=param)
    return float(value)


def parse_weights(
    raw: Mapping[str, Any],
    config: Config,
    *,
    at: str,
    by: By = "reward",
) -> dict[str, float]:
    """Weights per objective that a guide, a reward or a direction can carry out; raises ApiError.

    A direction may come as an angle, {"angle": degrees}.
    """
    if not raw:
        raise ApiError(
            f"{at} is empty; name at least one objective of {', '.join(sorted(config.objectives))}", param=at
        )
    if by == "direction" and set(raw) == {ANGLE} and ANGLE not in config.objectives:
        return {ANGLE: parse_number(raw[ANGLE], f"{at}.{ANGLE}", 180.0)}
    for name in raw:
        if name not in config.objectives:
            raise ApiError(suggest("objective", name, config.objectives.keys()), param=f"{at}.{name[:64]}")
        if by != "direction" and getattr(config.objectives[name], by) is None:
            raise ApiError(f"objective {name!r} has no {by} on this server", param=f"{at}.{name}")
    weights = {name: parse_number(value, f"{at}.{name}", config.max_weight) for name, value in raw.items()}
    if not any(weights.values()):
        raise ApiError(f"{at} are all zero: nothing is preferred; use strategy 'plain' for the base alone", param=at)
    return weights


def guide_exponents(weights: Mapping[str, float], config: Config) -> dict[str, float]:
    """Preference weights as exponents: the sum over objectives of weight times gain, per guide."""
    exponents: dict[str, float] = {}
    for name, weight in weights.items():
        objective = config.objectives[name]
        if objective.guide is not None:
            exponents[objective.guide] = exponents.get(objective.guide, 0.0) + weight * objective.gain
    return exponents
