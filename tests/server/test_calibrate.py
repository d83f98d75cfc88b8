"""Calibration: its figures against enumeration on the toy, and the file that it writes."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.decoders.conftest import START, TOY
from trimtab.rewards.protocols import Question, Response
from trimtab.runtime.toy_engine import ToyEngine, ToyModel
from trimtab.server.calibrate import (
    EXPONENTS,
    Calibration,
    calibrate,
    fit_gain,
    read_prompts,
    set_key,
    write_calibrations,
)
from trimtab.server.config import Config, ConfigError
from trimtab.server.scoring import Scoring


@dataclass(frozen=True)
class Letters:
    """The number of zeros in an answer."""

    labels: tuple[str, ...] = ("score",)
    needs: frozenset[str] = frozenset()

    async def __call__(self, question: Question, responses: Sequence[Response]) -> list[list[float]]:
        return [[float(list(r.tokens).count(0))] for r in responses]


@dataclass(frozen=True)
class Constant(Letters):
    """The same for every answer."""

    async def __call__(self, question: Question, responses: Sequence[Response]) -> list[list[float]]:
        return [[7.0] for _ in responses]


class Toy:
    """A host whose every prompt is the start of a response."""

    def __init__(self, engine: ToyEngine) -> None:
        self.engine = engine
        self.tokenizer = self

    async def render(self, messages: object) -> list[int]:
        return [START]

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        return self.engine.text(tokens)


CONFIG = Config.model_validate(
    {
        "base": "org/base",
        "guides": {"arm": "org/arm"},
        "rewards": {"zeros": {"kind": "length", "target": 1}},
        "objectives": {"zeros": {"reward": "zeros", "guide": "arm"}, "unscored": {"guide": "arm"}},
    }
)


async def test_a_reward_that_makes_no_difference_is_named_and_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """Not an error that loses what was measured of the others."""
    caplog.set_level(logging.WARNING, logger="trimtab")
    config = Config.model_validate(
        {
            "base": "org/base",
            "rewards": {name: {"kind": "length", "target": 1} for name in ("zeros", "same")},
            "objectives": {"zeros": {"reward": "zeros"}, "same": {"reward": "same"}},
        }
    )
    engine = ToyEngine(ToyModel.load(TOY, {"base": "base"}), start=START)
    scoring = Scoring(config=config, scorers={"zeros": Letters(), "same": Constant()}, host=Toy(engine))
    prompts = [({"role": "user", "content": str(i)},) for i in range(4)]
    assert (await calibrate(scoring, prompts, answers=4, max_tokens=5)).keys() == {"zeros"}
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("objectives.same.reward makes no difference on this model")


@pytest.mark.slow
async def test_the_figures_are_the_law_s() -> None:
    """Mean, spread and slope of enumeration, within 5 standard errors."""
    model = ToyModel.load(TOY, {"base": "base", "arm": "arm"})
    scoring = Scoring(config=CONFIG, scorers={"zeros": Letters()}, host=Toy(ToyEngine(model, start=START)))

    def moments(alpha: float) -> tuple[float, float]:
        law = list(model.sequences(model.next({"base": 1.0, "arm": alpha})))
        mean = math.fsum(p * y.count(0) for y, p in law)
        return mean, math.sqrt(math.fsum(p * (y.count(0) - mean) ** 2 for y, p in law))

    n, answers = 400, 4
    prompts = [({"role": "user", "content": str(i)},) for i in range(n)]
    found = await calibrate(scoring, prompts, answers=answers, max_tokens=model.max_tokens)
    assert found.keys() == {"zeros"}
    mean, spread = moments(0.0)
    assert found["zeros"].mean == pytest.approx(mean, abs=5 * spread / math.sqrt(n * answers))
    assert found["zeros"].spread == pytest.approx(spread, rel=0.1)
    rises = [(moments(a)[0] - mean) / spread for a in EXPONENTS]
    slope = math.fsum(a * r for a, r in zip(EXPONENTS, rises, strict=True)) / math.fsum(a * a for a in EXPONENTS)
    assert found["zeros"].slope == pytest.approx(slope, abs=5 * found["zeros"].error + 0.05 * abs(slope))
    assert found["zeros"].error < 0.2


def test_a_gain_is_taken_only_from_a_clear_rise() -> None:
    plain = Calibration(mean=0.0, spread=1.0)
    clear = fit_gain(plain, [[a * 2.0, a * 2.1, a * 1.9] for a in EXPONENTS])
    assert clear.gain == pytest.approx(0.5)
    assert fit_gain(plain, [[a, -a, 2 * a] for a in EXPONENTS]).gain is None
    assert fit_gain(plain, [[-a, -a, -1.1 * a] for a in EXPONENTS]).gain is None


TEXT = """# mine
base: x
objectives:
  warmth:   # kind words
    guide: warmth
    gain: 1.0  # to be measured
  brevity: {guide: brief}
presets: {}
"""


def test_the_file_keeps_what_it_had() -> None:
    found = {"warmth": Calibration(mean=1.0, spread=2.0, gain=0.5), "brevity": Calibration(mean=-1.0, spread=3.0)}
    text = write_calibrations(TEXT, found)
    assert yaml.safe_load(text)["objectives"] == {
        "warmth": {"guide": "warmth", "gain": 0.5, "mean": 1, "spread": 2},
        "brevity": {"guide": "brief", "mean": -1, "spread": 3},
    }
    assert "# kind words" in text
    assert "gain: 0.5  # to be measured" in text
    assert write_calibrations(text, found) == text


def test_a_key_goes_to_the_end_of_a_file_without_a_last_line_break() -> None:
    assert set_key("a:\n  b: 1", ("a",), "c", "2") == "a:\n  b: 1\n  c: 2"
    assert set_key("a: {}", ("a",), "c", "2") == "a: {c: 2}"


def test_prompts_are_lines_of_text_or_json(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_text('hello\n\n{"messages": [{"role": "user", "content": "hi"}]}\n')
    assert read_prompts(path) == [({"role": "user", "content": "hello"},), ({"role": "user", "content": "hi"},)]
    for bad in ("one\n", '{"message": 1}\nx\n', "{no json\nx\n"):
        path.write_text(bad)
        with pytest.raises(ConfigError, match="--prompts"):
            read_prompts(path)
    with pytest.raises(ConfigError, match="--prompts"):
        read_prompts(tmp_path / "none")
