"""What does not run together is refused before a worker starts, with the member, what was found and what is valid."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, MambaConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.model_executor.models.config import MODELS_CONFIG_MAP

from tests.engine import family
from tests.engine.conftest import OPTIONS
from trimtab.decoders.protocols import BASE
from trimtab.engine.errors import MemberError
from trimtab.engine.members import Guide, engine_args, guide_model_config
from trimtab.engine.plugin import ARCHITECTURE


def start(members, guides, **options):
    return engine_args(str(members[BASE]), guides, **{**OPTIONS, **options})


def test_what_vllm_is_given(members):
    given = start(members, {"one": str(members["llama"]), "two": {"model": str(members["lora"])}})
    assert given["model"] == str(members[BASE])
    assert given["hf_overrides"]["architectures"] == [ARCHITECTURE]
    own = given["hf_overrides"]["trimtab"]
    assert own["architectures"] == ["LlamaForCausalLM"]
    assert [guide["name"] for guide in own["guides"]] == ["one", "two"]
    assert own["guides"][1]["model"] == str(members[BASE])
    assert own["guides"][1]["adapter"] == str(members["lora"])
    assert given["max_num_seqs"] == OPTIONS["max_num_seqs"]
    json.dumps(given["hf_overrides"])


@pytest.mark.parametrize("name", ["", "base", "1", "a.0", "a b", "ü"])
def test_guide_names(members, name):
    with pytest.raises(MemberError, match="not a guide's name"):
        start(members, {name: str(members["llama"])})


def test_guide_options(members):
    with pytest.raises(MemberError, match=r"^one: unknown option 'dtype'; valid: hf_overrides, model"):
        start(members, {"one": {"model": str(members["llama"]), "dtype": "float16"}})
    with pytest.raises(MemberError, match=r"^one: `model` must be a path or a hub id, not None"):
        start(members, {"one": {}})


@pytest.mark.slow
def test_missing_files(members, tmp_path):
    with pytest.raises(MemberError, match=r"^one: .*nowhere"):
        start(members, {"one": str(tmp_path / "nowhere")})
    with pytest.raises(MemberError, match=r"^base: .*nowhere"):
        engine_args(str(tmp_path / "nowhere"), {}, **OPTIONS)
    shutil.copytree(members["llama"], tmp_path / "no_weights")
    (tmp_path / "no_weights" / "model.safetensors").unlink()
    with pytest.raises(MemberError, match=r"^one: no weights in .*no_weights; valid: safetensors"):
        start(members, {"one": str(tmp_path / "no_weights")})
    shutil.copytree(members["llama"], tmp_path / "no_tokenizer")
    for file in (tmp_path / "no_tokenizer").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(MemberError, match=r"^one: no tokenizer in .*; say where it is in the option `tokenizer`"):
        start(members, {"one": str(tmp_path / "no_tokenizer")})
    start(members, {"one": {"model": str(tmp_path / "no_tokenizer"), "tokenizer": str(members[BASE])}})


def test_another_tokenizer(members, tmp_path):
    shutil.copytree(members["llama"], tmp_path / "other")
    family.tokenizer(tmp_path / "other", [*family.VOCABULARY[1::-1], *family.VOCABULARY[2:]])
    with pytest.raises(MemberError, match=r"^one: another tokenizer than the base's: 2 of 259 ids mean another token"):
        start(members, {"one": str(tmp_path / "other")})


def test_too_few_positions(members, tmp_path):
    short = family.checkpoint(tmp_path / "short", LlamaConfig(**family.sizes(64, 1, 2, max_position_embeddings=128)), 1)
    with pytest.raises(MemberError, match=r"^one: .* has 128 positions and .* asks for 256; valid: .* at most 128"):
        start(members, {"one": str(short)})
    start(members, {"one": str(short)}, max_model_len=128)


def test_unknown_architecture(members, tmp_path):
    shutil.copytree(members["llama"], tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, "architectures": ["OddForCausalLM"]}))
    with pytest.raises(MemberError, match=r"^one: .*OddForCausalLM"):
        start(members, {"one": str(tmp_path / "odd")})


def test_a_state_space_guide(members, tmp_path):
    sizes = {"vocab_size": family.PADDED, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 8}
    mamba = family.checkpoint(tmp_path / "mamba", MambaConfig(**sizes), seed=1)
    with pytest.raises(MemberError, match=r"^one: .* is a hybrid or state-space model"):
        start(members, {"one": str(mamba)})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("pipeline_parallel_size", 2),
        ("enable_lora", True),
        ("enable_prompt_embeds", True),
        ("logprobs_mode", "processed_logprobs"),
        ("max_logprobs", 1),
        ("speculative_config", {"method": "eagle", "model": "x"}),
    ],
)
def test_engine_options(members, option, value):
    with pytest.raises(MemberError, match=f"^engine: .*{value['method'] if isinstance(value, dict) else option}"):
        start(members, {}, **{option: value})


def test_an_adapter_s_options(members):
    with pytest.raises(MemberError, match=r"^one: quantization does not apply to a LoRA adapter"):
        start(members, {"one": {"model": str(members["lora"]), "quantization": "fp8"}})


def test_an_adapter_of_another_base(members):
    with pytest.raises(MemberError, match=r"^one: a LoRA of another base: it changes model\.layers\.0\."):
        engine_args(str(members["llama"]), {"one": str(members["lora"])}, **OPTIONS)


def test_an_adapter_s_own_refusals(members, tmp_path):
    family.adapter(tmp_path, members[BASE], use_dora=True)
    with pytest.raises(MemberError, match=r"^one: .* has use_dora=True"):
        start(members, {"one": str(tmp_path)})


@pytest.mark.slow
def test_usage_statistics_are_off():
    """In a process that never heard of it, and unless the environment says otherwise."""
    code = (
        "import os, trimtab.engine, vllm.envs; print(os.environ['VLLM_NO_USAGE_STATS'], vllm.envs.VLLM_NO_USAGE_STATS)"
    )
    environment = {"PATH": str(Path(sys.executable).parent), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "True"]
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment, "VLLM_NO_USAGE_STATS": "0"}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["0", "False"]


def test_two_guides_of_one_path_share_no_compile_cache(members):
    config = start(members, {"one": str(members["llama"]), "two": str(members["llama"])})
    base = AsyncEngineArgs(**config).create_model_config()
    one, two = (
        guide_model_config(Guide(**options), base, None) for options in config["hf_overrides"]["trimtab"]["guides"]
    )
    assert one.compute_hash() != two.compute_hash()


def test_the_base_s_own_hooks_are_called(members, monkeypatch):
    """vLLM adjusts configs by architecture, and ours would hide the base's."""
    seen = []

    class Hooks:
        @staticmethod
        def verify_and_update_config(config):
            seen.append("engine")

        @staticmethod
        def verify_and_update_model_config(config):
            seen.append("model")

    given = start(members, {})
    monkeypatch.setitem(MODELS_CONFIG_MAP, "LlamaForCausalLM", Hooks)
    AsyncEngineArgs(**given).create_engine_config()
    assert set(seen) == {"engine", "model"}
