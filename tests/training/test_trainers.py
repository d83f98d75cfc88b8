"""Each training's loss against its formula, what it saves, and that it is the same every time."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

pytest.importorskip("trl")
from trimtab.training import card, cli, measure, trainers
from trimtab.training.data import read_preferences
from trimtab.training.rendering import Renderer, choose_padding
from trimtab.training.rows import (
    Row,
    Rows,
    count_tokens,
    make_label_rows,
    make_pair_rows,
    make_value_rows,
    make_whole_rows,
)
from trimtab.training.settings import Settings

pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {"batch": 4, "accumulate": 1, "max_length": 64, "patience": 0}


def prepare(home: Path) -> tuple[Renderer, int, Rows]:
    renderer = Renderer.of(str(home / "base"))
    padding = choose_padding(renderer.tokenizer, renderer.ends)
    renderer.tokenizer.pad_token_id = padding
    pairs = read_preferences(str(home / "pairs.jsonl")).pairs
    return renderer, padding, make_pair_rows(pairs, renderer, max_length=64, heldout=0.25)


def settings(home: Path, out: Path, kind: Any, **more: Any) -> Settings:
    data = (str(home / "pairs.jsonl"),)
    return Settings(kind=kind, base=str(home / "base"), data=data, out=out, **{**SMALL, **more})


def plain_loss(margins: Sequence[float]) -> float:
    return math.fsum(math.log1p(math.exp(-m)) for m in margins) / len(margins)


@pytest.mark.parametrize(("loss", "likelihood"), [("genarm", 0.5), ("dpo", 0.0)])
def test_the_loss_of_a_guide_is_its_formula(home: Path, tmp_path: Path, loss: str, likelihood: float) -> None:
    """The trainer's loss on held-out pairs against sums of log-probs of one sequence after the other; beside it, the
    chosen answers' negative log-likelihood in nats a token of the batch."""
    renderer, padding, rows = prepare(home)
    options: dict[str, Any] = {"loss": loss, "likelihood": likelihood, "full": True, "learning_rate": 1e-3, "epochs": 2}
    wished = settings(home, tmp_path, "guide", **options)
    trainer = trainers.train_pairs(wished, renderer.tokenizer, padding, rows.train, rows.heldout)
    heldout = sorted(rows.heldout, key=count_tokens)  # as they are passed
    beta = 0.1 if loss == "dpo" else 0.05
    margins = measure.language_margins(trainer.model.eval(), heldout, beta=beta)
    if loss == "dpo":
        reference = AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.float32)
        before = measure.language_margins(reference, heldout, beta=beta)
        margins = [after - start for after, start in zip(margins, before, strict=True)]
    # A trainer's mean is over batches, whose last may be smaller, so it is compared batch by batch.
    batches = [
        plain_loss(margins[i : i + 4]) + likelihood * nats_a_token(trainer.model, heldout[i : i + 4])
        for i in range(0, len(margins), 4)
    ]
    weights = [len(margins[i : i + 4]) for i in range(0, len(margins), 4)]
    found = trainer.evaluate()["eval_loss"]
    means = (sum(batches) / len(batches), sum(b * w for b, w in zip(batches, weights, strict=True)) / len(margins))
    assert min(abs(found - mean) for mean in means) < 1e-4
    assert measure.accuracy(margins) > 0.9


def nats_a_token(model: Any, rows: Sequence[dict[str, Any]]) -> float:
    sums = [measure.answer_logprob(model, row["prompt_ids"], row["chosen_ids"]) for row in rows]
    return -math.fsum(sums) / sum(len(row["chosen_ids"]) for row in rows)


