"""The aligned twin and the value head: what their recipes write, and what they read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, LlamaForCausalLM

from trimtab.recipes import aligned, gold, guides, rewards, value
from trimtab.recipes.base import DEMO, load_tokenizer

QUESTION = ({"role": "user", "content": "How do I clean a leather sofa?"},)
EARLIER = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}, *QUESTION)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    gold._grammar.cache_clear()
    monkeypatch.setattr(guides, "DRAWN", 4)
    monkeypatch.setattr(gold, "GRAMMAR_SAMPLE", 100)
    monkeypatch.setattr(rewards, "HELDOUT_PROMPTS", 4)
    monkeypatch.setattr(rewards, "HELDOUT_DRAWN", 2)
    for module in (aligned, value):
        monkeypatch.setattr(module, "PROMPTS", 12)
        monkeypatch.setattr(module, "EPOCHS", 1)
    monkeypatch.setattr(aligned, "BATCH", 4)
    monkeypatch.setattr(aligned, "HELDOUT_PROMPTS", 4)
    monkeypatch.setattr(value, "PROMPTS_A_STEP", 4)
    yield
    gold._grammar.cache_clear()


def test_the_twin_is_an_adapter_that_peft_reads(tiny: None, tmp_path: Path) -> None:
    """Merged by PEFT it says what the recipe's own layers say, and the base when they are off."""
    aligned.main(folder=tmp_path)
    tokenizer = load_tokenizer(DEMO / "base")
    base = LlamaForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32)
    ids = torch.tensor([tokenizer("How do I clean a copper pan?")["input_ids"]])
    with torch.no_grad():
        plain = base(ids).logits
        twin = PeftModel.from_pretrained(base, str(tmp_path))(ids).logits
        twin_by_recipe = LlamaForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32)
        adapters = aligned.add_adapters(twin_by_recipe)
        saved = load_file(tmp_path / "adapter_model.safetensors")
        for name, adapter in adapters.items():
            adapter.A.copy_(saved[f"base_model.model.{name}.lora_A.weight"])
            adapter.B.copy_(saved[f"base_model.model.{name}.lora_B.weight"])
        assert torch.allclose(twin_by_recipe(ids).logits, twin, atol=1e-4)
        aligned.switch(adapters, on=False)
        assert torch.equal(twin_by_recipe(ids).logits, plain)
    assert not torch.allclose(twin, plain, atol=1e-3), "nothing was learnt"
    record = json.loads((tmp_path / "recipe.json").read_text())
    assert record["parameters"] == sum(w.numel() for w in saved.values())
    assert record["base"]["kl"] == pytest.approx(0, abs=1e-6)


def test_margins_are_dpo_s() -> None:
    """Before a step both policies are one, so every margin is 0; B alone moves first, as A's gradient is 0 there."""
    tokenizer = load_tokenizer(DEMO / "base")
    model = LlamaForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32)
    adapters = aligned.add_adapters(model)
    pairs = [("<|user|>Hi<|end|>", "Hello there.", "Go away."), ("<|user|>Why?<|end|>", "Because.", "No.")]
    margins, entropy = aligned.margins(model, tokenizer, adapters, pairs)
    assert margins.tolist() == pytest.approx([0, 0], abs=1e-5)
    ids, mask = guides.tensors(tokenizer, pairs)
    logprob = guides.answer_logprob(model, ids[:2], mask[:2]).sum()
    assert entropy.item() == pytest.approx((-logprob / mask[:2].sum()).item(), rel=1e-4)
    (-torch.nn.functional.logsigmoid(aligned.BETA * margins).mean()).backward()
    first = next(iter(adapters.values()))
    assert first.B.grad is not None
    assert float(first.B.grad.abs().sum()) > 0
    assert float(first.A.grad.abs().sum()) == 0 if first.A.grad is not None else True


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
