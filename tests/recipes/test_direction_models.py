"""The reader of directions and the adapter of weights: what their recipes choose, write and read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from decoders.directions import TEXTS, Template, angled
from recipes import corpus, directional, gold, guides, orchestrator, rewards
from recipes.base import DEMO, load_tokenizer
from recipes.sample import Sampled
from rewards.orchestrator import load


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gold, "GRAMMAR_SAMPLE", 100)
    for name, value in {"ROUNDS": 1, "PROMPTS": 4, "DRAWN": 3, "EPOCHS": 1, "BATCH": 4, "HELDOUT_PROMPTS": 2}.items():
        monkeypatch.setattr(directional, name, value)
    monkeypatch.setattr(guides, "DRAWN", 3)
    monkeypatch.setattr(orchestrator, "PROMPTS", 12)


def test_the_recipe_says_directions_as_the_server_does() -> None:
    text, role = TEXTS["dpa"]
    template = Template(text=text, role=role, slots=("h", "w"), signs=(1.0, 1.0))
    for theta in (-45, -17.3, 0, 30.5, 45):
        assert directional.PAIRS["dpa"].said(theta) == template.said(angled(theta)) == corpus.dpa_system(theta)


def test_the_answer_that_the_direction_likes_is_chosen(monkeypatch: pytest.MonkeyPatch, tiny: None) -> None:
    """Answers in given numbers, scores by their number: warmth 0 1 2, caution 2 1 0, the rest none."""
    said = [Sampled(str(i % 3), (1,), 0.0, True) for i in range(directional.PROMPTS * 2 * 3)]
    monkeypatch.setattr(directional, "sample", lambda *_: said)

    def scores(teacher: object, tokenizer: object, prompt: object, answers: list[str]) -> torch.Tensor:
        return torch.tensor([[{"warmth": float(a), "caution": 2 - float(a)}.get(o, 0.0) for o in rewards.OBJECTIVES]
                             for a in answers]) + torch.eye(len(rewards.OBJECTIVES))[: len(answers)] * 1e-3  # fmt: skip

    monkeypatch.setattr(directional, "scores", scores)
    rows = directional.chosen(None, None, None, 1)  # type: ignore[arg-type]
    assert len(rows) == 2 * directional.PROMPTS
    kind = [(prompt, answer) for prompt, answer in rows if "warmth*" in prompt]
    assert len(kind) == directional.PROMPTS
    for prompt, answer in kind:
        warmth, caution = (int(prompt.split(f"{name}*")[1].split()[0].split("<")[0]) for name in ("warmth", "caution"))
        assert answer == ("2" if warmth > caution else "0")


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
