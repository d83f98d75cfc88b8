"""What will run for a request: its `alignment`, checked against what this server has, made into a strategy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from trimtab.decoders import PROGRESS, STRATEGIES, StrategyEntry
from trimtab.decoders.protocols import BASE, Mixture, Strategy, Work
from trimtab.runtime.contexts import Context, Instruction, RequestContexts
from trimtab.server.config import Config, ConfigError
from trimtab.server.config.rewards import check_rewards
from trimtab.server.errors import ApiError
from trimtab.server.request.alignment import AT, OWN_PROMPT, AlignmentRequest, Budget
from trimtab.server.request.cost import check_bounds
from trimtab.server.request.preference_prompts import build_direction, check_prompts
from trimtab.server.request.reward_tree import Spec, parse_spec, standardise_objective, weigh_objectives
from trimtab.server.request.weights import By, guide_exponents, load_orchestrator, parse_number, parse_weights
from trimtab.server.wording import explain_validation, suggest


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request understood: what will run, and what to say of it."""

    name: str
    entry: StrategyEntry
    strategy: Strategy
    params: Mapping[str, Any] = field(default_factory=dict)
    """The strategy's parameters as they run, defaults included, under their public names, as JSON has them."""
    weights: Mapping[str, float]
    guides: Mapping[str, float]
    """Exponent per member that answers are drawn with; empty where nobody named any."""
    auto: bool = False
    """Whether the server chose the weights."""
    include: frozenset[str]
    reward: Any = None
    """As the request wrote it; None where weights say what is preferred, or nothing is."""
    contexts: Mapping[str, Context] = field(default_factory=dict)
    """Guides that are prompts: the server's, and the client's as `prompts[i]`."""
    instructions: frozenset[Instruction] = frozenset()
    """Under which the engine reads the request's prompt too, for guides."""
    rows: int = 1
    """Of the engine's batch that an answer's token takes, at the most."""
    objective: Spec | None = None
    """What the reward is made of; None where the strategy wants none."""
    others: Mapping[str, Spec] = field(default_factory=dict)
    """Where more rewards are asked for, and what they are made of: a parameter that names one, or each objective of a
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

    @property
    def native(self) -> bool:
        """Whether vLLM answers by itself."""
        return self.is_plain and not self.bounded

    def described(self) -> dict[str, Any]:
        description: dict[str, Any] = {"strategy": self.name}
        if self.params:
            description["params"] = dict(self.params)
        if self.weights:
            description["weights"] = dict(self.weights)
        if self.auto:
            description["auto_weights"] = True
        if self.reward is not None:
            description["reward"] = self.reward
        if self.guides:
            description["guides"] = dict(self.guides)
        if not self.is_plain:
            description["streaming"] = "native" if self.entry.streams else "buffered"
        return description


def check_config(config: Config) -> None:
    """Raises ConfigError for a reward, an objective, a preset or a default that no request could be answered with, and
    for keys that cannot be read."""
    _ = config.keys
    check_rewards(config)
    check_prompts(config)
    load_orchestrator(config)
    for name, objective in config.objectives.items():
        if objective.reward is not None:
            try:
                parse_spec(objective.reward, config, at=f"objectives.{name}.reward", objectives=False)
            except ApiError as error:
                raise ConfigError(error.message.removeprefix(f"{error.param}: "), key=error.param or "") from None
    samples = {"default_strategy": {}, **{f"presets.{name}": preset for name, preset in config.presets.items()}}
    for key, raw in samples.items():
        try:
            plan(raw, config)
        except ApiError as error:
            raise ConfigError(error.message, key=key) from None


def plan(raw: object, config: Config, auto: Callable[[], Mapping[str, float]] | None = None) -> Plan:
    """The plan for a request's `alignment`; raises ApiError naming the key, the value and what is valid.

    `auto` gives the weights of a request that leaves them to the server, where that is known.
    """
    request = AlignmentRequest.parse(raw)
    wishes = request.weights if isinstance(request.weights, dict) else _auto_weights(config, auto)
    name, entry = _strategy(request, wishes, config)
    _check_fields(request, name, entry)
    brought = _own_prompts(request, config)
    weights, supplied = _supply(request, entry, wishes, config)
    strategy, params = _build(name, entry, request.params, supplied)
    work = strategy.work(1, n=1, include=frozenset(request.include))
    source = next((key for key in ("params", "guides", "prompts") if getattr(request, key)), "weights")
    contexts = RequestContexts(contexts={**config.contexts, **brought}, adapters=frozenset(config.guide_adapters))
    _check_models(name, entry, params, contexts.contexts)
    check_bounds(name, work, config, contexts.contexts, at=f"{AT}.{source}")
    objective, others = _rewards(request, entry, params, weights, config)
    return Plan(
        name=name,
        entry=entry,
        strategy=strategy,
        params=params,
        weights=weights,
        guides=_shown_mixture(work, entry),
        contexts=contexts.contexts,
        instructions=frozenset().union(*map(contexts.instructions, work.mixtures.values())),
        rows=max(map(contexts.count_rows, work.mixtures.values()), default=1),
        include=frozenset(request.include),
        reward=request.reward,
        objective=objective,
        others=others,
        auto=request.weights == "auto",
        given=request.given.model_dump(exclude_unset=True),
        max_sampled_tokens=request.budget.max_sampled_tokens or None,
        deadline_ms=_deadline(request.budget, config.limits.max_deadline_ms),
        degrade=request.on_error == "degrade",
    )


def _auto_weights(config: Config, auto: Callable[[], Mapping[str, float]] | None) -> dict[str, float]:
    """The weights of a request that leaves them to the server."""
    adapter = load_orchestrator(config)
    if adapter is None:
        raise ApiError("this server has no auto_weights: name objectives", param=f"{AT}.weights")
    return dict(auto() if auto is not None else adapter([]))


def _strategy(request: AlignmentRequest, wishes: Mapping[str, Any], config: Config) -> tuple[str, StrategyEntry]:
    """The strategy that the request names, or the one that it means: `guided` where weights have guides and the
    server's default strategy is no search."""
    name, written = config.default_strategy, request.model_fields_set
    if "strategy" in written:
        name = request.strategy
    elif written & {"weights", "guides", "prompts"}:
        guided = all(config.objectives[o].guide for o in wishes if o in config.objectives)
        name = name if "reward" in STRATEGIES[name].takes and not guided else "guided"
    if name not in STRATEGIES:
        raise ApiError(suggest("strategy", name, STRATEGIES.keys()), param=f"{AT}.strategy")
    return name, STRATEGIES[name]