def test_the_loss_of_a_reward_model_is_bradley_terrys(home: Path, tmp_path: Path) -> None:
    renderer, padding, rows = prepare(home)
    whole = make_whole_rows(rows, renderer)
    wished = settings(home, tmp_path, "reward", full=True, learning_rate=1e-3, epochs=2)
    trainer = trainers.train_reward(wished, renderer.tokenizer, padding, whole.train, whole.heldout)
    margins = [margin for [margin] in measure.reward_margins(trainer.model.eval(), whole.heldout)]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain_loss(margins), abs=1e-3)
    assert measure.accuracy(margins) > 0.9


@pytest.mark.parametrize("more", [["--full", "--learning-rate", "1e-3"], ["--learning-rate", "5e-3"]])
def test_a_head_scores_several_things(
    home: Path, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its loss is the mean of Bradley-Terry's over labels that tell a pair apart, and a value head foretells all."""
    rows = [{"prompt": f"q{i}", "completions": [{"response": t, **s} for t, s in RATED]} for i in range(24)]
    (tmp_path / "rated.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = ["--base", str(home / "base"), "--data", str(tmp_path / "rated.jsonl"), "--heldout", "0.3", *more]
    common += ["--batch", "8", "--accumulate", "1", "--max-length", "64", "--patience", "0"]
    said: list[str] = []
    line = ["reward", *common, "--score", "use", "brevity", "--epochs", "4", "--out", str(tmp_path / "r")]
    assert cli.main(line, say=said.append) == 0
    model = trainers.load_scorer(str(tmp_path / "r"), 256)
    assert measure.labels_of(model) == (["use", "brevity"] if "--full" in more else ["LABEL_0", "LABEL_1"])
    use, brevity = card.snippet(cli.parse(line)[0])["objectives"].values()
    assert (use, brevity) == tuple({"reward": f"r.{label}"} for label in measure.labels_of(model))
    assert "accuracy of brevity 1" in said[-2] or "accuracy of LABEL 1 1" in said[-2]
    value = ["value", *common, "--reward", str(tmp_path / "r"), "--score", "use", "--out", str(tmp_path / "v")]
    assert cli.main(value, say=said.append) == 0
    assert measure.labels_of(trainers.load_scorer(str(tmp_path / "v"), 256)) == measure.labels_of(model)

    capsys.readouterr()
    guide = ["guide", "--base", str(home / "base"), "--data", str(home / "pairs.jsonl"), "--out", str(tmp_path / "g")]
    assert cli.main([*guide, "--heldout", "0.3", "--steer", str(tmp_path / "r")], say=said.append) == 1
    assert "its head has 2 labels" in capsys.readouterr().err

    renderer, padding, _ = prepare(home)
    rated = read_preferences(str(tmp_path / "rated.jsonl"), objectives=["use", "brevity"]).rated
    made = make_label_rows(rated, ["use", "brevity"], renderer, max_length=64, heldout=0.3)
    assert {tuple(row["signs"]) for row in made.all} == {(0, 1), (1, 0), (1, -1)}
    whole = make_whole_rows(made, renderer)
    wished = settings(home, tmp_path / "again", "reward", score=("use", "brevity"), full=True, learning_rate=1e-3)
    trainer = trainers.train_labels(wished, renderer.tokenizer, padding, whole.train[:8], whole.heldout[:4])
    margins = measure.reward_margins(trainer.model.eval(), whole.heldout[:4])
    signed = [zip(row["signs"], ms, strict=True) for row, ms in zip(whole.heldout[:4], margins, strict=True)]
    worth = [sign * margin for pair in signed for sign, margin in pair if sign]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain_loss(worth), abs=1e-5)


RATED = (
    ("abcabc", {"use": 2, "brevity": 1}),
    ("ab", {"use": 1, "brevity": 2}),
    ("xyxyxy", {"use": 1, "brevity": 1}),
)


def test_only_the_last_layers_learn(home: Path, tmp_path: Path) -> None:
    renderer, padding, rows = prepare(home)
    wished = settings(home, tmp_path, "guide", full=True, layers=1, learning_rate=1e-3)
    trainer = trainers.train_pairs(wished, renderer.tokenizer, padding, rows.train, rows.heldout)
    before = AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.float32).state_dict()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".layers.2." in name or name in ("model.norm.weight", "lm_head.weight") for name in changed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_the_same_every_time_and_loads_without_us(home: Path, tmp_path: Path, dtype: str) -> None:
    """Whatever training computes in, what it saves is float32, and is measured in it."""
    from peft import PeftModel

    weights = []
    for name in ("one", "other"):
        out = tmp_path / name
        line = ["guide", "--base", str(home / "base"), "--data", str(home / "pairs.jsonl"), "--out", str(out)]
        options = ["--batch", "4", "--accumulate", "1", "--max-length", "64", "--patience", "0", "--dtype", dtype]
        said: list[str] = []
        assert cli.main([*line, *options], say=said.append) == 0
        weights.append(load_file(out / "adapter_model.safetensors"))
        assert (out / "adapter_model.safetensors").stat().st_mode & 0o777 == 0o644
        assert not (out / "checkpoints").exists()
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert {weight.dtype for weight in weights[0].values()} == {torch.float32}
    base = AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "one").eval()
    heldout = make_heldout(home)
    margins = measure.language_margins(model, heldout, beta=0.05)
    found = measure.summarise(margins, [row["place"] for row in heldout])
    record = json.loads((tmp_path / "one" / "training.json").read_text())
    assert record["settings"]["dtype"] == dtype
    assert record["measured"]["loss"] == pytest.approx(found["loss"], abs=1e-6)
    [line] = [line for line in said if line.startswith("measured:")]
    assert f"pairs {len(heldout)}" in line
    assert found["loss"] < 0.69
    text = (tmp_path / "one" / "README.md").read_text()
    assert "GenARM" in text
    assert "guides:\n  one:" in text


