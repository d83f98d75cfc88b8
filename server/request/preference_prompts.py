"""Preference weights as a direction: what the configuration's preference prompts and guides can carry out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.decoders.protocols import BASE
from trimtab.preferences.preference_direction import (
    PUBLISHED_DEGREES,
    TEXTS,
    Cone,
    PreferenceDirection,
    Template,
    from_angle,
    unit_vector,
)
from trimtab.server.config import Config, ConfigError, PromptConfig
from trimtab.server.errors import ApiError
from trimtab.server.wording import list_names, quote, suggest

ANGLE = "angle"
"""The key that stands for two weights."""


def check_prompts(config: Config) -> None:
    """Raises ConfigError for a preference prompt that no direction could be said with."""
    for name, prompt in config.preference_prompts.items():
        key = f"preference_prompts.{name}"
        try:
            build_template(prompt)
            for slot, (objective, _) in read_slots(prompt).items():
                if objective not in config.objectives:
                    raise ValueError(f"slots.{slot}: {suggest('objective', objective, config.objectives)}")
            models = config.guides.keys() - config.contexts.keys()
            if prompt.reader is not None and prompt.reader not in models:
                raise ValueError(f"reader: {suggest('guide', prompt.reader, models)}")
            build_cone(prompt)
        except ValueError as error:
            raise ConfigError(str(error), key=key) from None


def read_slots(prompt: PromptConfig) -> dict[str, tuple[str, float]]:
    """slot -> objective, and -1 where the slot means its opposite"""
    published = {"h": "helpfulness", "w": "verbosity"} if prompt.template in ("dpa", "rps") else {}
    objectives = prompt.slots or published
    return {slot: (name.removeprefix("-"), -1.0 if name.startswith("-") else 1.0) for slot, name in objectives.items()}


def build_template(prompt: PromptConfig) -> Template:
    """Raises ValueError for one that does not name its slots."""
    if (prompt.template is None) == (prompt.text is None):
        raise ValueError("give either a template's name or a text of your own")
    text, role = TEXTS[prompt.template] if prompt.template is not None else (prompt.text or "", prompt.role or "system")
    if not read_slots(prompt):
        raise ValueError("slots: name at least one objective")
    missing = [slot for slot in read_slots(prompt) if f"{{{slot}}}" not in text]
    if missing and "{values}" not in text:
        raise ValueError(f"slots.{missing[0]}: the text has no {{{missing[0]}}}")
    return Template(
        text=text,
        role=prompt.role or role,
        slots=tuple(read_slots(prompt)),
        signs=tuple(sign for _, sign in read_slots(prompt).values()),
        scale=prompt.scale,
        decimals=prompt.decimals,
    )


def build_cone(prompt: PromptConfig) -> Cone:
    """Raises ValueError for an axis of no length, or one over other objectives."""
    names = [name for name, _ in read_slots(prompt).values()]
    first = tuple(float(i == 0) for i in range(len(names)))
    if prompt.cone is None:
        published = prompt.template in ("dpa", "rps")
        return Cone(axis=first, degrees=PUBLISHED_DEGREES if published else 180.0)
    if surplus := next((name for name in prompt.cone.axis if name not in names), None):
        raise ValueError(f"cone.axis: {suggest('objective', surplus, names)}")
    axis = unit_vector([prompt.cone.axis.get(name, 0.0) for name in names])
    return Cone(axis=tuple(map(float, axis)), degrees=prompt.cone.degrees, nonnegative=prompt.cone.nonnegative)


def build_direction(
    weights: Mapping[str, float], params: Mapping[str, Any], config: Config, *, at: str
) -> PreferenceDirection:
    """The direction of the weights, over the objectives of the preference prompt that `params` names, else of theirs.

    Raises ApiError for a prompt that is not there, an objective that it does not have, or a direction that it cannot
    say.
    """
    name = params.get("prompt")
    if name is None and params.get("over") != "guides":
        name = next(iter(config.preference_prompts), None)
    if name is None:
        if set(weights) - config.objectives.keys():
            message = f"{at}.{ANGLE} is between the two objectives of a preference prompt, and none is used here"
            raise ApiError(f"{message}: name objectives", param=f"{at}.{ANGLE}")
        prompt, objectives, signs = None, list(weights), [1.0] * len(weights)
    else:
        if not isinstance(name, str) or name not in config.preference_prompts:
            raise ApiError(
                suggest("preference prompt", name if isinstance(name, str) else quote(name), config.preference_prompts),
                param="alignment.params.prompt",
            )
        prompt = config.preference_prompts[name]
        objectives, signs = map(list, zip(*read_slots(prompt).values(), strict=True))
    v = _vector(weights, objectives, signs, at)
    valid = build_cone(prompt) if prompt is not None else Cone(axis=v)
    if not valid.contains(v):
        shares = ", ".join(f"{o}: {share:.4g}" for o, share in zip(objectives, v, strict=True))
        message = f"{at}: the direction {{{shares}}} is outside of what preference prompt {name!r} can ask for"
        raise ApiError(f"{message}; valid: {valid.describe(objectives)}", param=at, code="out_of_range")
    pulls = {o: config.objectives[o] for o in objectives}
    return PreferenceDirection(
        objectives=tuple(objectives),
        v=v,
        cone=valid,
        template=build_template(prompt) if prompt is not None else None,
        reader=(prompt.reader if prompt is not None else None) or BASE,
        guides={o: {objective.guide: objective.gain} for o, objective in pulls.items() if objective.guide is not None},
    )


def _vector(
    weights: Mapping[str, float], objectives: Sequence[str], signs: Sequence[float], where: str
) -> tuple[float, ...]:
    if set(weights) == {ANGLE} and ANGLE not in objectives:
        if len(objectives) != 2:
            message = f"{where}.{ANGLE} is for two objectives; this preference prompt has {list_names(objectives)}"
            raise ApiError(message, param=f"{where}.{ANGLE}")
        return tuple(sign * float(share) for sign, share in zip(signs, from_angle(weights[ANGLE]), strict=True))
    if surplus := next((name for name in weights if name not in objectives), None):
        message = suggest("objective of this preference prompt", surplus, objectives)
        raise ApiError(message, param=f"{where}.{surplus}")
    return tuple(map(float, unit_vector([weights.get(name, 0.0) for name in objectives])))
