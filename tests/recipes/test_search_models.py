"""The value head: where it is read, and how well it foretells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaForSequenceClassification

from trimtab.recipes import value
from trimtab.recipes.base import DEMO, load_tokenizer
from trimtab.training import measure

QUESTION = ({"role": "user", "content": "How do I clean a leather sofa?"},)
EARLIER = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}, *QUESTION)


def test_values_are_read_in_the_last_turn_alone() -> None:
    tokenizer = load_tokenizer(DEMO / "base")
    ids, at = value.value_positions(tokenizer, [(EARLIER, ["Use soap.", "No"]), (QUESTION, ["Rub it."])])
    read = [[tokenizer.decode([t]) for t in row[where].tolist()] for row, where in zip(ids, at, strict=True)]
    assert ["".join(tokens) for tokens in read] == ["<|assistant|>Use soap.", "<|assistant|>No", "<|assistant|>Rub it."]


def test_a_correlation_is_that_of_single_answers() -> None:
    """Of reward model a as a head of its own, read before a word is said and after the last."""
    tokenizer = load_tokenizer(DEMO / "base")
    model = LlamaForSequenceClassification.from_pretrained(DEMO / "rewards" / "a", dtype=torch.float32).eval()
    drawn = [
        (QUESTION, ["Use soap.", "No, I will not, rest yourself.", "Rub it with care."]),
        (EARLIER, ["I am glad!"]),
    ]
    read: dict[float, list[list[float]]] = {0.0: [], 1.0: []}
    for prompt, answers in drawn:
        opened = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        for answer in answers:
            for part, text in ((0.0, opened), (1.0, opened + answer)):
                read[part].append(measure.score(model, tokenizer.encode(text)))
    whole = [
        measure.score(
            model, tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}])["input_ids"]
        )
        for prompt, answers in drawn
        for answer in answers
    ]
    found = value.heldout_correlations(model, model, tokenizer, drawn)
    for k, objective in enumerate(("helpfulness", "brevity", "warmth", "caution")):
        for part, scores in read.items():
            plain = np.corrcoef([row[k] for row in scores], [row[k] for row in whole])[0, 1]
            assert found[objective][part] == pytest.approx(plain, abs=0.05), "in bf16"
