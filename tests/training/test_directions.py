"""Directions: what they choose of rated answers, how the server says them, and what a model learns of both."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine import family
from tests.training.test_rendering import CHATML, HI
from trimtab.recipes.base import DEMO
from trimtab.runtime.contexts import Instruction
from trimtab.server.config import load
from trimtab.server.request.messages import CHAT, instruct
from trimtab.server.request.preference_prompts import build_direction, build_template
from trimtab.training import card, cli, directions
from trimtab.training.data import DataError, Rated, read_preferences
from trimtab.training.rendering import Renderer
from trimtab.training.rows import Rows
from trimtab.training.settings import Settings

CONE = {"axis": {"use": 1.0}, "degrees": 45.0}
PROMPTS: dict[str, Any] = {"plain": {"text": "{h} {w}", "slots": {"h": "use", "w": "-brevity"}, "cone": CONE}}


def write_prompts(folder: Path, prompts: Any = PROMPTS) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"base": "base", "preference_prompts": prompts}))
    return path


def rate(prompt: str, **answers: tuple[float, float]) -> Rated:
    rated = tuple((text, {"use": use, "brevity": brevity}) for text, (use, brevity) in answers.items())
    return Rated(prompt=({"role": "user", "content": prompt},), answers=rated, line=1)


def test_a_direction_takes_the_answer_farthest_along_it() -> None:
    """Against the sum by hand, in the spreads' units: of 3.0 and 0.5 only the ratio to others' counts."""
    pools = [rate("a", x=(0, 0), y=(6, 0), z=(0, 1)), rate("b", x=(0, 1), y=(0, 0), z=(6, 0))]
    for pool, z in zip(pools, directions.standardise(pools, ["use", "brevity"]), strict=True):
        raw = np.array([[scores["use"], scores["brevity"]] for _, scores in pool.answers])
        for angle in range(-180, 180, 7):
            u = (math.cos(math.radians(angle)), math.sin(math.radians(angle)))
            # A fair coin-like column has one unit per standard deviation: sqrt(2) / 3 of its range of 6, or of 1.
            worth = [u[0] * use / (6 * math.sqrt(2) / 3) + u[1] * brief / (math.sqrt(2) / 3) for use, brief in raw]
            assert directions.choose_answer(z, np.array(u), None) == worth.index(max(worth))
            assert directions.choose_answer(z, np.array(u), 1e6) == worth.index(max(worth))


def test_within_a_radius_an_answer_good_at_both_is_not_everybodys_favourite() -> None:
    z = np.array([(2.0, 0.0), (1.5, 1.5), (0.0, 2.0)])
    axes = [np.array([math.cos(math.radians(a)), math.sin(math.radians(a))]) for a in (0, 20, 45, 70, 90)]
    assert [directions.choose_answer(z, u, None) for u in axes] == [0, 1, 1, 1, 2]
    assert [directions.choose_answer(z, u, 1.5) for u in axes] == [0, 0, 1, 2, 2]


def test_scores_that_never_differ_choose_nothing() -> None:
    with pytest.raises(DataError, match="'brevity'"):
        directions.standardise([rate("a", x=(0, 1), y=(6, 1))], ["use", "brevity"])


@pytest.mark.parametrize("angle", [-45, -17.3, 0, 30.5, 45])
@pytest.mark.parametrize("name", ["dpa", "kindness"])
def test_a_direction_is_said_as_the_server_says_it(name: str, angle: float) -> None:
    """The demo's configuration, read by the server and by the trainer; a client's system message follows the text."""
    prompts = directions.read_prompts(DEMO / "directions.yaml", "directional")
    assert set(prompts) == {"dpa", "kindness"}
    config = load(DEMO / "directions.yaml")
    theta = angle + 45 * (name == "kindness")
    served = build_direction({"angle": theta}, {"prompt": name}, config, at="weights")
    assert served.template is not None
    for messages in ([*HI], [{"role": "system", "content": "Be kind."}, *HI]):
        expected = instruct(
            CHAT, {"messages": messages}, Instruction(served.template.render(served.v), served.template.role)
        )
        template = build_template(prompts[name])
        assert directions.state(template, np.array(served.v), messages) == expected["messages"]
        if messages == [*HI]:
            assert expected["messages"][0]["content"].endswith(f"*{round(100 * math.sin(math.radians(theta)))}")


def renderer(folder: Path) -> Renderer:
    family.base(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder / "base")
    return Renderer.of(str(folder / "base"))


def make_rows(folder: Path, rated: list[Rated], **more: Any) -> Rows:
    prompts = directions.read_prompts(write_prompts(folder), "reader")
    choice = directions.Choice(directions=8, radius=None, seed=0)
    options = {"max_length": 200, "heldout": 0.3, **more}
    return directions.make_direction_rows(rated, prompts, choice, renderer(folder), **options)


def test_rows_say_a_direction_of_the_cone_and_the_answer_that_it_likes(tmp_path: Path) -> None:
    """Slot -brevity shows the opposite: a direction that says 90 -40 is for brevity. A prompt is in one part alone."""
    rated = [rate(f"q{i}", brief=(1.5, 2), useful=(2, 1), vain=(-1, -1)) for i in range(12)]
    rows = make_rows(tmp_path, rated)
    decode = Renderer.of(str(tmp_path / "base")).tokenizer.decode
    z = directions.standardise(rated, ["use", "brevity"])[0]
    shown: set[int] = set()
    for row in rows.all:
        text = decode(row["prompt_ids"])
        h, w = map(int, text.removeprefix("<s>system\n").split("</s>")[0].split())
        shown.add(w)
        assert h >= 70
        assert h * h + w * w == pytest.approx(10_000, rel=0.02)
        best = int((z @ np.array([h, -w])).argmax())
        assert decode(row["chosen_ids"]) == f"{rated[0].answers[best][0]}</s>"
        if row["other_ids"]:
            g, v = map(int, decode(row["other_ids"]).removeprefix("<s>system\n").split("</s>")[0].split())
            assert int((z @ np.array([g, -v])).argmax()) != best
    assert 0 < sum(not row["other_ids"] for row in rows.all) < len(rows.all)
    assert min(shown) < -50
    assert max(shown) > 50
    questions = [{decode(row["prompt_ids"]).split("user\n")[1] for row in part} for part in (rows.train, rows.heldout)]
    assert questions[0]
    assert questions[1]
    assert not questions[0] & questions[1]
    assert len(rows.all) == 12 * 8
    assert make_rows(tmp_path, rated, max_length=20).dropped == {"longer than 20 tokens": 12 * 8}


def test_only_ratings_by_every_objective_are_read(tmp_path: Path) -> None:
    answers = [{"response": text, "use": i, "brevity": -i} for i, text in enumerate(("a", "b", "b", " "))]
    rows = [
        {"prompt": "hi", "completions": answers},
        {"prompt": "ho", "completions": answers[1:]},
        {"prompt": "hi", "chosen": "a", "rejected": "b"},
        {"prompt": "hi", "responses": ["a", "b"], "scores": [1, 2]},
        *({"prompt": "he", "response": text, "use": 1, "brevity": 2} for text in "ab"),
    ]
    path = tmp_path / "ratings.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    read = read_preferences(str(path), objectives=["brevity", "use"])
    assert [[text for text, _ in one.answers] for one in read.rated] == [["a", "b"], ["a", "b"]]
    assert read.dropped == {"fewer than two answers": 1}
    assert not read.pairs
    assert [line.split(":")[0] for line in read.wrong] == ["line 3", "line 4"]
    assert "hold no ratings" in read.wrong[0]
    assert "'brevity'" in read.wrong[1]


WRONG: dict[str, tuple[Any, str]] = {
    "nobody's": ({"a": PROMPTS["plain"] | {"reader": "other"}}, "none is for reader 'mine'; there: a: other"),
    "no text": ({"a": {"slots": {"h": "use"}}}, "preference_prompts.a: give either"),
    "a misspelt key": ({"a": {"texts": "x"}}, "preference_prompts.a.texts"),
    "none": ({}, "none is for reader"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_prompt_that_says_no_direction_is_named(tmp_path: Path, case: str) -> None:
    prompts, message = WRONG[case]
    with pytest.raises(DataError, match=message):
        directions.read_prompts(write_prompts(tmp_path, prompts), "mine")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("directional", "name a configuration"),
        ("directional --preference-prompts x --beta 0.1", "--beta is for guide, twin"),
        ("directional --preference-prompts x --score use", "--score is for guide, twin, reward, value"),
        ("directional --preference-prompts x --radius 0", "--radius must be above 0"),
        ("reward --likelihood 0.1", "--likelihood is for guide, twin, and this is a reward"),
        ("guide --score use brevity", "several names after --score are for a reward, and this is a guide"),
        ("guide --radius 2", "--radius is for directional, and this is a guide"),
    ],
)
def test_options_of_another_kind_are_refused(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse([*line.split(), "--base", "b", "--data", "d", "--out", "o"])
    assert message in capsys.readouterr().err


def test_the_lines_that_serve_it_name_it_as_the_reader(tmp_path: Path) -> None:
    """Into the very file that the preference prompts are from, if they are its reader's there; else beside it."""
    served = {"plain": PROMPTS["plain"] | {"reader": "dpa"}}
    config = write_prompts(tmp_path, served)
    settings = Settings(kind="directional", base="b", data=("d",), out=tmp_path / "dpa", preference_prompts=config)
    added = card.snippet(settings, folder=tmp_path)
    assert added["preference_prompts"] == served
    assert yaml.safe_load(card.add_to_configuration(config, added))["guides"] == {"dpa": {"model": str(settings.out)}}
    other = tmp_path / "other.yaml"
    other.write_text("base: base\n")
    assert yaml.safe_load(card.add_to_configuration(other, added))["preference_prompts"] == served
    other.write_text(yaml.safe_dump({"preference_prompts": PROMPTS}))
    with pytest.raises(ValueError, match=r"preference_prompts\.plain already"):
        card.add_to_configuration(other, added)


