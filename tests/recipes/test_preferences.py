"""What the guides and the twin learn from, and the commands that train them on it."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from trimtab.recipes import gold, preferences
from trimtab.training.cli import parse
from trimtab.training.data import read_preferences
from trimtab.training.settings import Settings

ROOT = Path(__file__).parents[2]
QUESTION = ({"role": "user", "content": "How do I clean a leather sofa?"},)


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gold that is simple: an answer's length."""
    monkeypatch.setitem(gold.GOLD, "warmth", lambda _, answer: float(len(answer)))


def test_pairs_are_of_the_answers_farthest_apart(points: None, tmp_path: Path) -> None:
    """Best and worst, then the second of both; ties make none; and what is written is what `trimtab train` reads."""
    pairs = preferences.label([(QUESTION, ["a" * n for n in (30, 1, 60, 90)]), (QUESTION, ["b", "c"])], "warmth")
    assert [sorted(map(len, (str(p["chosen"]), str(p["rejected"])))) for p in pairs] == [[1, 90], [30, 60]]
    preferences.write_pairs(tmp_path / "pairs.jsonl", pairs)
    read = read_preferences(str(tmp_path / "pairs.jsonl"))
    assert [(p.prompt, p.chosen, p.rejected) for p in read.pairs] == [
        (p["prompt"], p["chosen"], p["rejected"]) for p in pairs
    ]


def test_labels_are_gold_s_word_with_noise(points: None) -> None:
    n = 4000
    pairs = preferences.label([(QUESTION, ["aa", "a"])] * n, "warmth")
    share, p = sum(pair["chosen"] == "aa" for pair in pairs) / n, 1 / (1 + math.exp(-1 / gold.NOISE))
    assert abs(share - p) <= 5 * math.sqrt(p * (1 - p) / n)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    gold._grammar.cache_clear()
    monkeypatch.setattr(gold, "GRAMMAR_SAMPLE", 100)
    sizes = {"HIDDEN": 32, "LAYERS": 1, "HEADS": 2, "KV_HEADS": 1, "HEAD_DIM": 16, "FFN": 32}
    few = {"TOKENS": 2000, "TOKENS_A_STEP": 1024, "PROMPTS": 6, "DRAWN": 3, "TWIN_PROMPTS": 4, "CONTROL_PROMPTS": 3}
    for name, value in {**sizes, **few}.items():
        monkeypatch.setattr(preferences, name, value)
    monkeypatch.setattr(preferences, "perplexity", lambda *_: 1.0)
    yield
    gold._grammar.cache_clear()


def read_makefile(target: str) -> list[Settings]:
    """Of the lines by which it trains; raises SystemExit for one that is none."""
    command = ["make", "-n", target, "PREFERENCES=preferences"]
    made = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.replace("\\\n", " ")
    lines = [shlex.split(line) for line in made.splitlines() if "trimtab train" in line]
    return [parse(line[line.index("train") + 1 :])[0] for line in lines]


@pytest.mark.parametrize(("target", "folder"), [("models", "out/demo"), ("real-models", "out/real/preferences")])
def test_each_family_is_trained_on_its_files(target: str, folder: str) -> None:
    trained = read_makefile(target)
    assert len(trained) >= 5
    assert {str(Path(data).parent) for settings in trained for data in settings.data} == {folder}


@pytest.mark.slow
def test_the_makefile_trains_on_what_is_written(tiny: None, tmp_path: Path) -> None:
    """Every guide from the start that is written, each on its objective's pairs; and the twin from the base itself."""
    preferences.main(tmp_path / "demo", tmp_path / "recipe.json")
    written = {path.name for path in (tmp_path / "demo").iterdir()}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "demo" / "start").config.num_hidden_layers == 1
    trained = {settings.member: settings for settings in read_makefile("models")}
    assert set(trained) == {*preferences.OBJECTIVES, "aligned", "value"}
    assert {"start", *(Path(s.data[0]).name for s in trained.values())} == written
    for name, settings in trained.items():
        assert (ROOT / settings.out).is_dir()
        if name == "aligned":
            assert (settings.kind, settings.start, settings.full) == ("twin", None, False)
        elif name == "value":
            assert (settings.kind, settings.start, settings.reward) == ("value", "demo/rewards/a", "demo/rewards/a")
            continue
        else:
            assert (settings.kind, settings.start, settings.full) == ("guide", "out/demo/start", True)
            assert settings.data == (f"out/demo/{name}.jsonl",)
        kept = json.loads((ROOT / settings.out / "training.json").read_text())["settings"]
        assert (kept["beta"], kept["likelihood"]) == (settings.scale, settings.likelihood)
    record = json.loads((tmp_path / "recipe.json").read_text())
    assert [row["alpha"] for row in record["control"]] == [0, 0.5, 1, 2]
