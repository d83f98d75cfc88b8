"""The value head: what its recipe writes, and what it reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from trimtab.recipes import gold, preferences, rewards, value
from trimtab.recipes.base import DEMO, load_tokenizer

QUESTION = ({"role": "user", "content": "How do I clean a leather sofa?"},)
EARLIER = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}, *QUESTION)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    gold._grammar.cache_clear()
    monkeypatch.setattr(preferences, "DRAWN", 4)
    monkeypatch.setattr(gold, "GRAMMAR_SAMPLE", 100)
    monkeypatch.setattr(rewards, "HELDOUT_PROMPTS", 4)
    monkeypatch.setattr(rewards, "HELDOUT_DRAWN", 2)
    monkeypatch.setattr(value, "PROMPTS", 12)
    monkeypatch.setattr(value, "EPOCHS", 1)
    monkeypatch.setattr(value, "PROMPTS_A_STEP", 4)
    yield
    gold._grammar.cache_clear()


def test_values_are_read_in_the_last_turn_alone() -> None:
    tokenizer = load_tokenizer(DEMO / "base")
    ids, at = value.value_positions(tokenizer, [(EARLIER, ["Use soap.", "No"]), (QUESTION, ["Rub it."])])
    read = [[tokenizer.decode([t]) for t in row[where].tolist()] for row, where in zip(ids, at, strict=True)]
    assert ["".join(tokens) for tokens in read] == ["<|assistant|>Use soap.", "<|assistant|>No", "<|assistant|>Rub it."]


def test_the_value_head_has_the_teacher_s_labels_and_its_own_weights(tiny: None, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_bytes((DEMO / "rewards" / "a" / name).read_bytes())
    value.main(rewards=tmp_path)
    teacher = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a")
    head = AutoModelForSequenceClassification.from_pretrained(tmp_path / "value")
    assert head.config.id2label == teacher.config.id2label
    assert head.dtype == torch.bfloat16
    assert not torch.equal(head.score.weight, teacher.score.weight)
    record = json.loads((tmp_path / "value" / "recipe.json").read_text())
    assert set(record["heldout"]) == set(rewards.OBJECTIVES)
    assert set(record["heldout"]["warmth"]) == {str(part) for part in value.PARTS}
