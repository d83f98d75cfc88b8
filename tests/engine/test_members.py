"""What does not run together is refused before a worker starts, with the member, what was found and what is valid."""

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import vllm.v1
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MambaConfig
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.config import MODELS_CONFIG_MAP
from vllm.sampling_params import SamplingParams
from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys
from vllm.v1.request import Request

from tests.engine import family
from tests.engine.conftest import OPTIONS
from trimtab.decoders.protocols import BASE
from trimtab.engine.errors import MemberError
from trimtab.engine.launch import EngineSpec
from trimtab.engine.lora import BASE_FORMATS
from trimtab.engine.members import (
    GUIDE_FORMATS,
    SALTED_CONNECTORS,
    Guide,
    check_caches,
    engine_args,
    guide_model_config,
    read_tokenizer,
)
from trimtab.engine.plugin import ARCHITECTURE
from trimtab.engine.pooling import pooling_spec


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
        ("enable_prompt_embeds", True),
        ("logprobs_mode", "processed_logprobs"),
        ("max_logprobs", 1),
        ("speculative_config", {"method": "eagle", "model": "x"}),
    ],
)
def test_engine_options(members, option, value):
    """Some are refused beside guides alone, the others without any too."""
    with pytest.raises(MemberError, match=f"^engine: .*{value['method'] if isinstance(value, dict) else option}"):
        start(members, {"one": str(members["llama"])}, **{option: value})
    if option in ("logprobs_mode", "max_logprobs"):
        with pytest.raises(MemberError, match=f"^engine: {option}"):
            start(members, {}, **{option: value})


def reason(given):
    """Why what vLLM is given is its own model, as clients are shown it."""
    assert given["hf_overrides"].keys() == {"trimtab"}
    assert "trimtab.engine.table:RowWriter" not in given.get("logits_processors", ())
    own = given["hf_overrides"]["trimtab"]
    assert own["guides"] == []
    return own["obstacle"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("pipeline_parallel_size", 2),
        ("enable_prompt_embeds", True),
        ("enable_dbo", True),
        ("speculative_config", {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}),
    ],
)
def test_without_guides_the_base_is_vllm_s_own_where_the_composite_cannot_run(members, option, value):
    assert option.split("_")[0] in reason(start(members, {}, **{option: value})).lower()
    assert "obstacle" not in start(members, {})["hf_overrides"]["trimtab"]


@pytest.mark.parametrize("kind", ["granite", "jamba", "mamba2", "idefics3"])
def test_bases_that_keep_more_than_keys_and_values(members, tmp_path, kind):
    """Refused beside guides with the reason, and served without any."""
    path = getattr(family, kind)(tmp_path / "base")
    why = "what is no text reaches one member alone" if kind == "idefics3" else "it keeps a recurrent state"
    with pytest.raises(MemberError, match=rf"^base: {path} is a .*: .*{why}; valid beside guides: a causal text model"):
        engine_args(str(path), {"one": str(members["llama"])}, **OPTIONS)
    shown = reason(engine_args(str(path), {}, **{**OPTIONS, "block_size": None}))
    assert why in shown
    assert str(tmp_path) not in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speculative_config": {"method": "eagle", "num_speculative_tokens": 2}}, r"engine: .* speculative model"),
        ({"speculative_config": {"method": "nonsense"}}, r"engine: Input should be 'ngram'"),
        ({"speculative_config": {"method": "mtp", "num_speculative_tokens": 1}}, r"engine: Unsupported speculative"),
        ({"max_num_batched_tokens": 20, "enable_chunked_prefill": False}, r"engine: max_num_batched_tokens \(20\) is"),
    ],
)
def test_what_vllm_refuses_of_an_engine(members, options, message):
    """As a refusal of the configuration, not as a trace."""
    with pytest.raises(MemberError, match=f"^{message}") as refused:
        EngineSpec(name=BASE, args=AsyncEngineArgs(**start(members, {}, **options)))
    assert "pydantic" not in str(refused.value)


