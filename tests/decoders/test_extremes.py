"""Parameters and rewards at their bounds, over the whole table: finite reports, or a refusal that says why."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from pydantic import ValidationError

from tests.contracts import Specimen, build_with
from tests.decoders.conftest import START
from trimtab.decoders import STRATEGIES, example_request
from trimtab.decoders.protocols import BASE, LimitReached, Tokens
from trimtab.runtime.strategy_run import StrategyRun

REWARDS: dict[str, tuple[float, ...]] = {
    "huge": (1e308, -1e308, 1.7e308),
    "tiny": (0.0, 5e-324, -5e-324),
    "alike": (0.0,),
    "far apart": (1e300, 0.0, -1e-300),
}


EXPONENTS = {("genarm", "alpha"), ("dera", "lambda"), ("proxy_tuning", "alpha"), ("transfer_q", "baseline")}
"""Bounded as the mixtures that they make are, by what the server and the engine allow of a weight."""
HEAVIEST = 1e6


def numbers(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every number that a parameter's schema lets a client write."""
    if "$ref" in schema:
        yield from numbers(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if schema.get("type") in ("number", "integer"):
        yield schema
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for option in schema.get(key, ()):
            yield from numbers(option, definitions)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            yield from numbers(schema[key], definitions)
    for inner in schema.get("properties", {}).values():
        yield from numbers(inner, definitions)


def bounds(schema: Mapping[str, Any]) -> tuple[float, float]:
    low = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf))
    return low, schema.get("maximum", schema.get("exclusiveMaximum", math.inf))


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_number_has_bounds(name: str) -> None:
    schema = STRATEGIES[name].parameters.model_json_schema(by_alias=True)
    for key, field in schema.get("properties", {}).items():
        for number in numbers(field, schema.get("$defs", {})):
            finite = all(map(math.isfinite, bounds(number)))
            assert finite != ((name, key) in EXPONENTS), f"{name}.{key}: {number}"


def settings(name: str) -> Iterator[dict[str, Any]]:
    """The example with each of its numbers at either bound, or just inside of one that is left out."""
    example = example_request(name, ["arm"]).get("params", {})
    schema = STRATEGIES[name].parameters.model_json_schema(by_alias=True)
    yield example
    for key, field in schema.get("properties", {}).items():
        for choice in field.get("enum", ()):
            yield example | {key: choice}
        options = [field, *field.get("anyOf", ())]
        for number in (option for option in options if option.get("type") in ("number", "integer")):
            low, high = max(-HEAVIEST, bounds(number)[0]), min(HEAVIEST, bounds(number)[1])
            inside = 1 if number["type"] == "integer" else 5e-324
            values = [low + inside * ("exclusiveMinimum" in number), high - inside * ("exclusiveMaximum" in number)]
            most = 8 if key in ("n", "k", "m", "chains", "rollouts", "width", "tries", "steps") else math.inf
            for value in dict.fromkeys(min(value, most) for value in values):
                yield example | {key: value}
                for other, choices in schema["properties"].items():
                    for choice in choices.get("enum", ()):
                        yield example | {key: value, other: choice}


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS)
@pytest.mark.parametrize("every_pair", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_reports_are_finite_or_the_request_is_refused(
    specimen: Specimen, name: str, rewards: tuple[float, ...], every_pair: bool
) -> None:
    """Each setting under the example's guides, and extreme guides under the example; or all of them with all."""
    takes = STRATEGIES[name].takes
    guides: Sequence[dict[str, float]] = [{}]
    if "guides" in takes:
        guides = [example_request(name, ["arm"]).get("guides", {}), {"arm": 1e6}, {"arm": -1e6}, {BASE: 0.0}]
    columns = 1

    async def reward(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        return [[rewards[(sum(tokens) + k) % len(rewards)] for k in range(columns)] for tokens in completions]

    if "direction" in takes:
        columns += len(specimen.direction.objectives)
    answered = 0
    example, *others = settings(name)
    pairs = [*product([example], guides), *product(others, guides if every_pair else guides[:1])]
    for params, mixture in pairs:
        run = StrategyRun(reward=reward, include=STRATEGIES[name].shows)
        try:
            run.strategy = build_with(name, specimen, {"params": params, "guides": mixture})
            sampling = replace(specimen.sampling, max_tokens=3, seed=1)
            async for chunk in run.execute([START], sampling, run.instrument(specimen.engine), n=1):
                run.record(chunk.index, chunk)
        except (ValueError, LimitReached) as refusal:
            internal = [words for words in ("zip()", "index out of range", "NaN") if words in str(refusal)]
        else:
            internal = []
            answered += 1
            assert run.answers[0]
        assert not internal, "a refusal says what is wrong with the request"
        json.dumps(run.reports, allow_nan=False)
    assert answered


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("transfer_q", {"alpha": -1e-308}),
        ("transfer_q", {"alpha": 1e308}),
        ("args", {"weight": 1e308}),
        ("blockwise", {"beta": 1e308}),
        ("soft_best_of_n", {"lambda": 0.0}),
        ("rejection", {"beta": math.inf}),
        ("rps", {"alpha": 1e308}),
        ("genarm", {"alpha": math.inf}),
        ("dera", {"aligned": "arm", "lambda": -math.inf}),
        ("segments", {"target": math.nan}),
        ("segments", {"block": 10**400}),
        ("qalign", {"until": {"r_hat": math.inf}}),
        ("best_of_n", {"diverse": {"groups": 1, "penalty": 1e308}}),
        ("speculative_rejection", {"decisions": list(range(1, 1000))}),
        ("transfer_q", {"baseline": {"arm": math.inf}}),
    ],
)
def test_numbers_beyond_their_bounds_are_refused(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        STRATEGIES[name].parameters.model_validate(params)