def _check_fields(request: AlignmentRequest, name: str, entry: StrategyEntry) -> None:
    """Raises ApiError for a field that the strategy could not carry out, or one that it lacks."""
    written, takes = request.model_fields_set, entry.takes
    honours = takes | ({"weights"} if "direction" in takes else set())
    honours |= {"weights", "given"} if "reward" in takes else set()
    honours |= {"prompts"} if "guides" in takes else set()
    for key in ("weights", "guides", "prompts", "reward", "given"):
        if key in written and key not in honours:
            message = f"{AT}.{key} cannot be honoured by strategy {name!r}"
            raise ApiError(message, param=f"{AT}.{key}", code="unsupported_pair")
    if "direction" in takes and "reward" in written:
        message = f"strategy {name!r} chooses by {AT}.weights, so {AT}.reward cannot be honoured"
        raise ApiError(message, param=f"{AT}.reward", code="unsupported_pair")
    if {"weights", "reward"} <= written:
        message = f"{AT}.weights and {AT}.reward are two ways to say what is wanted: give one"
        raise ApiError(message, param=f"{AT}.reward", code="unsupported_pair")
    needed: Set[str] = {"weights", "reward"} if "reward" in takes else takes
    needed = {"weights"} if "direction" in takes else needed
    needed = needed | {"prompts"} if "guides" in needed else needed
    if needed and not entry.reward_optional and not written & needed:
        either = " or ".join(f"{AT}.{key}" for key in sorted(needed))
        raise ApiError(f"strategy {name!r} needs {either}", param=AT, code="missing_required_parameter")
    for key in request.include:
        if key in PROGRESS - entry.returns:
            message = f"return {key!r} cannot be honoured by strategy {name!r}: it sends its tokens as it decides them"
            raise ApiError(message, param=f"{AT}.return", code="unsupported_pair")
        if key not in entry.returns:
            raise ApiError(f"strategy {name!r}: {suggest('return', key, entry.returns)}", param=f"{AT}.return")
    if "best" in request.include and "progress" not in request.include:
        message = "return 'best' is the text of the best so far in 'progress', which has to be named too"
        raise ApiError(message, param=f"{AT}.return", code="unsupported_pair")


def _supply(
    request: AlignmentRequest, entry: StrategyEntry, wishes: Mapping[str, Any], config: Config
) -> tuple[dict[str, float], dict[str, Any]]:
    """The weights as understood, and the strategy's parameters that the server makes of them and of `guides`."""
    written, takes = request.model_fields_set, entry.takes
    by: By = "direction" if "direction" in takes else "reward" if "reward" in takes else "guide"
    weights = parse_weights(wishes, config, at=f"{AT}.weights", by=by) if "weights" in written else {}
    exponents = _exponents(request.guides, config)
    for i, prompt in enumerate(request.prompts):
        at = f"{AT}.prompts.{i}.weight"
        exponents[OWN_PROMPT.format(i)] = parse_number(prompt.weight, at, config.max_weight)
    if "guides" in request.params:
        message = f"write {AT}.guides, beside params"
        raise ApiError(message, param=f"{AT}.params.guides", code="unknown_parameter")
    if by == "direction":
        direction = build_direction(weights, request.params, config, at=f"{AT}.weights")
        return direction.by_objective(direction.v), {"direction": direction, "guides": exponents}
    if by == "reward":
        return weights, {"guides": {BASE: 1.0, **exponents}}
    return weights, {"guides": guide_exponents(weights, config) | exponents} if takes else {}