def test_adapters_of_requests(members, tmp_path):
    """What vLLM could not load, or would score wrongly, is refused before a worker starts."""
    on = {"enable_lora": True}
    good = family.adapter(tmp_path / "good", members[BASE])
    given = start(members, {}, adapters={"one": str(good)}, **on)
    assert "obstacle" not in given["hf_overrides"]["trimtab"]
    assert given["max_loras"] == 2
    assert given["lora_target_modules"] == ["down_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    head = family.adapter(tmp_path / "head", members[BASE], target_modules=["lm_head"])
    large = family.adapter(tmp_path / "large", members[BASE], r=32)
    other = family.adapter(tmp_path / "other", members[BASE], use_dora=True)
    for adapters, options, message in (
        ({"one": str(good)}, {}, "needs enable_lora: true"),
        ({}, on, "no request could name an adapter"),
        ({"one": str(tmp_path / "nowhere")}, on, "one: no adapter in .*nowhere; valid: a folder with adapter_config"),
        ({"one": str(head)}, on, "one: an adapter of lm_head scores wrongly"),
        ({"one": str(large)}, on, "one: .*rank 32 is greater than max_lora_rank 16"),
        ({"one": str(other)}, on, "one: .*DoRA"),
    ):
        with pytest.raises(MemberError, match=f"^engine: {message}"):
            start(members, {}, adapters=adapters, **options)


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


def test_vocabulary_is_checked_before_positions(members, tmp_path):
    """A guide of another family has neither: that its tokens mean something else is what no option mends."""
    short = family.checkpoint(tmp_path / "short", LlamaConfig(**family.sizes(64, 1, 2, max_position_embeddings=128)), 1)
    family.tokenizer(short, [*family.VOCABULARY[1::-1], *family.VOCABULARY[2:]])
    with pytest.raises(MemberError, match="another tokenizer than the base's"):
        start(members, {"one": str(short)})


def test_a_tokenizer_is_read_once(members, monkeypatch):
    from transformers import AutoTokenizer

    read = []
    load = AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda place, **how: (read.append(place), load(place, **how))[1]
    )
    read_tokenizer.cache_clear()
    start(members, {"one": str(members["llama"]), "two": str(members["llama"]), "three": str(members["qwen"])})
    assert sorted(read) == sorted(str(members[name]) for name in (BASE, "llama", "qwen"))


def folder_of(tmp_path, members, kind):
    """A folder that is no checkpoint."""
    path = tmp_path / kind
    if kind == "file.gguf":
        path.write_bytes(b"GGUF")
    elif kind == "file":
        path.write_text("x")
    elif kind != "missing":
        path.mkdir()
    if kind == "gguf-inside":
        (path / "model.gguf").write_bytes(b"GGUF")
    if kind == "one-deeper":
        shutil.copytree(members["llama"], path / "snapshot")
    if kind == "no-config":
        (path / "model.safetensors").write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "there is no .*missing; valid: a folder with config.json"),
        ("empty", "empty is empty; valid: a folder with config.json"),
        ("file", "file is a file; valid: a folder"),
        ("file.gguf", "file.gguf is a GGUF file, which is not served; valid: a folder"),
        ("gguf-inside", "gguf-inside holds a GGUF file, which is not served"),
        ("no-config", "no-config has no config.json; valid"),
        ("one-deeper", "one-deeper has no config.json; .*one-deeper/snapshot has one"),
    ],
)
def test_a_path_that_leads_to_no_checkpoint(members, tmp_path, kind, message):
    path = str(folder_of(tmp_path, members, kind))
    with pytest.raises(MemberError, match=f"^one: .*{message}"):
        start(members, {"one": path})
    with pytest.raises(MemberError, match=f"^base: .*{message}"):
        engine_args(path, {}, **OPTIONS)
    with pytest.raises(MemberError, match=f"^reward: .*{message}"):
        pooling_spec("reward", path)