def test_a_whole_model_is_saved_in_the_precision_that_it_began_with(home: Path, tmp_path: Path) -> None:
    """With the base's tokenizer as it is, and figures for programs beside the card's."""
    model = AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.float32)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "start")
    line = ["guide", "--base", str(home / "base"), "--from", str(tmp_path / "start"), "--out", str(tmp_path / "g")]
    options = ["--data", str(home / "pairs.jsonl"), "--full", "--limit", "20", "--max-length", "64", "--heldout", "0.3"]
    assert cli.main([*line, *options], say=lambda text: None) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "g").dtype == torch.bfloat16
    saved, base = (json.loads((at / "tokenizer_config.json").read_text()) for at in (tmp_path / "g", home / "base"))
    assert saved == {key: value for key, value in base.items() if key not in ("is_local", "local_files_only")}
    record = json.loads((tmp_path / "g" / "training.json").read_text())
    assert record["settings"]["beta"] == 0.05
    assert record["data"]["pairs"] == 20
    assert 0 <= record["measured"]["accuracy"] <= 1


def test_what_is_measured_on_was_not_trained_on(home: Path, tmp_path: Path) -> None:
    """`--test` takes the place of the pairs held out, with LoRA on the last layer alone."""
    lines = (home / "pairs.jsonl").read_text().splitlines()
    (tmp_path / "test.jsonl").write_text("\n".join(lines[:7]))
    (tmp_path / "data.jsonl").write_text("\n".join(lines[7:]))
    line = ["guide", "--base", str(home / "base"), "--data", str(tmp_path / "data.jsonl"), "--out", str(tmp_path / "g")]
    said: list[str] = []
    assert cli.main([*line, "--test", str(tmp_path / "test.jsonl"), "--layers", "1"], say=said.append) == 0
    [measured] = [line for line in said if line.startswith("measured:")]
    assert "pairs 7," in measured
    assert "test.jsonl, which training did not see" in (tmp_path / "g" / "README.md").read_text()
    weights = load_file(tmp_path / "g" / "adapter_model.safetensors")
    assert weights
    assert all(".layers.2." in name for name in weights)


