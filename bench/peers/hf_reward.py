"""A reward model without a server: Hugging Face transformers in the process that uses the scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trimtab.bench.peers.loop import Conversation


class HFReward:
    def __init__(self, path: Path, label: str) -> None:
        self.model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.label: int = self.model.config.label2id[label]

    @torch.inference_mode()
    def __call__(self, conversations: Sequence[Conversation]) -> list[float]:
        """[N] scores of whole conversations, in one batch."""
        texts = [self.tokenizer.apply_chat_template(list(c), tokenize=False) for c in conversations]
        inputs = self.tokenizer(
            texts, padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt"
        )
        scores: list[float] = self.model(**inputs).logits[:, self.label].tolist()
        return scores

    def in_turn(self, conversations: Sequence[Conversation]) -> list[float]:
        return [self([conversation])[0] for conversation in conversations]
