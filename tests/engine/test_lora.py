"""Merged adapters against peft's own merge, and every adapter that is refused."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM as HF
from transformers import GPT2Config

from tests.engine import family
from trimtab.engine.lora import Adapter, AdapterError, is_adapter, read_shapes


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return family.base(tmp_path_factory.mktemp("lora") / "base")


def merged(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    return dict(Adapter.read(str(adapter)).merge(load_file(base / "model.safetensors").items()))


def assert_merges_like_peft(base: Path, adapter: Path) -> None:
    model = HF.from_pretrained(base, dtype=torch.float32)
    expected = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    found, before = merged(base, adapter), load_file(base / "model.safetensors")
    changed = {name for name in before if not torch.equal(found[name], before[name])}
    assert changed
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 32}},
        {"target_modules": "all-linear"},
        {"target_modules": ["gate_proj"]},
        {"layers_to_transform": [1]},
    ],
    ids=["plain", "rslora", "patterns", "all-linear", "gate", "one-layer"],
)
def test_merge(base, tmp_path, options):
    assert_merges_like_peft(base, family.adapter(tmp_path, base, **options))


def test_merge_of_transposed_weights(tmp_path):
    sizes = {"vocab_size": 64, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    base = family.checkpoint(tmp_path / "base", GPT2Config(**sizes), seed=0)
    adapter = family.adapter(tmp_path / "adapter", base, target_modules=["c_attn"], fan_in_fan_out=True)
    stored = {f"transformer.{name}" for name in load_file(base / "model.safetensors")}
    if not any(name.startswith("transformer.transformer.") for name in stored):
        weights = load_file(base / "model.safetensors")
        save_file({f"transformer.{name}": weight for name, weight in weights.items()}, base / "model.safetensors")
    assert_merges_like_peft(base, adapter)


def test_a_merge_loses_nothing_to_the_base_s_dtype(base, tmp_path):
    """A base in bf16 that is served in fp32: what A and B add is mostly less than bf16 has digits for."""
    path = family.adapter(tmp_path / "adapter", base, lora_alpha=0.01)
    HF.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    model = HF.from_pretrained(tmp_path / "base", dtype=torch.float64)
    expected = PeftModel.from_pretrained(model, path).merge_and_unload().state_dict()
    adapter = Adapter.read(str(path))
    for name, weight in adapter.merge(weights.items()):
        torch.testing.assert_close(weight.double(), expected[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["embed_tokens"]}, "valid: only A and B of linear layers"),
        ({"target_modules": ["lm_head"]}, "lm_head.base_layer"),  # a copy of the base's: it may have been resized
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refusals(base, tmp_path, options, found):
    with pytest.raises(AdapterError, match=found):
        Adapter.read(str(family.adapter(tmp_path, base, **options)))


def test_another_kind_of_adapter(base, tmp_path):
    family.adapter(tmp_path, base)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    with pytest.raises(AdapterError, match="IA3 adapter; valid: LORA"):
        Adapter.read(str(tmp_path))


def test_no_weights(base, tmp_path):
    family.adapter(tmp_path, base)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"has no adapter_model\.safetensors"):
        Adapter.read(str(tmp_path))


def test_another_base(base, tmp_path):
    adapter = Adapter.read(str(family.adapter(tmp_path / "adapter", base)))
    other = family.llama(tmp_path / "other")
    with pytest.raises(AdapterError, match="a LoRA of another base"):
        adapter.check(read_shapes(str(other)))
    with pytest.raises(AdapterError, match="a LoRA of another base"):
        dict(adapter.merge(load_file(other / "model.safetensors").items()))
    adapter.check(read_shapes(str(base)))


def test_what_is_an_adapter(base, tmp_path):
    assert is_adapter(str(family.adapter(tmp_path, base)))
    assert not is_adapter(str(base))
