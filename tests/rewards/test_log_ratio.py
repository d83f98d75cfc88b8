"""The log-ratio on the enumerable toy, where every response and its exact probability can be listed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.decoders.conftest import START, TOY, tilted, total_variation
from trimtab.decoders.protocols import BASE, Tokens
from trimtab.rewards import KINDS
from trimtab.rewards.log_ratio import LogRatio
from trimtab.rewards.protocols import Question, Response
from trimtab.runtime.toy_engine import Prefix, ToyEngine, ToyModel


class Toy:
    """A `Host` over the toy."""

    def __init__(self) -> None:
        self.engine = ToyEngine(ToyModel.load(TOY, {"base": "base", "arm": "arm"}), start=START)
        self.tokenizer = None

    async def render(self, messages: Sequence[Mapping[str, str]]) -> Tokens:
        raise AssertionError("the request's own prompt is there")


@pytest.fixture
def host() -> Toy:
    return Toy()


def question(instructions: list[str] | None = None) -> Question:
    """The instructed prompt has the response begun with a 0, so that it can be told from the plain one."""

    async def instruct(instruction: str) -> Tokens:
        assert instructions is not None
        instructions.append(instruction)
        return (START, 0)

    return Question(messages=({"role": "user", "content": "Hi"},), prompt=(4, START), instruct=instruct)


def law(host: Toy, mixture: Mapping[str, float]) -> dict[Prefix, float]:
    return dict(host.engine.model.sequences(host.engine.model.next(mixture)))


async def rewards(scorer: LogRatio, answers: Sequence[Prefix]) -> dict[Prefix, float]:
    rows = await scorer(question(), [Response(text="", tokens=y) for y in answers])
    return {y: r for y, [r] in zip(answers, rows, strict=True)}


@pytest.mark.parametrize("strong", ["arm", {BASE: 1.0, "arm": 0.7}, {BASE: -1.0, "arm": 2.0}])
@pytest.mark.parametrize("weak", [BASE, {BASE: 0.5, "arm": 0.5}])
async def test_tilting_the_weak_model_by_it_is_the_strong_model(host: Toy, strong: Any, weak: Any) -> None:
    scorer = KINDS["log_ratio"].build({"strong": strong, "weak": weak}, host=host)
    weak_law, strong_law = (law(host, m if isinstance(m, dict) else {BASE: 0.0} | {m: 1.0}) for m in (weak, strong))
    r = await rewards(scorer, list(weak_law))
    assert sum(p * math.exp(r[y]) for y, p in weak_law.items()) == pytest.approx(1, abs=1e-12)
    assert total_variation(tilted(weak_law, r, 1.0), strong_law) < 1e-12
    assert total_variation(weak_law, strong_law) > 0.01


async def test_it_is_the_sum_over_the_response_alone_and_scales(host: Toy) -> None:
    tables = host.engine.model.tables
    y = (0, 1, 2)
    steps = [math.log(tables["arm"][y[:t]][z] / tables[BASE][y[:t]][z]) for t, z in enumerate(y)]
    for params, scale in [({}, 1), ({"beta": 0.1}, 0.1), ({"length_normalised": True}, 1 / 3)]:
        scorer = KINDS["log_ratio"].build({"strong": "arm", **params}, host=host)
        assert (await rewards(scorer, [y]))[y] == pytest.approx(scale * sum(steps), abs=1e-12)


@pytest.mark.parametrize("normalised", [False, True])
async def test_an_empty_response_scores_nothing(host: Toy, normalised: bool) -> None:
    scorer = KINDS["log_ratio"].build({"strong": "arm", "length_normalised": normalised}, host=host)
    assert await rewards(scorer, [()]) == {(): 0}


async def test_an_instruction_is_told_to_the_strong_side_alone(host: Toy) -> None:
    scorer = KINDS["log_ratio"].build({"strong": BASE, "instruction": "Be brief."}, host=host)
    base = host.engine.model.tables[BASE]
    y = (1, 2)
    expected = sum(math.log(base[(0, *y[:t])][z] / base[y[:t]][z]) for t, z in enumerate(y))
    instructions: list[str] = []
    [[value]] = await scorer(question(instructions), [Response(text="", tokens=y)])
    assert value == pytest.approx(expected, abs=1e-12)
    assert instructions == ["Be brief."]


async def test_a_row_depends_on_its_own_response_alone(host: Toy) -> None:
    scorer = KINDS["log_ratio"].build({"strong": "arm"}, host=host)
    answers = list(law(host, {BASE: 1}))
    together = await rewards(scorer, answers)
    assert together == {y: r for one in answers for y, r in (await rewards(scorer, [one])).items()}
    assert await rewards(scorer, answers[::-1]) == together
    assert len(set(together.values())) > 30


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({}, "strong is required"),
        ({"strong": ""}, "strong must name"),
        ({"strong": {}}, "strong must name"),
        ({"strong": BASE}, "strong and weak must differ"),
        ({"strong": {"arm": 1.0}, "weak": "arm"}, "strong and weak must differ"),
        ({"strong": "arm", "beta": 0}, "beta: .*greater than 0; got '0'"),
        ({"strong": "arm", "beta": math.inf}, "beta: .*finite"),
        ({"strong": {"arm": math.nan}}, "strong.*finite"),
        ({"strong": "arm", "instruction": ""}, "instruction"),
        ({"strong": "arm", "host": 1}, "unknown parameter 'host'; valid: beta, "),
    ],
)
def test_refused(host: Toy, params: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        KINDS["log_ratio"].build(params, host=host)


async def test_an_unknown_member_is_an_error_and_its_members_can_be_asked(host: Toy) -> None:
    scorer = KINDS["log_ratio"].build({"strong": {"arm": 1.0, "nobody": 1.0}}, host=host)
    assert scorer.members == {BASE, "arm", "nobody"}
    with pytest.raises(ValueError, match="nobody"):
        await rewards(scorer, [(0, 2)])