def _own_prompts(request: AlignmentRequest, config: Config) -> dict[str, Context]:
    """The client's own, by the names that they have as guides."""
    if request.prompts and not config.client_prompts:
        raise ApiError("this server takes no prompts of its clients", param=f"{AT}.prompts", code="unsupported_pair")
    return {OWN_PROMPT.format(i): prompt.context for i, prompt in enumerate(request.prompts)}


def _check_models(name: str, entry: StrategyEntry, params: Mapping[str, Any], contexts: Mapping[str, Context]) -> None:
    """Raises ApiError for a prompt where the strategy names a model."""
    for key in entry.model_parameters:
        if params[key] in contexts:
            at = f"{AT}.params.{key}"
            message = (
                f"{at}: strategy {name!r} needs a model, and guide {params[key]!r} is what a prompt moves the base by"
            )
            raise ApiError(message, param=at, code="unsupported_pair")


def _exponents(raw: Mapping[str, Any], config: Config) -> dict[str, float]:
    at = f"{AT}.guides"
    members = {*config.guides, BASE}
    for name in raw:
        if name not in members:
            raise ApiError(suggest("guide", name, members), param=f"{at}.{name[:64]}")
    return {name: parse_number(value, f"{at}.{name}", config.max_weight) for name, value in raw.items()}


def _build(
    name: str, entry: StrategyEntry, params: Mapping[str, Any], supplied: Mapping[str, Any]
) -> tuple[Strategy, dict[str, Any]]:
    """The strategy, and its parameters as they run; `supplied` is what the server makes of the rest of the request."""
    at, model = f"{AT}.params", entry.parameters
    fields = {field.alias or key for key, field in model.model_fields.items()}
    if surplus := next((key for key in params if key not in fields), None):
        message = f"strategy {name!r}: {suggest('parameter', surplus, fields)}"
        raise ApiError(message, param=f"{at}.{surplus[:64]}", code="unknown_parameter")
    try:
        checked = model.model_validate(dict(params))
        strategy: Strategy = entry.build_from(checked, **supplied)
        return strategy, checked.model_dump(mode="json", by_alias=True)
    except ValidationError as error:
        where = error.errors()[0]["loc"]
        raise explain_validation(error, at=at, fields=_inside(model, where) if len(where) > 1 else fields) from None
    except ValueError as error:
        raise ApiError(str(error), param=at if fields else f"{AT}.guides") from None


def _inside(model: type[BaseModel], where: Sequence[int | str]) -> set[str]:
    """The keys of the object that a parameter is, of the kind in `where` if it may be one of several."""
    schema = model.model_json_schema()
    kinds = re.findall(r"#/\$defs/(\w+)", json.dumps(schema["properties"][where[0]]))
    chosen = [kind for kind in kinds if f"one-of-{kind}" in where] or kinds
    return {key for kind in chosen for key in schema["$defs"][kind].get("properties", ())}


def _rewards(
    request: AlignmentRequest,
    entry: StrategyEntry,
    params: Mapping[str, Any],
    weights: Mapping[str, float],
    config: Config,
) -> tuple[Spec | None, dict[str, Spec]]:
    """What the reward is made of, and the other rewards by the field that asks for them."""
    if "reward" not in entry.takes:
        return None, {}
    for objective in weights:
        if config.objectives[objective].reward is None:
            raise ApiError(f"objective {objective!r} has no reward on this server", param=f"{AT}.weights")
    spec = None
    if "reward" in request.model_fields_set:
        spec = parse_spec(request.reward, config, at=f"{AT}.reward")
    elif "weights" in request.model_fields_set:
        spec = weigh_objectives(weights, config)
    if "direction" in entry.takes:
        return spec, {f"weights.{objective}": standardise_objective(objective, config) for objective in weights}
    return spec, {
        f"params.{key}": parse_spec(params[key], config, at=f"{AT}.params.{key}")
        for key in entry.reward_parameters
        if params[key] is not None
    }


def _shown_mixture(work: Work, entry: StrategyEntry) -> Mixture:
    """What answers are drawn with; of a search without guides nothing, for nobody asked for any."""
    mixture = dict(work.mixtures.get("", {}))
    return mixture if mixture != {BASE: 1.0} or "reward" not in entry.takes or "direction" in entry.takes else {}


def _deadline(budget: Budget, longest: int | None) -> int | None:
    deadline = budget.deadline_ms or None
    if deadline is not None and longest is not None and deadline > longest:
        at = f"{AT}.budget.deadline_ms"
        raise ApiError(f"{at} must be at most {longest} on this server; got {deadline}", param=at, code="out_of_range")
    return deadline or longest
