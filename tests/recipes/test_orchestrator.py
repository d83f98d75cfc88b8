"""What the base reads directions in, and the adapter of weights: what its recipe writes and reads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.preferences.from_prompt import load
from trimtab.preferences.preference_direction import TEXTS, Template, from_angle
from trimtab.recipes import corpus, gold, orchestrator, preferences, rewards
from trimtab.recipes.base import DEMO, load_tokenizer


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    gold._grammar.cache_clear()
    monkeypatch.setattr(gold, "GRAMMAR_SAMPLE", 100)
    monkeypatch.setattr(preferences, "DRAWN", 4)
    monkeypatch.setattr(orchestrator, "PROMPTS", 12)
    yield
    gold._grammar.cache_clear()


def test_the_corpus_says_directions_as_the_server_does() -> None:
    text, role = TEXTS["dpa"]
    template = Template(text=text, role=role, slots=("h", "w"), signs=(1.0, 1.0))
    for theta in (-45, -17.3, 0, 30.5, 45):
        assert template.render(from_angle(theta)) == corpus.dpa_system(theta)


def test_the_adapter_s_table_is_its_head_on_mean_embeddings(tiny: None, tmp_path: Path) -> None:
    orchestrator.main(folder=tmp_path)
    tokenizer = load_tokenizer(DEMO / "base")
    adapter = load(str(tmp_path))
    assert adapter.objectives == rewards.OBJECTIVES
    weights = adapter(tokenizer.encode("How do I clean a copper pan?", add_special_tokens=False))
    assert math.fsum(weights.values()) == pytest.approx(1)
    assert adapter.table_VK.shape == (len(tokenizer), len(rewards.OBJECTIVES))
    record = json.loads((tmp_path / "recipe.json").read_text())
    for domain in ("smalltalk", "arithmetic"):
        prompts = corpus.heldout_prompts(20, orchestrator.SEED, domains=(domain,))
        each = [adapter(tokenizer.encode(p.text, add_special_tokens=False)) for p in prompts]
        for o in rewards.OBJECTIVES:
            mean = math.fsum(w[o] for w in each) / len(each)
            assert mean == pytest.approx(record["heldout"][domain][o], abs=2e-3)


def test_what_is_wanted_sums_to_one_and_is_of_the_question() -> None:
    for domain, wants in orchestrator.WANTS.items():
        assert math.fsum(wants.values()) == pytest.approx(1)
        for prompt in corpus.heldout_prompts(5, 1, domains=(domain,)):
            assert orchestrator.domain_of(prompt.text) == domain
    sad = "I feel sad today."
    assert orchestrator.asker_worth(
        "smalltalk", sad, "I am so sorry to hear that, take care!"
    ) > orchestrator.asker_worth("smalltalk", sad, "Fine. That is all.")
