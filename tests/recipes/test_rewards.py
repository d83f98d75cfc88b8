from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForSequenceClassification

from trimtab.recipes import gold, preferences, rewards
from trimtab.recipes.base import DEMO, config, load_tokenizer

QUESTION = ({"role": "user", "content": "How do I clean a leather sofa?"},)
SHORT, LONG = "Use saddle soap.", "I am glad that you asked! Rub in a little saddle soap, then wait for five minutes."


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(DEMO / "base")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"HIDDEN": 32, "LAYERS": 1, "HEADS": 2, "KV_HEADS": 1, "HEAD_DIM": 16, "FFN": 32}
    settings = {"TOKENS": 2000, "TOKENS_A_STEP": 1024, "PROMPTS": 6, "PROMPTS_A_STEP": 2, "EPOCHS": 2}
    for name, value in {**sizes, **settings, "HELDOUT_PROMPTS": 4, "HELDOUT_DRAWN": 2}.items():
        monkeypatch.setattr(rewards, name, value)
    monkeypatch.setattr(preferences, "DRAWN", 3)
    monkeypatch.setattr(gold, "GRAMMAR_SAMPLE", 100)


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Gold that is simple: objective -> how far LONG is above SHORT."""
    above = {"helpfulness": 0.0, "brevity": -4.0, "warmth": 4.0, "caution": 1.0}
    monkeypatch.setattr(
        rewards, "GOLD", {o: lambda _, answer, more=more: 5 + more * (answer == LONG) for o, more in above.items()}
    )
    return above


def test_the_demo_s_members_stay_small(tokenizer):
    r = rewards
    sizes = config(r.HIDDEN, r.LAYERS, r.HEADS, r.KV_HEADS, r.HEAD_DIM, r.FFN, tokenizer)
    sizes.num_labels = len(r.OBJECTIVES)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in LlamaForSequenceClassification(sizes).parameters())
    assert 900_000 < parameters < 1_000_000


def test_the_recipe(tokenizer, tiny, tmp_path: Path):
    """From the demo's base to two members that Hugging Face loads, each another, with their figures."""
    rewards.main(folder=tmp_path)
    scores = []
    for member in rewards.MEMBERS:
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / member)
        member_tokenizer = AutoTokenizer.from_pretrained(tmp_path / member)
        assert model.dtype == torch.bfloat16
        assert tuple(model.config.id2label.values()) == ("helpfulness", "brevity", "warmth", "caution")
        assert model.config.pad_token_id == member_tokenizer.pad_token_id == 0
        ids = rewards.read(member_tokenizer, [(QUESTION, [SHORT, LONG])])
        for row, answer in zip(ids, (SHORT, LONG), strict=True):
            turns = [*QUESTION, {"role": "assistant", "content": answer}]
            expected = member_tokenizer.apply_chat_template(turns, tokenize=True)["input_ids"]
            assert row[row != 0].tolist() == expected
        with torch.no_grad():
            whole = model.float()(ids).logits
            alone = model(ids[:1][ids[:1] != 0][None]).logits
        assert torch.allclose(whole[:1], alone, atol=1e-5), "padding must not change a score"
        scores.append(whole)
    assert scores[0].abs().min() > 0
    assert not torch.allclose(scores[0], scores[1])

    figures = rewards.figures(tmp_path)
    assert list(figures) == ["a", "b"]
    for record in figures.values():
        assert 0 < record["training"]["steps"] <= 6
        assert 0 < record["training"]["pairs"] <= 6 * 3
        for row in ("accuracy", "correlation", "agreement"):
            assert set(record["heldout"][row]) == set(rewards.OBJECTIVES)
    assert figures["a"]["heldout"]["agreement"] == figures["b"]["heldout"]["agreement"]


def test_labels_are_gold_s_word_with_noise(points):
    n = 4000
    shares = torch.cat(rewards.label([(QUESTION, [LONG, SHORT])] * n, seed=1)).float().mean(0)
    for share, above in zip(shares.tolist(), points.values(), strict=True):
        p = 1 / (1 + math.exp(-above / gold.NOISE))
        assert abs(share - p) <= 5 * math.sqrt(p * (1 - p) / n)
    drawn = [(QUESTION, [LONG, SHORT])] * 50
    one, again, other = (torch.cat(rewards.label(drawn, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_training_learns_what_is_preferred(tokenizer, tiny, points, monkeypatch):
    """One pair over and over: the loss falls below a coin's, and the scores order it."""
    monkeypatch.setattr(rewards, "EPOCHS", 10)
    model, _ = rewards.trunk(tokenizer, seed=0)
    drawn = [(QUESTION, [SHORT, LONG])] * 16
    assert rewards.margins(model, tokenizer, drawn[:1]).tolist() == [[0.0] * 4], "the head starts at zero"
    figures = rewards.train(model, tokenizer, drawn, seed=0)
    assert figures["final_loss"] < 0.6
    [margin] = rewards.margins(model, tokenizer, drawn[:1])
    assert margin[1] > 0 > margin[2], "the short one is brief, the long one warm"


def test_heldout_figures():
    real = torch.tensor([[2.0] * 4, [-1.0] * 4, [0.0] * 4, [1.0] * 4])
    member = torch.tensor([[1.0, -1.0, 1.0, 4.0], [-3.0, 1.0, 1.0, -2.0], [1.0, 1.0, 1.0, 0.0], [1.0, -1.0, 1.0, 2.0]])
    figures = rewards.heldout_figures(member, member * torch.tensor([1.0, -1.0, 1.0, 2.0]), real)
    assert figures["pairs"] == 4
    assert list(figures["accuracy"].values()) == pytest.approx([1, 0, 2 / 3, 1])
    assert list(figures["agreement"].values()) == pytest.approx([1, 0, 1, 1])
    assert figures["correlation"]["caution"] == pytest.approx(1)
    assert figures["correlation"]["warmth"] == pytest.approx(2 / math.sqrt(4 * 6))
