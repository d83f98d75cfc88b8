"""The request field `alignment`: each thing that a client may get wrong, by param, code and message."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest

from trimtab.decoders import STRATEGIES
from trimtab.decoders.guided import Guided
from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import BASE
from trimtab.server.config import Config, ConfigError, RewardConfig
from trimtab.server.errors import ApiError
from trimtab.server.request.plan import Plan, check_config, plan

CONFIG = Config.model_validate(
    {
        "base": "org/base",
        "guides": {"helpful": "org/helpful", "brief": "org/brief"},
        "objectives": {
            "helpfulness": {"guide": "helpful", "gain": 2.0},
            "clarity": {"guide": "helpful", "gain": 0.5},
            "brevity": {"guide": "brief"},
            "truth": {},
        },
    }
)


def refusal(raw: object) -> ApiError:
    with pytest.raises(ApiError) as caught:
        plan(raw, CONFIG)
    error = caught.value
    assert error.status == 400
    assert len(error.message) < 1000
    assert len(error.param or "") < 120
    return error


def mixture(raw: object) -> dict[str, float]:
    strategy = plan(raw, CONFIG).strategy
    assert isinstance(strategy, Guided)
    return dict(strategy.mixture)


@pytest.mark.parametrize(
    ("field", "wish"),
    [
        ("guides", {"strategy": "guided", "guides": {BASE: 0}}),
        ("guides", {"strategy": "best_of_n", "reward": "short", "guides": {BASE: 0.0}}),
    ],
)
def test_a_mixture_of_nobody_is_refused_where_it_was_written(field: str, wish: dict[str, Any]) -> None:
    assert refusal(wish).param == f"alignment.{field}"


def test_nothing_asked_is_the_base_alone() -> None:
    assert plan({}, CONFIG).strategy == Plain()
    assert plan({}, CONFIG).described() == {"strategy": "plain"}


def test_weights_become_exponents_by_their_gains() -> None:
    assert mixture({"weights": {"helpfulness": 1, "clarity": 2, "brevity": -0.5}}) == {
        BASE: 1.0,
        "helpful": 3.0,
        "brief": -0.5,
    }


def test_guides_are_exponents_and_go_over_weights() -> None:
    assert mixture({"guides": {"brief": 0.5}}) == {BASE: 1.0, "brief": 0.5}
    assert mixture({"weights": {"brevity": 1}, "guides": {"brief": 0.5, BASE: 0}}) == {BASE: 0.0, "brief": 0.5}


def test_zero_exponents_are_allowed_where_zero_wishes_are_not() -> None:
    assert mixture({"guides": {"brief": 0}}) == {BASE: 1.0, "brief": 0.0}


@pytest.mark.parametrize(
    ("strategy", "asked", "expected"),
    [
        ("genarm", {"weights": {"helpfulness": 1}, "params": {"alpha": 0.5}}, {BASE: 1, "helpful": 1.0}),
        ("dera", {"params": {"aligned": "brief", "lambda": 0.25}}, {BASE: 0.75, "brief": 0.25}),
        ("mod", {"guides": {"brief": 0.25, "helpful": 0.75}}, {BASE: 0, "brief": 0.25, "helpful": 0.75}),
        (
            "proxy_tuning",
            {"params": {"expert": "brief", "antiexpert": "helpful"}},
            {BASE: 1, "brief": 1, "helpful": -1},
        ),
        ("contrastive", {"params": {"amateur": "brief", "alpha": 0.2}}, {BASE: 1, "brief": -1}),
    ],
)
def test_each_paper_by_its_own_parameters(strategy: str, asked: dict[str, Any], expected: dict[str, float]) -> None:
    assert mixture({"strategy": strategy, **asked}) == expected


def test_what_is_said_of_a_plan() -> None:
    told = plan({"weights": {"brevity": 1}, "return": ["trace"]}, CONFIG)
    assert isinstance(told, Plan)
    assert told.include == {"trace"}
    assert told.described() == {
        "strategy": "guided",
        "params": {"plausibility": 0.0},
        "weights": {"brevity": 1.0},
        "guides": {BASE: 1.0, "brief": 1.0},
        "streaming": "native",
    }


@pytest.mark.parametrize("raw", [None, [], "guided", 1, True])
def test_alignment_that_is_no_object(raw: object) -> None:
    error = refusal(raw)
    assert (error.param, error.code) == ("alignment", "invalid_value")
    assert error.message.startswith("alignment must be an object with keys among strategy, weights, guides, prompts, p")


OUT_OF_RANGE = "must be a number in [-100, 100]; got"


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (1e308, "1e+308"),
        (-1e308, "-1e+308"),
        (10**400, "1" + "0" * 59 + "…"),
        (100.1, "100.1"),
        (True, "True"),
        ("1", "'1'"),
        (None, "None"),
        ([1], "list"),
        ({"x": 1}, "dict"),
    ],
)
@pytest.mark.parametrize(("field", "name"), [("weights", "brevity"), ("guides", "brief")])
def test_a_weight_that_is_no_weight(field: str, name: str, value: object, got: str) -> None:
    error = refusal({field: {name: value}})
    at = f"alignment.{field}.{name}"
    assert (error.param, error.code) == (at, "invalid_value")
    assert error.message == f"{at} {OUT_OF_RANGE} {got}"


@pytest.mark.parametrize(
    ("raw", "param", "code", "message"),
    [
        # weights
        ({"weights": {}}, "weights", "invalid_value", "alignment.weights is empty; name at least one objective of br"),
        ({"weights": {"brevity": 0, "clarity": -0.0}}, "weights", "invalid_value", "alignment.weights are all zero: n"),
        ({"weights": {"brevty": 1}}, "weights.brevty", "invalid_value",
         "unknown objective 'brevty'; valid: brevity, clarity, helpfulness, truth. Did you mean 'brevity'?"),
        ({"weights": {"": 1}}, "weights.", "invalid_value", "unknown objective ''; valid: brevity, clarity, helpfulne"),
        ({"weights": {"brief": 1}}, "weights.brief", "invalid_value", "unknown objective 'brief'; valid: brevity, cl"),
        ({"weights": {"truth": 1}}, "weights.truth", "invalid_value", "objective 'truth' has no guide on this server"),
        ({"weights": None}, "weights", "invalid_value", "alignment.weights: input should be a valid dictionary; got N"),
        ({"weights": [1, 2]}, "weights", "invalid_value", "alignment.weights: input should be a valid dictionary; go"),
        ({"weights": {"helpfulness": 60}}, "weights", "out_of_range",
         "the exponent of 'helpful' must lie in [-100, 100]; got 120"),
        # guides
        ({"guides": {"brif": 1}}, "guides.brif", "invalid_value",
         "unknown guide 'brif'; valid: base, brief, helpful. Did you mean 'brief'?"),
        ({"guides": {"../../etc/passwd": 1}}, "guides.../../etc/passwd", "invalid_value", "unknown guide '../../etc/p"),
        ({"guides": None}, "guides", "invalid_value", "alignment.guides: input should be a valid dictionary; got None"),
        # strategy
        ({"strategy": None}, "strategy", "invalid_value", "alignment.strategy: input should be a valid string; got No"),
        ({"strategy": ["guided"]}, "strategy", "invalid_value", "alignment.strategy: input should be a valid string; "),
        ({"strategy": ""}, "strategy", "invalid_value", "unknown strategy ''; valid: args, beam, "),
        ({"strategy": "Guided"}, "strategy", "invalid_value",
         "unknown strategy 'Guided'; valid: args, beam, "),
        ({"strategy": "../../etc"}, "strategy", "invalid_value", "unknown strategy '../../etc'; valid: args, beam, "),
        ({"strategy": "decoders.guided:Guided"}, "strategy", "invalid_value", "unknown strategy 'decoders.guided:Guid"),
        ({"strategy": "x" * 2**20}, "strategy", "invalid_value", "unknown strategy 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
        ({"strategy": "guided"}, "", "missing_required_parameter",
         "strategy 'guided' needs alignment.guides or alignment.prompts or alignment.weights"),
        ({"strategy": "mod"}, "", "missing_required_parameter",
         "strategy 'mod' needs alignment.guides or alignment.prompts"),
        ({"strategy": "plain", "weights": {"brevity": 1}}, "weights", "unsupported_pair",
         "alignment.weights cannot be honoured by strategy 'plain'"),
        ({"strategy": "mod", "weights": {"brevity": 1}}, "weights", "unsupported_pair",
         "alignment.weights cannot be honoured by strategy 'mod'"),
        ({"strategy": "dera", "guides": {"brief": 1}}, "guides", "unsupported_pair",
         "alignment.guides cannot be honoured by strategy 'dera'"),
        # keys
        ({"weight": {"brevity": 1}}, "weight", "unknown_parameter",
         "unknown key 'weight'; valid: budget, given, guides, on_error, par"),
        ({"want": ["trace"]}, "want", "unknown_parameter", "unknown key 'want'; valid: budget, given, guides, on_erro"),
        # params
        ({"strategy": "genarm", "weights": {"brevity": 1}, "params": {"alfa": 1}}, "params.alfa", "unknown_parameter",
         "strategy 'genarm': unknown parameter 'alfa'; valid: alpha. Did you mean 'alpha'?"),
        ({"strategy": "genarm", "weights": {"brevity": 1}, "params": {"alpha": "1"}}, "params.alpha", "invalid_value",
         "alignment.params.alpha: input should be a valid number; got '1'"),
        ({"strategy": "genarm", "weights": {"brevity": 1}, "params": {"alpha": True}}, "params.alpha", "invalid_value",
         "alignment.params.alpha: input should be a valid number; got True"),
        ({"strategy": "genarm", "weights": {"brevity": 1}, "params": {"alpha": None}}, "params.alpha", "invalid_value",
         "alignment.params.alpha: input should be a valid number; got None"),
        ({"strategy": "genarm", "weights": {"brevity": 1}, "params": {"alpha": math.inf}}, "params.alpha",
         "invalid_value", "alignment.params.alpha: input should be a finite number; got inf"),
        ({"strategy": "genarm", "weights": {"brevity": 1}, "params": {"alpha": 1e308}}, "params", "out_of_range",
         "the exponent of 'brief' must lie in [-100, 100]; got 1e+308"),
        ({"strategy": "genarm", "weights": {"helpfulness": 1}, "params": {"alpha": 1.7e308}}, "params", "out_of_range",
         "the exponent of 'helpful' must lie in [-100, 100]; got inf"),
        ({"strategy": "genarm", "weights": {"brevity": 1}, "params": []}, "params", "invalid_value",
         "alignment.params: input should be a valid dictionary; got list"),
        ({"weights": {"brevity": 1}, "params": {"plausibility": 1.5}}, "params.plausibility", "invalid_value",
         "alignment.params.plausibility: input should be less than or equal to 1; got 1.5"),
        ({"weights": {"brevity": 1}, "params": {"guides": {}}}, "params.guides", "unknown_parameter",
         "write alignment.guides, beside params"),
        ({"params": {"alpha": 1}}, "params.alpha", "unknown_parameter",
         "strategy 'plain': unknown parameter 'alpha'; valid: none"),
        ({"strategy": "dera", "params": {"lambda": 1}}, "params.aligned", "missing_required_parameter",
         "alignment.params.aligned is required"),
        ({"strategy": "dera", "params": {"aligned": "brief"}}, "params.lambda", "missing_required_parameter",
         "alignment.params.lambda is required"),
        ({"strategy": "dera", "params": {"aligned": "brief", "lambda_": 1}}, "params.lambda_", "unknown_parameter",
         "strategy 'dera': unknown parameter 'lambda_'; valid: aligned, lambda. Did you mean 'lambda'?"),
        ({"strategy": "dera", "params": {"aligned": "/etc/passwd", "lambda": 1}}, "params", "invalid_value",
         "unknown guide '/etc/passwd'; valid: brief, helpful"),
        ({"strategy": "dera", "params": {"aligned": "brief", "lambda": 1000}}, "params", "out_of_range",
         "the exponent of 'base' must lie in [-100, 100]; got -999"),
        ({"strategy": "contrastive", "params": {"amateur": "brief", "alpha": -0.1}}, "params.alpha", "invalid_value",
         "alignment.params.alpha: input should be greater than or equal to 0; got -0.1"),
        ({"strategy": "proxy_tuning", "params": {"expert": "brief", "antiexpert": "brief"}}, "params", "invalid_value",
         "expert and antiexpert must be two guides"),
        ({"strategy": "mod", "guides": {"brief": 0.5, "helpful": 0.6}}, "guides", "invalid_value",
         "guides must sum to 1 under 'mod'; these sum to 1.1"),
        # return
        ({"return": "trace"}, "return", "invalid_value", "alignment.return: input should be a valid list; got 'trace'"),
        ({"return": ["trace"]}, "return", "invalid_value", "strategy 'plain': unknown return 'trace'; valid: none"),
        ({"weights": {"brevity": 1}, "return": ["trase"]}, "return", "invalid_value",
         "strategy 'guided': unknown return 'trase'; valid: trace. Did you mean 'trace'?"),
        ({"weights": {"brevity": 1}, "return": [1]}, "return.0", "invalid_value",
         "alignment.return.0: input should be a valid string; got 1"),
    ],
)  # fmt: skip
def test_a_refusal_names_its_key(raw: object, param: str, code: str, message: str) -> None:
    error = refusal(raw)
    assert (error.param, error.code) == (f"alignment.{param}".rstrip(".") if not param else f"alignment.{param}", code)
    assert error.message.startswith(message)


@pytest.mark.parametrize("field", ["weights", "guides", "params"])
def test_a_hundred_thousand_keys(field: str) -> None:
    many = {f"k{i}": 1 for i in range(10**5)}
    assert refusal({"strategy": "guided", "weights": {"brevity": 1}, field: many}).param == f"alignment.{field}.k0"


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_infinity_in_disguise(number: str) -> None:
    """1e999 is a JSON number, and infinite once read."""
    assert refusal({"weights": {"brevity": json.loads(number)}}).param == "alignment.weights.brevity"


def test_every_parameter_is_described() -> None:
    for name in ("contrastive", "dera", "genarm", "guided", "mod", "plain", "proxy_tuning"):
        for key, schema in STRATEGIES[name].parameters.model_json_schema().get("properties", {}).items():
            assert schema.get("description"), f"{name}.{key}"


def test_a_default_that_needs_weights_cannot_be_a_default() -> None:
    with pytest.raises(ConfigError, match="default_strategy: strategy 'guided' needs"):
        check_config(CONFIG.model_copy(update={"default_strategy": "guided"}))


SMALL = CONFIG.model_copy(
    update={
        "rewards": {"short": RewardConfig(kind="length", target=20)},
        "max_candidates": 8,
        "max_draws": 40,
        "engine": {"max_logprobs": 12},
    }
)


@pytest.mark.parametrize(
    ("strategy", "params", "param", "message"),
    [
        ("args", {}, "k", "strategy 'args' is bounded by max_candidates, 8: alignment.params.k must be at most 8"),
        ("transfer_q", {"k": 4, "rollouts": 3}, "rollouts", "alignment.params.k * rollouts must be at most 8"),
        ("best_of_n", {}, "n", "'best_of_n' is bounded by max_candidates, 8: alignment.params.n must be at most 8"),
        (
            "qalign",
            {"chains": 4, "steps": 10},
            "steps",
            "is bounded by max_draws, 40: alignment.params.chains * (steps",
        ),
        ("particles", {"n": 9}, "n", "alignment.params.n must be at most 8 on this server; got 9"),
    ],
)
def test_what_is_too_much_is_named(strategy: str, params: dict[str, Any], param: str, message: str) -> None:
    """Strategy, limit, and the parameters that come to too much: those that it has, and no other."""
    with pytest.raises(ApiError, match=re.escape(message)) as caught:
        plan({"strategy": strategy, "reward": "short", "params": params}, SMALL)
    assert (caught.value.param, caught.value.code) == (f"alignment.params.{param}", "out_of_range")


def test_diverse_pools_read_no_more_log_probs_than_the_engine_shows() -> None:
    wide = SMALL.model_copy(update={"max_candidates": 64})
    asked = {"strategy": "best_of_n", "reward": "short", "params": {"n": 16, "diverse": {"groups": 4, "penalty": 0.5}}}
    with pytest.raises(ApiError, match=r"engine\.max_logprobs, 12.*got 16") as caught:
        plan(asked, wide)
    assert caught.value.param == "alignment.params.n"
    assert plan(asked | {"params": {"n": 16}}, wide).name == "best_of_n"


def test_a_mixture_of_zeros_is_refused() -> None:
    error = refusal({"guides": {"base": 0, "helpful": 0}})
    assert "would draw every token alike" in error.message


def test_the_parameters_that_run_hold_the_defaults() -> None:
    """Under their public names, without what the server supplies."""
    planned = plan({"strategy": "soft_best_of_n", "reward": "short", "params": {"lambda": 0.5, "n": 4}}, SMALL)
    assert planned.params == {"n": 4, "lambda": 0.5}
    assert plan({"strategy": "qalign", "reward": "short", "params": {"chains": 2, "steps": 3}}, SMALL).params == {
        "beta": 1.0, "steps": 3, "chains": 2, "burn_in": 0, "thin": 1, "until": None, "answer": "mbr",
        "extractor": "number", "target": "proposal",
    }  # fmt: skip