def test_an_adapter_is_no_base(members):
    with pytest.raises(
        MemberError,
        match=r"^base: .* is an adapter \(adapter_config.json\), which a guide or a reward can be, or an entry",
    ):
        engine_args(str(members["lora"]), {}, **OPTIONS)


@pytest.mark.parametrize(
    "options",
    [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["embed_tokens"]}],
    ids=lambda options: next(iter(options)),
)
def test_an_adapter_that_is_more_than_a_and_b_says_what_to_do(members, tmp_path, options):
    family.adapter(tmp_path, members[BASE], **options)
    with pytest.raises(MemberError, match=r"merge_and_unload.*serve it as a checkpoint"):
        start(members, {"one": str(tmp_path)})


def test_an_adapter_of_a_reward_model_is_no_guide(members, tmp_path):
    adapter = family.reward_adapter(tmp_path, members[BASE], 1)
    with pytest.raises(MemberError, match=r"^one: .* is an adapter of a reward model's \(task_type SEQ_CLS\)"):
        start(members, {"one": str(adapter)})


def test_formats_that_yield_weights_one_by_one():
    ours = {form for form, loader in _LOAD_FORMAT_TO_MODEL_LOADER.items() if loader is DefaultModelLoader}
    assert set(BASE_FORMATS) == ours - {"mistral"}  # whose names for weights PEFT does not know
    assert set(GUIDE_FORMATS) == ours | {"dummy", "runai_streamer"}


@pytest.mark.parametrize(
    ("guide", "form", "refused"),
    [
        ("llama", "sharded_state", "reads no member's own checkpoint; valid: auto, "),
        ("lora", "tensorizer", "reads no member's own checkpoint; valid: auto, "),
        ("llama", "safetensors", None),
        ("lora", "safetensors", None),
        ("llama", "dummy", None),
        ("lora", "dummy", "an adapter cannot be merged into weights of load_format='dummy'; valid: auto, "),
        ("lora", "runai_streamer", "cannot be merged"),
        ("lora", "mistral", "cannot be merged"),
    ],
)
def test_formats_that_weights_are_loaded_by(members, guide, form, refused):
    if refused is None:
        start(members, {"one": str(members[guide])}, load_format=form)
        return
    with pytest.raises(MemberError, match=refused) as caught:
        start(members, {"one": str(members[guide])}, load_format=form)
    assert (caught.value.member, caught.value.option) == ("engine", "load_format")
    assert start(members, {}, load_format=form)["load_format"] == form


