"""The reader of directions: what its recipe keeps, reads and writes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from trimtab.recipes import directional, gold, rewards
from trimtab.recipes.base import DEMO, load_tokenizer
from trimtab.server.config import load
from trimtab.server.errors import ApiError
from trimtab.server.request.preference_prompts import build_direction
from trimtab.training.measure import answer_logprob

QUESTION = ({"role": "user", "content": "How do I clean a leather sofa?"},)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    gold._grammar.cache_clear()
    monkeypatch.setattr(gold, "GRAMMAR_SAMPLE", 100)
    monkeypatch.setattr(directional, "STYLES", directional.STYLES[:5:2])
    small = {"PROMPTS": 8, "DRAWN": 1, "BATCH": 4, "TOKENS": 2000, "HELDOUT_ONE_IN": 4, "HELDOUT_PROMPTS": 2}
    for name, value in small.items():
        monkeypatch.setattr(directional, name, value)
    yield
    gold._grammar.cache_clear()


def pool(points: list[tuple[float, float]]) -> directional.AnswerPool:
    z = torch.tensor(points)
    return directional.AnswerPool(
        QUESTION, [f"answer {i}" for i in range(len(points))], dict.fromkeys(directional.PAIRS, z)
    )


@pytest.mark.parametrize("radius", [directional.RADIUS, 1e4])
def test_a_direction_keeps_the_answer_nearest_to_it(monkeypatch: pytest.MonkeyPatch, radius: float) -> None:
    """Answers all around: the one kept lies within half of what parts two. Without end it is the greatest u · z."""
    monkeypatch.setattr(directional, "RADIUS", radius)
    around = [10.0 * i for i in range(36)]
    one = pool([tuple((1.7 * directional.unit(a)).tolist()) for a in around])  # type: ignore[misc]
    for theta in (-44, -13, 4, 38, 77):
        nearest = around[one.answers.index(one.favourite("dpa", theta))]
        assert abs((nearest - theta + 180) % 360 - 180) <= 5
        best = int((one.z["dpa"] @ directional.unit(theta)).argmax())
        assert nearest == around[best]


def test_an_answer_good_at_both_is_not_everybody_s_favourite() -> None:
    one = pool([(2.0, 0.0), (1.5, 1.5), (0.0, 2.0)])
    assert [one.favourite("kindness", theta) for theta in (0, 45, 90)] == ["answer 0", "answer 1", "answer 2"]
    assert {one.favourite("kindness", theta) for theta in range(15, 80, 5)} > {"answer 1"}


def test_answers_stand_where_the_reward_model_puts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less their mean, in units of the spread of all; verbosity is brevity turned round."""
    scores = torch.tensor([[1.0, 0.0, 3.0, 0.0], [2.0, 1.0, 0.0, 0.0], [3.0, 5.0, 0.0, 3.0]])
    monkeypatch.setattr(directional, "judge", lambda *_: scores)
    monkeypatch.setattr(directional, "read", lambda *_: None)
    (one,) = directional.place(None, None, [(QUESTION, ["a", "b", "c"])])  # type: ignore[arg-type]
    z = dict(zip(rewards.OBJECTIVES, ((scores - scores.mean(0)) / scores.std(0)).T, strict=True))
    assert torch.allclose(one.z["dpa"], torch.stack([z["helpfulness"], -z["brevity"]], 1))
    assert torch.allclose(one.z["kindness"], torch.stack([z["warmth"], z["caution"]], 1))


def test_the_loss_reads_the_answer_alone() -> None:
    """CE is that of the base's other recipes, and a probe that says nothing is 1 away from every direction."""
    tokenizer = load_tokenizer(DEMO / "base")
    model = LlamaForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32)
    probe = torch.nn.Linear(model.config.hidden_size, 2, bias=False)
    torch.nn.init.zeros_(probe.weight)
    rows = [("<|user|>Hi<|end|>", "Hello there.", 30.0), ("<|user|>How do I clean it?<|end|>", "Wash it.", -20.0)]
    nll, tokens, off = directional.forward(model, probe, directional.tensors(tokenizer, rows))
    parts = [[tokenizer.encode(text) for text in (f"{prompt}<|assistant|>", f"{y}<|end|>")] for prompt, y, _ in rows]
    assert (-nll).tolist() == pytest.approx([answer_logprob(model, *part) for part in parts], rel=2e-2)
    assert tokens.tolist() == [len(answer) for _, answer in parts]
    assert off.square().sum(1).tolist() == pytest.approx([1.0] * int(tokens.sum()))


def test_the_reader_is_a_checkpoint_with_the_base_s_tokenizer(tiny: None, tmp_path: Path) -> None:
    directional.main(folder=tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.get_vocab() == load_tokenizer(DEMO / "base").get_vocab()
    ids = torch.tensor([tokenizer("How do I clean a copper pan?")["input_ids"]])
    with torch.no_grad():
        plain = LlamaForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32)(ids).logits
        reader = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(ids).logits
    assert not torch.allclose(reader, plain, atol=1e-3), "nothing was learnt"
    record = json.loads((tmp_path / "recipe.json").read_text())
    assert set(record["heldout"]) == set(record["base"]) == set(record["apart"]) == set(directional.PAIRS)
    assert [round(row["theta"]) for row in record["heldout"]["kindness"]] == [0, 15, 30, 45, 60, 75, 90]
    assert all(math.isfinite(record["apart"][name]["nats"]) for name in directional.PAIRS)


@pytest.mark.parametrize("name", directional.PAIRS)
def test_the_demo_says_to_the_reader_what_it_was_trained_on(name: str) -> None:
    """The same text for an angle, between the same axes, and as far from the middle."""
    config, pair = load(DEMO / "directions.yaml"), directional.PAIRS[name]
    for theta in (pair.low, pair.low + 17.3, pair.high - 30.5, pair.high):
        direction = build_direction({"angle": theta}, {"prompt": name}, config, at="weights")
        assert direction.template is not None
        assert direction.template.render(direction.v) == pair.render(theta)
        assert (direction.reader, direction.template.role) == ("directional", "system")
        signs = {objective: sign for _, objective, sign in pair.axes}
        assert direction.by_objective(direction.template.signs) == signs
    with pytest.raises(ApiError, match="outside"):
        build_direction({"angle": pair.high + 1}, {"prompt": name}, config, at="weights")
