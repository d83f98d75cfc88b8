"""A family of tiny random models in one vocabulary, with weights large enough that their distributions are peaked."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM as HF
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ["<pad>", "<s>", "</s>"]
VOCABULARY = [*BYTES, *SPECIAL]  # 259; <s> 257, </s> 258
PADDED = 264
POSITIONS = 256


def tokenizer(path: Path, vocabulary: list[str]) -> None:
    raw = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = {f"{kind}_token": token for kind, token in zip(("pad", "bos", "eos"), SPECIAL, strict=True)}
    known = {kind: token for kind, token in special.items() if token in vocabulary}
    PreTrainedTokenizerFast(tokenizer_object=raw, **known).save_pretrained(path)


def checkpoint(path: Path, config: object, seed: int, vocabulary: list[str] = VOCABULARY) -> Path:
    torch.manual_seed(seed)
    HF.from_config(config, dtype=torch.float32).save_pretrained(path)
    tokenizer(path, vocabulary)
    return path


def sizes(hidden: int, layers: int, heads: int, **more: object) -> dict[str, object]:
    return {
        "vocab_size": PADDED, "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": 1, "max_position_embeddings": POSITIONS,
        "initializer_range": 0.25, "bos_token_id": 257, "eos_token_id": 258, "pad_token_id": 256,
        "tie_word_embeddings": False, **more,
    }  # fmt: skip


def base(path: Path) -> Path:
    return checkpoint(path, LlamaConfig(**sizes(64, 3, 2, vocab_size=PADDED)), seed=0)


def llama(path: Path) -> Path:
    return checkpoint(path, LlamaConfig(**sizes(64, 2, 1)), seed=1)


def qwen(path: Path) -> Path:
    """Biases in attention, tied embeddings, and a vocabulary without the padding."""
    return checkpoint(path, Qwen2Config(**sizes(64, 2, 2, vocab_size=259, tie_word_embeddings=True)), seed=2)


def windowed(path: Path) -> Path:
    return checkpoint(path, MistralConfig(**sizes(64, 2, 2, sliding_window=24)), seed=3)


def shorter(path: Path) -> Path:
    """Knows the first 200 tokens only."""
    own = sizes(64, 1, 2, vocab_size=200, eos_token_id=199, bos_token_id=198, pad_token_id=197)
    return checkpoint(path, LlamaConfig(**own), seed=4, vocabulary=VOCABULARY[:200])


def adapter(path: Path, base_path: Path, **options: object) -> Path:
    """A LoRA of the base with a B that is not zero."""
    model = HF.from_pretrained(base_path, dtype=torch.float32)
    torch.manual_seed(5)
    targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": targets, "init_lora_weights": False, **options})
    with warnings.catch_warnings(action="ignore"):  # peft's advice on what some of the refused options do
        get_peft_model(model, config).save_pretrained(path)
    return path


def scorer(path: Path, labels: Sequence[str], seed: int) -> Path:
    """A reward model with a head of so many labels."""
    config = LlamaConfig(**sizes(64, 2, 2), id2label=dict(enumerate(labels)))
    torch.manual_seed(seed)
    LlamaForSequenceClassification(config).save_pretrained(path)
    tokenizer(path, VOCABULARY)
    return path