def spoil(folder, fault):
    """A checkpoint in parts, and what is wrong with it."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    index, last = folder / "model.safetensors.index.json", max(folder.glob("*.safetensors"))
    if fault == "part":
        last.unlink()
    elif fault == "pointer":
        last.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    elif fault == "cut":
        last.write_bytes(last.read_bytes()[:9])
    elif fault == "index":
        index.write_text("{}")
    else:  # what the index does not name is not read
        (folder / "consolidated.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("part", r"has no model-000\d\d-of-000\d\d.safetensors, which model.safetensors.index.json names; valid: all"),
        ("pointer", "cannot be read: .*; it is a pointer of Git LFS's, whose file `git lfs pull` fetches"),
        ("cut", "model-.*safetensors cannot be read: "),
        ("index", "model.safetensors.index.json cannot be read: KeyError"),
        ("none", None),
    ],
)
def test_a_checkpoint_whose_parts_are_not_all_there(members, tmp_path, fault, message):
    path = shutil.copytree(members["llama"], tmp_path / "parts")
    spoil(path, fault)
    if message is None:
        start(members, {"one": str(path)})
        return
    with pytest.raises(MemberError, match=f"^one: .*{message}"):
        start(members, {"one": str(path)})
    with pytest.raises(MemberError, match=f"^base: .*{message}"):
        engine_args(str(path), {}, **OPTIONS)
    with pytest.raises(MemberError, match=f"^r: .*{message}"):
        pooling_spec("r", str(path), **OPTIONS)


def test_an_adapter_with_files_that_cannot_be_read(members, tmp_path):
    for file, content, message in (
        ("adapter_config.json", "{", "adapter_config.json cannot be read"),
        ("adapter_config.json", '{"peft_type": "LORA"}', "says no lora_alpha"),
        ("adapter_model.safetensors", "x", "adapter_model.safetensors cannot be read"),
    ):
        family.adapter(tmp_path, members[BASE])
        (tmp_path / file).write_text(content)
        with pytest.raises(MemberError, match=message):
            start(members, {"one": str(tmp_path)})


def draft(members, tmp_path, name="draft", **config):
    """A draft that is a Llama by its looks, with some of its config changed."""
    path = tmp_path / name
    shutil.copytree(members["llama"], path)
    whole = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**whole, **config}))
    return {"model": str(path), "num_speculative_tokens": 2}


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["LlamaForCausalLMEagle3"]},
        {"architectures": ["EagleLlamaForCausalLM"]},
        {"draft_vocab_size": 100},
        {"model_type": "medusa", "architectures": ["MedusaModel"]},
    ],
    ids=["eagle3", "eagle", "draft-vocabulary", "medusa"],
)
@pytest.mark.parametrize("method", [{}, {"method": "draft_model"}], ids=["by-itself", "draft_model"])
def test_a_draft_is_what_its_config_says(members, tmp_path, config, method):
    """Whatever its folder is called, and whatever method it is put under."""
    with pytest.raises(MemberError, match=r"^engine: speculative draft .* reads the base's hidden states"):
        start(
            members, {"one": str(members["llama"])}, speculative_config={**draft(members, tmp_path, **config), **method}
        )


def test_a_draft_whose_weights_are_a_head(members, tmp_path):
    speculative = draft(members, tmp_path)
    weights = load_file(Path(speculative["model"]) / "model.safetensors")
    save_file({**weights, "fc.weight": torch.zeros(2, 2)}, Path(speculative["model"]) / "model.safetensors")
    with pytest.raises(MemberError, match=r"\(fc.weight\) reads the base's hidden states"):
        start(members, {"one": str(members["llama"])}, speculative_config=speculative)
    assert "draft draft (fc.weight) reads" in reason(start(members, {}, speculative_config=speculative))


def test_a_draft_that_is_a_language_model(members, tmp_path):
    start(members, {}, speculative_config=draft(members, tmp_path))
    with pytest.raises(MemberError, match=r"takes draft .* for another method because of 'eagle-' in its name"):
        start(members, {}, speculative_config=draft(members, tmp_path, name="eagle-eyed"))


OFFLOADING = Path(next(iter(vllm.v1.__path__))) / "simple_kv_offload"
MULTI = {"kv_connector": "MultiConnector", "kv_role": "kv_both"}


def connectors(*names):
    return {**MULTI, "kv_connector_extra_config": {"connectors": [{"kv_connector": name} for name in names]}}


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"kv_transfer_config": {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}}, "LMCacheConnectorV1"),
        ({"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}}, "ExampleConnector"),
        ({"kv_transfer_config": {"kv_connector": "NixlConnector", "kv_role": "kv_both"}}, "NixlConnector"),
        (
            {"kv_transfer_config": {"kv_connector": "OffloadingConnector", "kv_connector_module_path": "x"}},
            "Offloading",
        ),
        ({"kv_transfer_config": KVTransferConfig(kv_connector="FlexKVConnectorV1", kv_role="kv_both")}, "FlexKV"),
        ({"kv_transfer_config": connectors("OffloadingConnector", "HF3FSKVConnector")}, "HF3FSKVConnector"),
        ({"kv_transfer_config": MULTI}, "MultiConnector"),
        ({"kv_offloading_size": 1.0, "kv_offloading_backend": "lmcache"}, "lmcache"),
        ({"kv_transfer_config": {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}}, None),
        ({"kv_transfer_config": connectors("OffloadingConnector", "SimpleCPUOffloadConnector")}, None),
        ({"kv_offloading_size": 1.0}, None),
        ({}, None),
    ],
)
def test_what_keeps_keys_and_values_keeps_guides_apart(options, refused):
    if refused is None:
        check_caches(options)
    else:
        with pytest.raises(MemberError, match=rf"^engine: .*{refused}.* may serve a guided request blocks"):
            check_caches(options)


def test_connectors_matter_beside_guides_only(members):
    transfer = {"kv_transfer_config": KVTransferConfig(kv_connector="ExampleConnector", kv_role="kv_both")}
    with pytest.raises(MemberError, match="ExampleConnector"):
        start(members, {"one": str(members["llama"])}, **transfer)
    start(members, {}, **transfer)


def test_the_connectors_let_in_key_by_vllm_s_hashes():
    """Their schedulers look blocks up by the request's block hashes, into which vLLM mixes the salt."""
    for name in SALTED_CONNECTORS:
        connector = KVConnectorFactory.get_connector_class_by_name(name)
        package = Path(inspect.getfile(connector)).parent
        sources = "".join(file.read_text() for file in (*package.rglob("*.py"), *OFFLOADING.rglob("*.py")))
        assert ".block_hashes" in sources, name
    salted = {}
    for salt in (None, "one"):
        request = Request("r", list(range(32)), SamplingParams(), None, cache_salt=salt)
        salted[salt] = generate_block_hash_extra_keys(request, 0, 16, 0)[0]
    assert salted[None] != salted["one"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 48}, "has 3 attention heads.*valid: 1$"),
        (
            {"num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 129},
            "129 units in its inner layers",
        ),
    ],
)
def test_a_guide_that_tensor_parallelism_cannot_share_out(members, tmp_path, config, message):
    sizes = family.sizes(64, 1, 4)
    path = family.checkpoint(tmp_path / "odd", LlamaConfig(**{**sizes, **config}), 1)
    with pytest.raises(MemberError, match=rf"^one: .*{message}"):
        start(members, {"one": str(path)}, tensor_parallel_size=2)
    start(members, {"one": str(path)})


