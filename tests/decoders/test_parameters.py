"""Parameters as a client writes them: JSON, strictly."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from trimtab.decoders import STRATEGIES
from trimtab.decoders.shared.answers import Extractor

GOOD: list[tuple[str, dict[str, Any]]] = [
    ("best_of_n", {"n": 4}),
    ("mbr", {"n": 4, "utility": "token_f1", "weighting": "softmax", "beta": 0.5}),
    ("rejection", {"n": 8, "beta": 1}),
    ("soft_best_of_n", {"n": 4, "lambda": 0.5}),
    ("speculative_rejection", {"n": 8, "alpha": 0.25, "decisions": [16, 32]}),
    ("vote", {"n": 4, "extractor": "text", "weighting": "reward"}),
    ("vote", {"extractor": {"regex": "([A-D])"}}),
    ("vote", {"extractor": {"json": "a.b[0]"}}),
]
BAD: list[tuple[str, dict[str, Any]]] = [
    ("best_of_n", {"n": 0}),
    ("mbr", {"utility": "bleu"}),
    ("rejection", {"beta": 0}),
    ("soft_best_of_n", {"n": 4}),
    ("soft_best_of_n", {"lambda": 0}),
    ("speculative_rejection", {"alpha": 1}),
    ("speculative_rejection", {"decisions": ["16"]}),
    ("vote", {"extractor": "first"}),
    ("vote", {"extractor": {"xpath": "a"}}),
    ("vote", {"extractor": {"regex": 1}}),
]


@pytest.mark.parametrize(("name", "params"), GOOD)
def test_good_ones_build_a_strategy(name: str, params: dict[str, Any]) -> None:
    strategy = STRATEGIES[name].build(params, guides={})
    assert strategy.n == params.get("n", strategy.n)


def test_an_extractor_s_schema_stands_by_itself() -> None:
    """The catalogue shows parameters one by one, without the definitions that a $ref would lean on."""
    assert "$ref" not in str(TypeAdapter(Extractor).json_schema())


@pytest.mark.parametrize(("name", "params"), BAD)
def test_bad_ones_are_refused(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        STRATEGIES[name].parameters.model_validate(params)
