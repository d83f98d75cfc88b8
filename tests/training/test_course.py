"""The course of a training: what is computed once, where it goes on, which checkpoint stays, what a person reads."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("trl")
from transformers.models.llama.modeling_llama import LlamaMLP

from tests.engine import family
from tests.training.test_trainers import prepare, settings
from trimtab.training import cli, trainers
from trimtab.training.data import DataError
from trimtab.training.progress import describe_step
from trimtab.training.rows import Rows, count_tokens, make_value_rows, make_whole_rows, order_rows

slow = pytest.mark.slow


def train(home: Path, out: Path, kind: str, *, swap: bool = False, **more: Any) -> Any:
    renderer, padding, rows = prepare(home)
    if kind == "reward":
        rows = make_whole_rows(rows, renderer)
    if swap:
        rows.heldout = [{"chosen_ids": r["rejected_ids"], "rejected_ids": r["chosen_ids"]} for r in rows.heldout]
    make = trainers.train_reward if kind == "reward" else trainers.train_pairs
    return make(settings(home, out, kind, **more), renderer.tokenizer, padding, rows.train, rows.heldout)


@slow
@pytest.mark.parametrize(("kind", "full"), [("guide", False), ("guide", True), ("reward", False), ("twin", True)])
def test_losses_and_weights_are_the_same_with_states_that_are_kept(
    home: Path, tmp_path: Path, kind: str, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the lower layers run once for each row, where they ran in every epoch and at every measurement."""
    calls: list[torch.nn.Module] = []
    plain = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: (calls.append(self), plain(self, x))[1])
    results, counts = [], []
    for keep in (0.0, 1.0):
        calls.clear()
        more = {"full": full, "layers": 1, "keep": keep, "epochs": 3, "learning_rate": 1e-3, "accumulate": 2}
        trainer = train(home, tmp_path / str(keep), kind, **more)
        decoder, lower = trainers.find_lower_layers(trainer.model, 1)
        counts.append((calls.count(lower[0].mlp), calls.count(decoder.layers[-1].mlp)))
        logs = [entry[key] for entry in trainer.state.log_history for key in ("loss", "eval_loss") if key in entry]
        results.append((logs, {k: v.detach().clone() for k, v in trainer.model.state_dict().items()}))
    (logs, weights), (others, other_weights) = results
    assert len(logs) >= 8
    assert others == pytest.approx(logs, rel=1e-5, abs=1e-6)
    assert weights.keys() == other_weights.keys()
    assert all(torch.allclose(weights[key], other_weights[key], atol=1e-5) for key in weights)
    rows = len(trainer.train_dataset) + len(trainer.eval_dataset)
    assert trainer.lower.rows == 2 * rows
    (plain_lower, plain_upper), (kept_lower, kept_upper) = counts
    assert plain_lower == plain_upper
    assert kept_lower < plain_lower / 2
    assert kept_upper == plain_upper + 3  # the check's runs


@slow
@pytest.mark.parametrize("keep", ["0", "1"])
@pytest.mark.parametrize("kind", ["guide", "reward"])
def test_an_interrupted_training_goes_on_to_the_same_weights(
    home: Path,
    tmp_path: Path,
    kind: str,
    keep: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the middle of the second epoch, with adapters, a head, an optimiser and a schedule. States that are kept are
    computed anew, of rows in other company, and so to rounding."""

    def run(name: str, *more: str) -> int:
        line = [kind, "--base", str(home / "base"), "--data", str(home / "pairs.jsonl"), "--out", str(tmp_path / name)]
        options = ["--batch", "2", "--accumulate", "2", "--max-length", "64", "--epochs", "2", "--patience", "0"]
        return cli.main([*line, *options, "--layers", "2", "--keep", keep, *more], say=lambda text: None)

    assert run("whole", "--resume") == 0
    assert "training starts from the beginning" in capsys.readouterr().out
    plain, steps = trainers.PlainTrainer.training_step, [0]

    def interrupt(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps[0] += 1
        if steps[0] == 31:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainers.PlainTrainer, "training_step", interrupt)
        assert run("parts") == 130
    assert list((tmp_path / "parts" / "checkpoints").glob("checkpoint-*"))
    assert run("parts", "--resume") == 0
    whole, parts = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=0, atol=1e-4 if float(keep) else 0)


@slow
def test_training_ends_early_with_the_best_checkpoint_and_says_where_it_is(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held out are pairs with the opposite preference."""
    more = {"full": True, "learning_rate": 1e-3, "epochs": 4, "accumulate": 1, "patience": 2}
    trainer = train(home, tmp_path, "reward", swap=True, **more)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.state.global_step < trainer.state.max_steps
    assert losses[-1] > min(losses)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)
    lines = [line for line in capsys.readouterr().out.splitlines() if "held-out loss" in line]
    assert len(lines) == len(losses)
    assert f" of {trainer.state.max_steps}: loss " in lines[0]
    assert all("accuracy" in line and line.endswith(" left") and "{" not in line for line in lines)


