"""Reward models in the forms that people have them in, on vLLM, against `transformers` and PEFT in fp64."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Qwen2Config
from vllm.config.load import LoadConfig
from vllm.engine.arg_utils import AsyncEngineArgs

from tests.engine import family
from tests.engine.conftest import OPTIONS
from trimtab.engine.adapter_loader import AdapterLoader
from trimtab.engine.errors import MemberError
from trimtab.engine.lora import Adapter
from trimtab.engine.pooling import pooling_spec, running_pooler
from trimtab.engine.toy_client import build_toy_pooler

GROWN = 272
LENGTH = 100
BODY = list(range(40, 90))


def inputs(padding: int) -> list[list[int]]:
    """Some end with what their model takes for padding, at which `transformers` reads no score."""
    return [BODY, [7], [*BODY, padding], [*BODY, padding, padding], [padding, *BODY, padding], [padding], [*BODY, 3]]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return family.base(tmp_path / "base")


def make_shards(path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Several files and an index."""
    kind = AutoModelForSequenceClassification if "Sequence" in (path / "config.json").read_text() else None
    model = (kind or AutoModelForCausalLM).from_pretrained(path, dtype=dtype)
    (path / "model.safetensors").unlink()
    model.save_pretrained(path, max_shard_size="100KB")
    assert (path / "model.safetensors.index.json").exists()


@torch.no_grad()
def expected(model: Any, batches: Iterable[list[int]]) -> torch.Tensor:
    """[N, K]"""
    return torch.stack([model.eval()(torch.tensor([tokens])).logits[0] for tokens in batches])


async def assert_scores(model: Any, batches: list[list[int]], place: Path, **options: Any) -> None:
    theirs = expected(model, batches)
    assert theirs.abs().max() > 0.5, "scores too small to tell apart"
    async with running_pooler("reward", str(place), **{**OPTIONS, **options}) as pooler:
        torch.testing.assert_close(
            torch.tensor(await pooler.score(batches)).double(), theirs.double(), atol=1e-4, rtol=1e-4
        )


def with_peft(base: Path, adapter: Path, labels: int, tokens: int = family.PADDED) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, dtype=torch.float64)
    if tokens != family.PADDED:
        model.resize_token_embeddings(tokens, mean_resizing=False)
        model.config.pad_token_id = tokens - 1
    return PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)


@pytest.mark.engine
async def test_an_adapter_with_a_head(base: Path, tmp_path: Path) -> None:
    """Its own config says where its base is."""
    adapter = family.reward_adapter(tmp_path / "adapter", base, 1)
    await assert_scores(with_peft(base, adapter, 1), inputs(256), adapter)


@pytest.mark.engine
async def test_an_adapter_of_a_base_in_parts_whose_vocabulary_has_grown(base: Path, tmp_path: Path) -> None:
    make_shards(base, torch.bfloat16)
    adapter = family.reward_adapter(tmp_path / "adapter", base, 3, tokens=GROWN)
    moved = tmp_path / "elsewhere"
    shutil.copytree(base, moved)
    shutil.rmtree(base)
    batches = [*inputs(GROWN - 1), [*BODY, 265, 270]]
    await assert_scores(with_peft(moved, adapter, 3, GROWN), batches, adapter, base=str(moved))


@pytest.mark.engine
async def test_a_checkpoint_in_parts_of_another_length(tmp_path: Path) -> None:
    family.scorer(tmp_path, ("only",), seed=3, max_position_embeddings=LENGTH)
    make_shards(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64)
    options = {"max_model_len": None}
    assert pooling_spec("reward", str(tmp_path), **{**OPTIONS, **options}).config.model_config.max_model_len == LENGTH
    await assert_scores(model, [*inputs(256), BODY * 2], tmp_path, **options)


