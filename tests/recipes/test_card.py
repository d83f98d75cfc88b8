"""The demo's card: every place of its text is filled, and what stands in the repository is of that text."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from trimtab.recipes import card, corpus
from trimtab.recipes.base import DEMO
from trimtab.recipes.rewards import OBJECTIVES
from trimtab.recipes.sample import Sampled
from trimtab.recipes.value import PARTS


@pytest.mark.slow
def test_the_card_is_written_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the grammar's answers in place of the models'; all other lines are those of the card that is here."""

    rng = random.Random(0)

    def draw(members: Any, tokenizer: Any, prompts: list[corpus.Prompt]) -> list[Sampled]:
        topics = [corpus.topic_of(prompt.text) for prompt in prompts]
        texts = [corpus.answer(rng, topic, corpus.draw_behaviour(rng)) if topic else "5 + 4 = 9." for topic in topics]
        return [Sampled(text, (1, 2), 0.5, True) for text in texts]

    monkeypatch.setattr(card, "draw", draw)
    monkeypatch.setattr(card, "perplexity", lambda *_: 1.5)
    monkeypatch.setattr(card, "trained_on", lambda *_: [next(corpus.train_conversations(1))])
    monkeypatch.setattr(card, "correlate_value_head", lambda *_: {o: dict.fromkeys(PARTS, 0.5) for o in OBJECTIVES})
    card.main(tmp_path / "README.md")
    texts = [(folder / "README.md").read_text() for folder in (tmp_path, DEMO)]
    headings = [re.findall(r"^#+ .*$", text, re.MULTILINE) for text in texts]
    assert headings[0] == headings[1]
    prose = [{line for line in text.splitlines() if line and not re.search(r"[0-9|>]", line)} for text in texts]
    assert prose[0] == prose[1]
