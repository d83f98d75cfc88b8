"""The reader of directions and the adapter of weights: what their recipes choose, write and read."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from decoders.directions import TEXTS, Template, angled
from recipes import corpus, directional, gold, guides, orchestrator, rewards
from recipes.base import DEMO, load_tokenizer
from rewards.orchestrator import load


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gold, "GRAMMAR_SAMPLE", 100)
    for name, value in {"PROMPTS": 8, "BATCH": 2, "HELDOUT_PROMPTS": 2}.items():
        monkeypatch.setattr(directional, name, value)
    monkeypatch.setattr(guides, "DRAWN", 4)
    monkeypatch.setattr(orchestrator, "PROMPTS", 12)


def test_the_recipe_says_directions_as_the_server_does() -> None:
    text, role = TEXTS["dpa"]
    template = Template(text=text, role=role, slots=("h", "w"), signs=(1.0, 1.0))
    for theta in (-45, -17.3, 0, 30.5, 45):
        assert directional.PAIRS["dpa"].said(theta) == template.said(angled(theta)) == corpus.dpa_system(theta)


def test_each_direction_s_favourite_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of answers a, b, c: warmth 0 1 2, caution 2 1 0, helpfulness 2 0 1, brevity 0 1 0."""
    table = {
        "warmth": (0.0, 1.0, 2.0),
        "caution": (2.0, 1.0, 0.0),
        "helpfulness": (2.0, 0.0, 1.0),
        "brevity": (0.0, 1.0, 0.0),
    }
    scores = torch.tensor([table[o] for o in rewards.OBJECTIVES]).T
    monkeypatch.setattr(directional, "judge", lambda *_: scores)
    monkeypatch.setattr(directional, "read", lambda *_: None)
    asked = ({"role": "user", "content": "Hi"},)
    found = directional.choices(None, None, [(asked, ["a", "b", "c"])] * 20)  # type: ignore[arg-type]
    assert found
    seen = set()
    for choice in found:
        assert choice.answers[0] != choice.answers[1]
        for told, answer in zip(choice.told, choice.answers, strict=True):
            numbers = [int(number) for number in re.findall(r"\*(-?\d+)", told)]
            if "warmth*" in told:
                assert answer == ("c" if numbers[0] > numbers[1] else "a")
            else:
                z = (scores / scores.std(0))[:, [rewards.OBJECTIVES.index(o) for o in ("helpfulness", "brevity")]]
                values = z @ torch.tensor([float(numbers[0]), -float(numbers[1])])
                assert values["abc".index(answer)] >= values.max() - 1e-2 * 100
            seen.add(answer)
    assert seen == {"a", "b", "c"}


def test_the_contrast_is_zero_where_directions_change_nothing() -> None:
    """Before a step both texts are read alike up to their own influence; the loss is CE plus log 2 at a margin of 0."""
    tokenizer = load_tokenizer(DEMO / "base")
    model = LlamaForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32)
    same = "<|user|>Hi<|end|>"
    value, _ = directional.loss(model, tokenizer, [directional.Choice((same, same), ("Hello there.", "Go away."))])
    pairs = [(same, "Hello there.", "Go away.")]
    ids, mask = guides.tensors(tokenizer, pairs)
    entropy = -guides.said_logprob(model, ids, mask).sum() / mask.sum()
    assert value.item() == pytest.approx(entropy.item() + directional.LAMBDA * math.log(2), rel=1e-4)


def test_the_reader_is_an_adapter_that_peft_reads(tiny: None, tmp_path: Path) -> None:
    directional.main(folder=tmp_path)
    tokenizer = load_tokenizer(DEMO / "base")
    base = LlamaForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32)
    ids = torch.tensor([tokenizer("How do I clean a copper pan?")["input_ids"]])
    with torch.no_grad():
        plain = base(ids).logits
        reader = PeftModel.from_pretrained(base, str(tmp_path))(ids).logits
    assert not torch.allclose(reader, plain, atol=1e-3), "nothing was learnt"
    told = json.loads((tmp_path / "recipe.json").read_text())
    assert set(told["heldout"]) == set(told["base"]) == set(directional.PAIRS)
    assert [round(row["theta"]) for row in told["base"]["kindness"]] == [0, 15, 30, 45, 60, 75, 90]


def test_the_adapter_s_table_is_its_head_on_mean_embeddings(tiny: None, tmp_path: Path) -> None:
    orchestrator.main(folder=tmp_path)
    tokenizer = load_tokenizer(DEMO / "base")
    adapter = load(str(tmp_path))
    assert adapter.objectives == rewards.OBJECTIVES
    weights = adapter(tokenizer.encode("How do I clean a copper pan?", add_special_tokens=False))
    assert math.fsum(weights.values()) == pytest.approx(1)
    assert adapter.table_VK.shape == (len(tokenizer), len(rewards.OBJECTIVES))
    told = json.loads((tmp_path / "recipe.json").read_text())
    for domain in ("smalltalk", "arithmetic"):
        prompts = corpus.heldout_prompts(20, orchestrator.SEED, domains=(domain,))
        each = [adapter(tokenizer.encode(p.text, add_special_tokens=False)) for p in prompts]
        for o in rewards.OBJECTIVES:
            mean = math.fsum(w[o] for w in each) / len(each)
            assert mean == pytest.approx(told["heldout"][domain][o], abs=2e-3)


def test_what_is_wanted_sums_to_one_and_is_of_the_question() -> None:
    for domain, wants in orchestrator.WANTS.items():
        assert math.fsum(wants.values()) == pytest.approx(1)
        for prompt in corpus.heldout_prompts(5, 1, domains=(domain,)):
            assert orchestrator.domain_of(prompt.text) == domain
    sad = "I feel sad today."
    assert orchestrator.wanted("smalltalk", sad, "I am so sorry to hear that, take care!") > orchestrator.wanted(
        "smalltalk", sad, "Fine. That is all."
    )
