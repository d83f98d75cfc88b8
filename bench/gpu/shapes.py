"""A model's sizes: its directory without weights, and lower bounds on the time of its decode step.

A decode step of B sequences of mean length L multiplies by every matrix and reads every sequence's keys and values.
Over the members m of an engine, in bf16:

    W = 2 Σ_m P_m                    bytes of weights; P: parameters without the input embedding (a step reads B rows
                                     of it), but with it where it is tied, since then it is the head too
    C = B L Σ_m k_m                  bytes of keys and values; k = 2 (keys, values) · layers · kv heads · head size · 2
    floor = (W + C) / R              seconds; R: bytes a second that the device reads                                (1)
    bound = max(W / R, B W / F) + C / R                                                                              (2)

F: bf16 operations a second that the device multiplies with; B rows times P parameters are 2 B P = B W operations. (2)
is (1) until the batch is so large that multiplying takes longer than reading the weights. Neither counts activations,
logits, sampling or the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, PreTrainedTokenizerFast

BYTES = 2
"""Per bf16 number."""


def tokenizer(path: Path, size: int) -> None:
    """One word per id; the first three are the special tokens, which a model's class would otherwise add."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    special = {"unk_token": "w0", "pad_token": "w0", "bos_token": "w1", "eos_token": "w2"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(path)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama's sizes."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool = False

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            architectures=["LlamaForCausalLM"],
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate,
            tie_word_embeddings=self.tied,
            max_position_embeddings=4096,
            bos_token_id=1,
            eos_token_id=2,
        )

    def write(self, path: Path) -> str:
        """A directory for `load_format="dummy"`: config, a tokenizer of one word per id, and no weights."""
        self.config().save_pretrained(path)
        tokenizer(path, self.vocabulary)
        save_file({}, path / "model.safetensors")  # engine.members refuses a directory that has none
        return str(path)

    @property
    def read_parameters(self) -> int:
        """P of (1). Input embedding and head have one size, and a step reads one of them, tied or not."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + self.hidden + self.vocabulary * self.hidden

    @property
    def kv_bytes(self) -> int:
        """k of (1), bytes a token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BYTES


def weight_bytes(members: Sequence[Shape]) -> int:
    """W of (1)."""
    return BYTES * sum(shape.read_parameters for shape in members)


def cache_bytes(members: Sequence[Shape], batch: int, length: float) -> float:
    """C of (1)."""
    return batch * length * sum(shape.kv_bytes for shape in members)


def floor(members: Sequence[Shape], batch: int, length: float, *, bandwidth: float) -> float:
    """(1)"""
    return (weight_bytes(members) + cache_bytes(members, batch, length)) / bandwidth


def bound(members: Sequence[Shape], batch: int, length: float, *, bandwidth: float, flops: float) -> float:
    """(2)"""
    W = weight_bytes(members)
    return max(W / bandwidth, batch * W / flops) + cache_bytes(members, batch, length) / bandwidth