@pytest.mark.slow
def test_a_model_learns_to_answer_as_a_direction_says(tmp_path: Path) -> None:
    """From the command; and the trainer's loss against plain sums over single answers."""
    pytest.importorskip("trl")
    from trimtab.training import measure, trainers

    rated = [rate(f"q{i}", **{"a" * 3: (0, 1), "x" * 6: (0, -1), "z": (-1, 0)}) for i in range(24)]
    rows = [
        {"prompt": [*one.prompt], "completions": [{"response": text, **scores} for text, scores in one.answers]}
        for one in rated
    ]
    (tmp_path / "ratings.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = make_rows(tmp_path, rated)
    base, out = str(tmp_path / "base"), tmp_path / "dpa"
    line = ["directional", "--base", base, "--data", str(tmp_path / "ratings.jsonl"), "--out", str(out)]
    line += ["--preference-prompts", str(tmp_path / "config.yaml"), "--full", "--learning-rate", "2e-3"]
    line += ["--batch", "8", "--accumulate", "1", "--max-length", "64", "--directions", "8", "--epochs", "3"]
    line += ["--heldout", "0.3"]
    said: list[str] = []
    assert cli.main([*line, "--dry-run"], say=said.append) == 0
    assert "a step of 8 answers takes about" in said[-1]
    assert re.search(r"rated prompts +24\nanswers to them +72\n", said[0])
    assert not out.exists() or not any(out.iterdir())
    assert cli.main(line, say=said.append) == 0
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    start = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    figures = measure.compare_directions(model.eval(), start.eval(), made.heldout)
    assert figures["cross_entropy"] < figures["cross_entropy of the start"]
    assert figures["obeyed_low"] > 0.5
    text = (out / "README.md").read_text()
    assert "arXiv 2402.18571" in text
    assert "reader: dpa" in text
    assert f"| answers | {figures['answers']:.4g} |" in text

    options: dict[str, Any] = {"batch": 4, "accumulate": 1, "max_length": 64, "patience": 0, "learning_rate": 1e-3}
    wished = Settings(kind="directional", base=base, data=(), out=tmp_path / "again", full=True, **options)
    heldout = sorted(made.heldout[:8], key=lambda row: len(row["prompt_ids"] + row["chosen_ids"]))
    answers = directions.make_answer_rows(Rows(train=made.train[:8], heldout=heldout))
    tokenizer = AutoTokenizer.from_pretrained(base)
    trainer = trainers.train_answers(wished, tokenizer, tokenizer.pad_token_id, answers.train, answers.heldout)
    sums = [measure.answer_logprob(trainer.model.eval(), row["prompt_ids"], row["chosen_ids"]) for row in heldout]
    lengths = [len(row["chosen_ids"]) for row in heldout]
    means = [-math.fsum(sums[i : i + 4]) / sum(lengths[i : i + 4]) for i in (0, 4)]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.fsum(means) / 2, abs=1e-4)
