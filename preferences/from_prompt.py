"""Preference weights from the prompt alone: Preference Orchestrator (arXiv 2511.10656), with the smallest adapter.

    w(x) = softmax(b + A mean_t e(x_t))                                                                              (1)

e are the base's input embeddings, so A e is a table with a row per token, and the file holds this table. It is trained
towards softmax of the normalised rewards of the answers that people preferred (recipes/orchestrator.py).
Shapes: V vocabulary, K objectives.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from transformers.utils.hub import cached_file

from trimtab.decoders.protocols import Tokens

FILE = "adapter.safetensors"


@dataclass(frozen=True, kw_only=True)
class Orchestrator:
    """From a prompt to weights that are positive and sum to 1."""

    objectives: tuple[str, ...]
    table_VK: NDArray[np.float32]
    bias_K: NDArray[np.float32]

    def __call__(self, prompt: Tokens) -> dict[str, float]:
        """objective -> weight; the prompt is the user's text alone, in the base's tokens and without special ones."""
        logits = self.bias_K.astype(np.float64)
        if len(prompt):
            logits = logits + self.table_VK[list(prompt)].mean(axis=0, dtype=np.float64)  # (1)
        shares = np.exp(logits - logits.max())
        return dict(zip(self.objectives, map(float, shares / shares.sum()), strict=True))


@cache
def load(model: str) -> Orchestrator:
    """From a folder or a Hugging Face id. Raises ValueError for a missing or unreadable file."""
    try:
        with safe_open(cached_file(model, FILE), framework="numpy") as file:
            objectives = json.loads((file.metadata() or {})["objectives"])
            orchestrator = Orchestrator(
                objectives=tuple(objectives),
                table_VK=file.get_tensor("table").astype(np.float32),
                bias_K=file.get_tensor("bias").astype(np.float32),
            )
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        why = str(error).partition("\n")[0]
        raise ValueError(f"{model} holds no {FILE} that says its objectives, table and bias: {why}") from None
    if orchestrator.table_VK.shape[1:] != (len(objectives),) or orchestrator.bias_K.shape != (len(objectives),):
        raise ValueError(f"{model}: a table of {orchestrator.table_VK.shape} does not fit {len(objectives)} objectives")
    return orchestrator
