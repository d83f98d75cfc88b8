"""The tree of rewards: what it reads, and its arithmetic."""

from __future__ import annotations

import json
import math

import pytest

from trimtab.rewards.protocols import RewardError
from trimtab.server.config import Config
from trimtab.server.errors import ApiError
from trimtab.server.request.reward_tree import Score, evaluate, explain, parse_spec, weigh_objectives

CONFIG = Config.model_validate(
    {
        "base": "org/base",
        "rewards": {"rm": {"kind": "length", "target": 1}, "rm.v2": {"kind": "length", "target": 1},
                    "short": {"kind": "length", "target": 1}},
        "objectives": {"good": {"reward": "rm.good", "mean": 2.0, "spread": 4.0}, "brief": {"reward": "short"}},
    }
)  # fmt: skip


def test_weights_are_of_standardised_objectives() -> None:
    told = evaluate(
        weigh_objectives({"good": 3.0, "brief": -1.0}, CONFIG), {"rm.good": [6.0, 2.0], "short": [1.0, -1.0]}, {}
    )
    assert told.values == [3 * 1.0 - 1.0, 3 * 0.0 + 1.0]
    assert told.raw == {"good": [6.0, 2.0], "brief": [1.0, -1.0]}
    assert told.transformed == {"good": [1.0, 0.0], "brief": [1.0, -1.0]}


def test_a_name_with_a_dot_is_a_reward_before_it_is_a_label() -> None:
    assert [leaf.name for leaf in parse_spec("rm.v2", CONFIG, at="r").leaves] == ["rm.v2"]
    [leaf] = parse_spec("rm.v2.good", CONFIG, at="r").leaves
    assert (leaf.reward, leaf.label) == ("rm.v2", "good")


def test_a_transform_of_a_combination_is_against_the_combined_references() -> None:
    spec = parse_spec(
        {"of": ["rm.a", "short"], "combine": "min", "transform": {"par": {"references": 2}}}, CONFIG, at="r"
    )
    assert spec.references == 2
    told = evaluate(spec, {"rm.a": [1.0], "short": [3.0]}, {"rm.a": [0.0, 5.0], "short": [9.0, 2.0]})
    sigmoid = [1 / (1 + math.exp(-(1.0 - reference))) for reference in (0.0, 2.0)]
    assert told.values == [pytest.approx(sum(sigmoid) / 2)]
    assert told.raw["par(min(rm.a, short))"] == [1.0]


def test_nested_transforms_see_transformed_references() -> None:
    inner = {"of": "short", "transform": {"clip": {"low": 0, "high": 1}}}
    spec = parse_spec({"of": inner, "transform": {"centre": {"references": 2}}}, CONFIG, at="r")
    assert evaluate(spec, {"short": [5.0]}, {"short": [-3.0, 0.5]}).values == [1.0 - 0.25]


def test_a_score_is_a_number_that_carries_its_explanation() -> None:
    breakdown = evaluate(weigh_objectives({"good": 3.0}, CONFIG), {"rm.good": [6.0, 2.0]}, {})
    score = Score(breakdown.values[1], breakdown.explain(1))
    assert explain(score) == {"value": 0.0, "rewards": {"good": 2.0}, "transformed": {"good": 0.0}}
    assert json.dumps([score]) == "[0.0]"
    assert explain(0.0) == explain(None) == explain(score + 1) == {}, "a number that was computed is another"


@pytest.mark.parametrize("node", [
    {"of": ["rm.a", "short"]},
    {"of": {"rm.a": 2.0, "short": 1.0}},
    {"of": ["rm.a", "short"], "combine": "mean"},
    {"of": ["rm.a", "short"], "combine": "uwo"},
    {"of": ["rm.a", "short"], "combine": "mean_minus_std"},
    {"of": "rm.a", "transform": {"standardise": {"mean": 0, "std": 0.5}}},
    {"of": "rm.a", "transform": {"centre": {"references": 2}}},
    {"of": {"of": "rm.a", "transform": {"centre": {"references": 2}}}, "transform": "par"},
    {"of": "rm.a", "transform": {"lsc": {"references": 2}}},
])  # fmt: skip
def test_scores_that_stop_being_numbers_are_an_error_that_names_the_rewards(node: object) -> None:
    """Each score is a float; what is made of them is none. Of scores of a sane size it always is."""
    spec = parse_spec(node, CONFIG, at="r")
    huge, references = {"rm.a": [1.7e308, 1.0], "short": [1.7e308, -1.7e308]}, {"rm.a": [-1.7e308, -1.7e308]}
    with pytest.raises(RewardError, match=r"is no finite number: 'rm\.a'.* gave scores too large for it$"):
        evaluate(spec, huge, references | {"short": [0.0, 0.0]})
    sane = {"rm.a": [1e9, -1e9], "short": [1e9, 0.0]}
    assert all(map(math.isfinite, evaluate(spec, sane, {"rm.a": [1e9, -1e9], "short": [0.0, 1.0]}).values))


@pytest.mark.parametrize("weight", [10**400, -(10**400), 1e7, math.nan, math.inf, True, "1", None])
def test_a_weight_in_a_tree_is_a_number_within_bounds(weight: object) -> None:
    with pytest.raises(ApiError, match="must be a number within"):
        parse_spec({"of": {"short": weight}}, CONFIG, at="r")


def test_a_tree_of_too_many_rewards_is_refused_before_it_is_read() -> None:
    with pytest.raises(ApiError, match="more than 32 rewards"):
        parse_spec({"of": ["nothing"] * 33}, CONFIG, at="r")
