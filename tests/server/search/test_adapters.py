"""LoRA adapters as model ids over HTTP, and what is remembered of one model, which is not the other's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server import toy_server
from tests.server.search.conftest import HI
from trimtab.server.config import Config
from trimtab.server.request.messages import CHAT

COMPARED = {"of": "short", "transform": {"centre": {"references": 2}}}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = toy_server.checkpoint(tmp_path_factory.mktemp("toy"))
    return Config.model_validate(
        {
            "base": str(folder),
            "name": "toy",
            "rewards": {"short": {"kind": "length", "unit": "characters", "target": 1}},
            "presets": {"toy-best": {"strategy": "best_of_n", "reward": "short", "params": {"n": 2}}},
            "engine": {
                "dtype": "float32", "max_model_len": 1024, "enforce_eager": True, "enable_lora": True,
                "lora_modules": [f"one={folder}"],
            },
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
async def raw(adapted: Config) -> AsyncIterator[httpx.AsyncClient]:
    app = await toy_server.serve(adapted, toy_server.toy_engine(Path(adapted.base)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toy") as client:
        yield client


async def ask(raw: httpx.AsyncClient, model: str, **more: Any) -> httpx.Response:
    return await raw.post(CHAT, json={"model": model, "messages": HI, "max_tokens": 4, "seed": 1, **more})


async def test_an_adapter_is_listed_and_named_in_answers(raw: httpx.AsyncClient) -> None:
    cards = (await raw.get("/v1/models")).json()["data"]
    assert [(card["id"], card["root"], card["parent"]) for card in cards] == [
        ("toy", "toy", None), ("one", "one", "toy"), ("toy-best", "toy", "toy"),
    ]  # fmt: skip
    for more in ({}, {"alignment": {"strategy": "best_of_n", "reward": "short", "params": {"n": 2}}}):
        assert (await ask(raw, "one", **more)).json()["model"] == "one"
    refused = await ask(raw, "two")
    assert refused.status_code == 404
    assert "valid: one, toy, toy-best" in refused.json()["error"]["message"]


async def test_references_of_one_model_are_not_the_other_s(raw: httpx.AsyncClient) -> None:
    alignment = {"strategy": "best_of_n", "reward": COMPARED, "params": {"n": 2}}
    sampled = []
    for model in ("toy", "one", "toy", "one"):
        answer = (await ask(raw, model, alignment=alignment)).json()
        sampled.append(answer["alignment"]["sampled_tokens"])
    assert sampled[0] > sampled[2]
    assert sampled[1] > sampled[3]