def make_heldout(home: Path) -> list[Row]:
    """Of the command's default share."""
    renderer = Renderer.of(str(home / "base"))
    pairs = read_preferences(str(home / "pairs.jsonl")).pairs
    return [*make_pair_rows(pairs, renderer, max_length=64, heldout=0.1).heldout]


def test_a_value_head_regresses_a_reward_models_scores(home: Path, tmp_path: Path) -> None:
    """From the command, and its loss against the squared errors of single beginnings."""
    common = [
        "--base",
        str(home / "base"),
        "--data",
        str(home / "pairs.jsonl"),
        "--max-length",
        "64",
        "--patience",
        "0",
    ]
    more = [*common, "--full", "--batch", "8", "--accumulate", "1", "--limit", "24", "--heldout", "0.3"]
    assert cli.main(["reward", *more, "--out", str(tmp_path / "r")], say=lambda text: None) == 0
    said: list[str] = []
    assert (
        cli.main(["value", *more, "--reward", str(tmp_path / "r"), "--out", str(tmp_path / "v")], say=said.append) == 0
    )
    assert any(line.startswith("measured: beginnings") for line in said)
    assert json.loads((tmp_path / "v" / "config.json").read_text())["architectures"] == [
        "LlamaForSequenceClassification"
    ]
    renderer, padding, rows = prepare(home)
    few = Rows(train=rows.train[:8], heldout=rows.heldout[:4])
    begun = make_value_rows(few, renderer, lambda ids: [float(len(ids) % 5), float(ids[-3] % 7)], seed=0, beginnings=2)
    wished = settings(home, tmp_path / "again", "value", full=True, learning_rate=1e-3)
    trainer = trainers.train_value(wished, renderer.tokenizer, padding, begun.train, begun.heldout, ["length", "end"])
    model = trainer.model.eval()
    pairs = [zip(measure.score(model, row["input_ids"]), row["labels"], strict=True) for row in begun.heldout]
    errors = [value - label for pair in pairs for value, label in pair]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.fsum(e * e for e in errors) / len(errors), rel=1e-3)
    figures = measure.foretell(model, begun.heldout)
    assert figures["squared_error"] == pytest.approx(2 * math.fsum(e * e for e in errors) / len(errors))
    assert {"explained of length", "explained of end"} <= figures.keys()


def test_a_dry_run_writes_nothing(home: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "out"
    line = ["guide", "--base", str(home / "base"), "--data", str(home / "pairs.jsonl"), "--out", str(out), "--dry-run"]
    assert cli.main([*line, "--batch", "4", "--accumulate", "1", "--max-length", "64"], say=said.append) == 0
    assert "a step of 4 pairs takes about" in said[-1]
    assert not out.exists() or not any(out.iterdir())


def test_wrong_rows_stop_it_unless_they_are_to_be_skipped(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text((home / "pairs.jsonl").read_text() + '\n{"prompt": "hi", "chosen": 1, "rejected": "b"}\n')
    line = ["guide", "--base", str(home / "base"), "--data", str(data), "--out", str(tmp_path / "out"), "--dry-run"]
    assert cli.main(line, say=lambda text: None) == 1
    assert "line 41: chosen: must be a text" in capsys.readouterr().err


def test_a_member_goes_into_a_configuration_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("# mine\nbase: x\nguides:\n  a: {model: y}  # the first\n\nport: 8000\n")
    text = card.add_to_configuration(path, {"guides": {"b": {"model": "z"}}, "objectives": {"b": {"guide": "b"}}})
    assert text == (
        "# mine\nbase: x\nguides:\n  a: {model: y}  # the first\n  b:\n    model: z\n\nport: 8000\n\n"
        "objectives:\n  b:\n    guide: b\n"
    )
    with pytest.raises(ValueError, match=r"guides\.a already"):
        card.add_to_configuration(path, {"guides": {"a": {"model": "z"}}})