def test_key_value_heads_are_shared_out_or_copied(members, tmp_path):
    """vLLM's own rule: a rank has whole heads, or a head has whole ranks."""
    three = LlamaConfig(**{**family.sizes(48, 1, 6, num_key_value_heads=3), "intermediate_size": 96})
    path = family.checkpoint(tmp_path / "three", three, 1)
    with pytest.raises(
        MemberError, match=r"^one: .* has 3 key-value heads, which do not go into tensor_parallel_size=2"
    ):
        start(members, {"one": str(path)}, tensor_parallel_size=2)
    one = family.checkpoint(tmp_path / "single", LlamaConfig(**family.sizes(64, 1, 4, num_key_value_heads=1)), 1)
    start(members, {"one": str(one)}, tensor_parallel_size=2)


@pytest.mark.parametrize("member", [BASE, "one"])
def test_a_model_with_a_state_of_its_own_is_refused(members, monkeypatch, member):
    from vllm.model_executor.models.llama import LlamaForCausalLM
    from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM

    chosen = LlamaForCausalLM if member == BASE else Qwen2ForCausalLM
    monkeypatch.setattr(chosen, "get_model_state_cls", classmethod(lambda cls: None), raising=False)
    with pytest.raises(MemberError, match=rf"^{member}: .* brings a model state of its own"):
        start(members, {"one": str(members["qwen"])})


@pytest.mark.slow
def test_a_name_without_a_slash_that_is_no_folder(members, monkeypatch):
    """It may be a model of the hub, and where the hub has none either the message says both."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for check in (
        lambda: engine_args("my-model", {}, **OPTIONS),
        lambda: start(members, {"one": "my-model"}),
        lambda: pooling_spec("reward", "my-model"),
    ):
        with pytest.raises(MemberError, match=r"there is no folder 'my-model', and on Hugging Face: "):
            check()