def test_an_interrupted_training_is_not_begun_anew_by_accident(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoints would be taken for newer ones than those of the second run."""
    (tmp_path / "checkpoints" / "checkpoint-99").mkdir(parents=True)
    line = ["guide", "--base", str(home / "base"), "--data", str(home / "pairs.jsonl"), "--out", str(tmp_path)]
    assert cli.main(line, say=lambda text: None) == 1
    assert "--resume goes on from it; to begin anew, delete it" in capsys.readouterr().err
    assert (tmp_path / "checkpoints" / "checkpoint-99").exists()


@slow
def test_a_value_heads_rows_are_padded_on_the_right(home: Path, tmp_path: Path) -> None:
    """Though the tokenizer pads on the left, as many do for engines, and is saved as it was."""
    renderer, padding, rows = prepare(home)
    renderer.tokenizer.padding_side = "left"
    few = Rows(train=rows.train[:8], heldout=rows.heldout[:4])
    begun = make_value_rows(few, renderer, lambda ids: float(len(ids) % 5), seed=0, beginnings=1)
    wished = settings(home, tmp_path, "value", layers=1, keep=1.0)
    trainer = trainers.train_value(wished, renderer.tokenizer, padding, begun.train, begun.heldout)
    assert trainer.lower.rows == len({tuple(row["input_ids"]) for row in begun.all})
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["attention_mask"][:, 0].all()
    assert renderer.tokenizer.padding_side == "left"


@slow
def test_out_of_memory_says_what_to_lower(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of torch's own allocator, which on a CPU raises no MemoryError."""
    monkeypatch.setattr(trainers.PlainTrainer, "training_step", lambda self, *args: torch.empty(2**58))
    line = ["guide", "--base", str(home / "base"), "--data", str(home / "pairs.jsonl"), "--out", str(tmp_path / "out")]
    assert cli.main([*line, "--max-length", "64"], say=lambda text: None) == 1
    assert "out of memory with --batch 2 and --max-length 64: lower either" in capsys.readouterr().err


@slow
def test_a_guides_card_shows_what_it_does_to_answers(home: Path, tmp_path: Path) -> None:
    common = ["--base", str(home / "base"), "--data", str(home / "pairs.jsonl"), "--max-length", "64"]
    assert cli.main(["reward", *common, "--out", str(tmp_path / "r")], say=lambda text: None) == 0
    more = [*common, "--out", str(tmp_path / "g"), "--layers", "1", "--heldout", "0.3"]
    said: list[str] = []
    assert cli.main(["guide", *more, "--steer", str(tmp_path / "r"), "--steer-prompts", "8"], say=said.append) == 0
    text = (tmp_path / "g" / "README.md").read_text()
    rows = [line for line in text.partition("## Steering")[2].splitlines() if line.startswith("| ")]
    names = [row.split(" | ")[0].removeprefix("| ") for row in rows]
    exponents = ["exponent 0.5", "exponent 1", "exponent 2"]
    assert names == ["drawn from", "the base", *exponents, *(f"the base at temperature {t}" for t in ("0.7", "0.5"))]
    assert rows[1].split(" | ")[1] == "0"
    assert all(float(row.split(" | ")[1]) > 0 for row in rows[2:])
    assert any(line.startswith("On 8 prompts ") and line in text for line in said)
    [kept] = [line for line in said if line.startswith("states of lower layers that were kept  ")]
    assert kept.rpartition("  ")[2] in text


def test_a_reward_model_of_other_tokens_or_too_few_prompts_stop_it_at_once(home: Path, tmp_path: Path) -> None:
    renderer, _, rows = prepare(home)
    rows.test = rows.heldout[:1] * 9
    family.tokenizer(tmp_path, family.VOCABULARY[:200])
    scorer = family.scorer(tmp_path / "scorer", ["good"], seed=1)
    for folder, why in ((tmp_path, "its tokenizer is not the base's"), (scorer, "1 prompts to test on")):
        with pytest.raises(DataError, match=why):
            cli.choose_prompts(settings(home, tmp_path, "guide", steer=str(folder)), renderer.tokenizer, rows)


@pytest.mark.parametrize("line", [["--steer", "x"], ["--layers", "0"], ["--keep", "-1"], ["--steer-prompts", "7"]])
def test_what_cannot_be_is_refused_at_once(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(["reward", "--base", "b", "--data", "d", "--out", "o", *line])
    assert line[0] in capsys.readouterr().err


def test_a_measurement_is_one_line() -> None:
    logs = {"eval_loss": 0.61, "eval_rewards/accuracies": 0.7, "eval_logps/chosen": -3.0, "epoch": 1.0}
    assert describe_step(4, 20, 0.65, logs, 3725) == (
        "step 4 of 20: loss 0.6500, held-out loss 0.6100, accuracy 0.700, 1 h 2 min left"
    )
    assert describe_step(4, 20, None, {"eval_loss": 1}, 59) == "step 4 of 20: held-out loss 1.0000, 59 s left"


def test_rows_of_a_step_are_random_and_padded_little() -> None:
    """A step's rows do not depend on lengths; each epoch has another order, and every row once."""
    rng = random.Random(0)
    lengths = [rng.randint(10, 250) for _ in range(200)]
    order = order_rows(lengths, step=16, seed=3, epoch=0)
    assert sorted(order) == list(range(200))
    assert order == order_rows(lengths, step=16, seed=3, epoch=0)
    other = order_rows([1] * 200, step=16, seed=3, epoch=0)
    assert all(set(order[i : i + 16]) == set(other[i : i + 16]) for i in range(0, 200, 16))
    assert len({tuple(order_rows(lengths, step=16, seed=s, epoch=e)) for s, e in ((3, 0), (3, 1), (4, 0))}) == 3

    def padded(rows: list[int]) -> int:
        return sum(4 * max(lengths[j] for j in rows[i : i + 4]) for i in range(0, 200, 4))

    assert padded(order) < 1.2 * sum(lengths) < padded(other)
    pair = {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [3, 4]}
    assert [count_tokens(row) for row in (pair, {"input_ids": [1, 2, 3], "labels": 0.5})] == [4, 3]