@pytest.mark.engine
@pytest.mark.parametrize(("architecture", "labels"), [("Qwen2ForRewardModel", 1), ("Qwen2ForProcessRewardModel", 2)])
async def test_a_reward_model_that_scores_tokens_alone(tmp_path: Path, architecture: str, labels: int) -> None:
    """Qwen2.5-Math-RM and -PRM: two layers for a head, which `transformers` does not have."""
    path = family.checkpoint(tmp_path, Qwen2Config(**family.sizes(64, 2, 2)), seed=9)
    body = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    torch.manual_seed(10)
    head = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, labels)).double()
    weights = load_file(path / "model.safetensors")
    weights |= {f"score.{name}": weight.float() for name, weight in head.state_dict().items()}
    save_file(weights, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}))
    batches = [BODY, [7], [*BODY, 3]]
    with torch.no_grad():
        theirs = [head(body.model(torch.tensor([tokens])).last_hidden_state)[0] for tokens in batches]
    assert torch.stack([scores[-1] for scores in theirs]).std() > 0.01, "scores too alike to tell apart"
    async with running_pooler("reward", str(path), **OPTIONS) as pooler:
        assert len(pooler.labels) == labels
        for ours, scores in zip(await pooler.score_tokens(batches), theirs, strict=True):
            torch.testing.assert_close(torch.tensor(ours).double(), scores, atol=1e-4, rtol=1e-4)
        for whole, scores in zip(await pooler.score(batches), theirs, strict=True):
            torch.testing.assert_close(torch.tensor(whole).double(), scores[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["auto", "hf", "safetensors"])
def test_an_adapter_is_merged_in_any_format(base: Path, tmp_path: Path, form: str) -> None:
    """Of a base in parts, beside which its weights lie once more under Mistral's names."""
    adapter = family.adapter(tmp_path / "adapter", base)
    merged: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    theirs = {name: weight.clone() for name, weight in merged.merge_and_unload().state_dict().items()}
    make_shards(base)
    weights = AutoModelForCausalLM.from_pretrained(base).state_dict()
    save_file({f"mistral.{name}": weight for name, weight in weights.items()}, base / "consolidated.safetensors")
    options = Adapter.load_options(str(adapter), None, form, {"enable_multithread_load": True})
    config = AsyncEngineArgs(model=str(base)).create_model_config()
    ours = dict(AdapterLoader(LoadConfig(**options)).get_all_weights(config, torch.nn.Module()))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], msg=name)


@pytest.mark.slow
def test_what_an_adapter_s_engine_is(base: Path, tmp_path: Path) -> None:
    adapter = family.reward_adapter(tmp_path / "adapter", base, 3, tokens=GROWN)
    spec = pooling_spec("reward", str(adapter), **OPTIONS, hf_overrides={"id2label": {0: "a", 1: "b", 2: "c"}})
    assert spec.labels == ("a", "b", "c")
    assert spec.config.model_config.get_vocab_size() == GROWN
    assert spec.tokenizer.pad_token == "<new pad>"
    assert pooling_spec("reward", str(adapter), **OPTIONS).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    options = {"enable_multithread_load": True}
    spec = pooling_spec("reward", str(adapter), **OPTIONS, load_format="pt", model_loader_extra_config=options)
    extra = spec.config.load_config.model_loader_extra_config
    assert (extra["load_format"], extra["options"]) == ("pt", options)
    toy = build_toy_pooler(str(adapter), None, {})
    assert (len(toy.labels), toy.max_tokens, toy.tokenizer.pad_token) == (3, family.POSITIONS, "<new pad>")


@pytest.mark.slow
def test_an_adapter_that_cannot_score(base: Path, tmp_path: Path) -> None:
    adapter = family.reward_adapter(tmp_path / "adapter", base, 1)

    def refuse(match: str, model: Path = adapter, **options: Any) -> str:
        with pytest.raises(MemberError, match=match) as caught:
            pooling_spec("reward", str(model), **{**OPTIONS, **options})
        return caught.value.option

    assert refuse("valid: auto, .*, safetensors", load_format="dummy") == "engine.load_format"
    assert refuse("is no adapter", base, base=str(base)) == "base"
    refuse("LoRA of another base", base=str(family.llama(tmp_path / "other")))
    refuse("guide brings no head, and .*base is LlamaForCausalLM", family.adapter(tmp_path / "guide", base))
    for problem in ({"use_dora": True}, {"bias": "all"}, {"trainable_token_indices": {"embed_tokens": [1]}}):
        refuse(f"{next(iter(problem))}=", family.reward_adapter(tmp_path / next(iter(problem)), base, 1, **problem))
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    for place, match in ((None, "does not say"), ("/not/here", "which is not here"), ("./out/last/base", "not here")):
        file.write_text(json.dumps({**config, "base_model_name_or_path": place}))
        assert refuse(match) == "base"
    assert pooling_spec("reward", str(adapter), str(base), **OPTIONS).adapter
