"""A family of tiny random models in one vocabulary, with weights large enough that their distributions are peaked."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM as HF
from transformers import (
    AutoTokenizer,
    GraniteMoeHybridConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    JambaConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
    Mamba2Config,
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


def reward_adapter(path: Path, base_path: Path, labels: int, *, tokens: int = PADDED, **options: object) -> Path:
    """A LoRA of the base with a head of so many scores, as TRL's RewardTrainer saves it, and the base's tokenizer with
    a padding token of its own where it has grown to so many tokens."""
    model = LlamaForSequenceClassification.from_pretrained(base_path, num_labels=labels, dtype=torch.float32)
    torch.manual_seed(8)
    if tokens != PADDED:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    chosen = {"r": 4, "lora_alpha": 8, "target_modules": targets, "init_lora_weights": False, **options}
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", **chosen))
    with warnings.catch_warnings(action="ignore"):  # peft's, that it saves the embedding that has grown
        adapted.save_pretrained(path)
    reader = AutoTokenizer.from_pretrained(base_path)
    if tokens != PADDED:
        reader.add_tokens([f"<{i}>" for i in range(len(reader), tokens - 1)])
        reader.add_special_tokens({"pad_token": "<new pad>"})
    reader.save_pretrained(path)
    return path


def scorer(path: Path, labels: Sequence[str], seed: int, **more: object) -> Path:
    """A reward model with a head of so many labels."""
    config = LlamaConfig(**sizes(64, 2, 2, **more), id2label=dict(enumerate(labels)))
    torch.manual_seed(seed)
    LlamaForSequenceClassification(config).save_pretrained(path)
    tokenizer(path, VOCABULARY)
    return path


def jamba(path: Path) -> Path:
    """Mamba and attention in turn."""
    own = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "mamba_d_state": 8, "mamba_dt_rank": 8}
    return checkpoint(path, JambaConfig(**sizes(64, 2, 2, **own), use_mamba_kernels=False), seed=7)


def granite(path: Path) -> Path:
    """Mamba 2 and attention in turn."""
    own: dict[str, object] = {
        "layer_types": ["mamba", "attention"], "shared_intermediate_size": 128, "num_local_experts": 0,
        "num_experts_per_tok": 0, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 16,
        "position_embedding_type": "rope",
    }  # fmt: skip
    return checkpoint(path, GraniteMoeHybridConfig(**sizes(64, 2, 2, **own)), seed=6)


def mamba2(path: Path) -> Path:
    """No attention at all."""
    config = Mamba2Config(
        vocab_size=PADDED, hidden_size=64, num_hidden_layers=2, num_heads=8, head_dim=16, state_size=16, n_groups=1,
        chunk_size=16, initializer_range=0.25, bos_token_id=257, eos_token_id=258, pad_token_id=256,
    )  # fmt: skip
    return checkpoint(path, config, seed=10)


def eagle(path: Path, base_path: Path) -> Path:
    """An EAGLE head of the base: one layer over its hidden states."""
    config = LlamaConfig(**sizes(64, 1, 2), architectures=["LlamaForCausalLM"])
    torch.manual_seed(8)
    layer = {
        name.removeprefix("model."): weight
        for name, weight in HF.from_config(config, dtype=torch.float32).state_dict().items()
        if name.startswith("model.layers.") and "input_layernorm" not in name
    }
    embedding = load_file(base_path / "model.safetensors")["model.embed_tokens.weight"]
    config.save_pretrained(path)
    head = {**layer, "embed_tokens.weight": embedding, "fc.weight": 0.1 * torch.randn(64, 128)}
    save_file(head, path / "model.safetensors")
    return path


def idefics3(path: Path) -> Path:
    """A Llama that sees an image of 56 by 56 pixels as four tokens."""
    text = LlamaConfig(**sizes(64, 2, 2, max_position_embeddings=1024))
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Idefics3Config(
        vision_config={**vision, "image_size": 56, "patch_size": 14}, text_config=text, image_token_id=259,
        scale_factor=2, tie_word_embeddings=False, pad_token_id=256,
    )  # fmt: skip
    torch.manual_seed(9)
    model = Idefics3ForConditionalGeneration(config)
    with torch.no_grad():
        model.model.connector.modality_projection.proj.weight.normal_(std=0.5)  # so that images are told apart
    model.save_pretrained(path)
    tokenizer(path, VOCABULARY)
    reader = PreTrainedTokenizerFast.from_pretrained(path)
    marks = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    reader.add_special_tokens({"additional_special_tokens": marks})
    pixels = {"longest_edge": 56}
    Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(size=pixels, max_image_size=pixels, do_image_splitting=False),
        tokenizer=reader, image_seq_len=4,
        chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}",
    ).save_pretrained(path)  # fmt: skip
    return path
