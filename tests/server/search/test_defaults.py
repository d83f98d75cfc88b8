"""What a base's generation config says of sampling is no client's wish: what a search cannot carry out is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from tests.server import toy_server
from tests.server.search.conftest import HI, Letters, chat, told
from tests.server.search.test_search import SEARCHES
from trimtab.decoders import STRATEGIES
from trimtab.rewards.validated import ValidatedScorer
from trimtab.server.config import Config

QWEN = {"repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
"""Qwen2.5's generation_config.json."""
PIECES = [name for name, row in STRATEGIES.items() if row.draws == "pieces" and name in SEARCHES]
READERS = [name for name, row in STRATEGIES.items() if row.draws == "readings" and name in SEARCHES]
"""Those that read the model's distributions, as no penalty has changed them."""


async def serve(folder: Path, config: Config, defaults: dict[str, Any], **engine: Any) -> AsyncOpenAI:
    base = toy_server.checkpoint(folder)
    (base / "generation_config.json").write_text(json.dumps(defaults))
    changed = config.model_copy(update={"base": str(base), "engine": config.engine | engine})
    letters = ValidatedScorer(scorer=Letters(), name="letters", timeout=60)
    app = await toy_server.serve(changed, toy_server.toy_engine(base), scorers={"letters": letters})
    transport = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toy")
    return AsyncOpenAI(base_url="http://toy/v1", api_key="none", http_client=transport, max_retries=0)


@pytest.fixture(scope="module")
async def qwen(tmp_path_factory: pytest.TempPathFactory, config: Config) -> AsyncOpenAI:
    return await serve(tmp_path_factory.mktemp("qwen"), config, QWEN)


@pytest.fixture(scope="module")
async def penalties(tmp_path_factory: pytest.TempPathFactory, config: Config) -> AsyncOpenAI:
    return await serve(
        tmp_path_factory.mktemp("penalties"),
        config,
        {"min_p": 0.1, "max_new_tokens": 2},
        override_generation_config={"presence_penalty": 0.5, "frequency_penalty": 0.25},
    )


def wish(name: str, **params: Any) -> dict[str, Any]:
    asked = SEARCHES[name]
    return {**asked, "params": {**asked["params"], **params}}


@pytest.mark.parametrize("name", READERS)
async def test_a_penalty_of_the_model_s_is_left_out(qwen: AsyncOpenAI, name: str) -> None:
    """With a warning that names it and the file; what the strategy carries out stays."""
    stated = {key: value for key, value in QWEN.items() if key != "repetition_penalty"}
    answer = await chat(qwen, wish(name))
    same = await chat(qwen, wish(name), temperature=0.7, top_p=0.8)
    neutral = await qwen.chat.completions.create(
        model="toy", messages=HI, seed=3, extra_body={"alignment": wish(name), "repetition_penalty": 1.0, **stated}
    )
    texts = {a.choices[0].message.content for a in (answer, same, neutral)}
    assert len(texts) == 1
    [warning] = [w for w in told(answer)["warnings"] if "is left out" in w]
    assert warning.startswith("repetition_penalty=1.05 is left out, a default of generation_config.json")
    assert name in warning
    assert not [w for w in told(neutral).get("warnings", []) if "is left out" in w]


@pytest.mark.parametrize("name", READERS)
async def test_a_penalty_of_the_client_s_is_refused_still(qwen: AsyncOpenAI, name: str) -> None:
    """Even where it is the model's own."""
    for penalty in (1.05, 1.2):
        with pytest.raises(openai.BadRequestError, match="penalties"):
            await qwen.chat.completions.create(
                model="toy", messages=HI, extra_body={"alignment": wish(name), "repetition_penalty": penalty}
            )
    with pytest.raises(openai.BadRequestError, match="penalties"):
        await chat(qwen, wish(name), presence_penalty=0.5)
    null = await qwen.chat.completions.create(
        model="toy", messages=HI, extra_body={"alignment": wish(name), "repetition_penalty": None}
    )
    assert "is left out" in str(told(null)["warnings"])


@pytest.mark.parametrize("name", PIECES)
async def test_a_penalty_that_counts_an_answer_s_tokens_is_refused_in_pieces(qwen: AsyncOpenAI, name: str) -> None:
    for penalty in ("presence_penalty", "frequency_penalty"):
        with pytest.raises(openai.BadRequestError, match=f"{penalty} cannot be carried on from the middle"):
            await chat(qwen, wish(name), **{penalty: 0.5})


@pytest.mark.parametrize("name", ["qalign", "particles"])
async def test_a_target_that_needs_the_model_s_own_law_gets_it(qwen: AsyncOpenAI, name: str) -> None:
    asked = wish(name, target="base") | {"guides": {"arm": 0.5}}
    answer = await chat(qwen, asked)
    left_out = {w.partition("=")[0] for w in told(answer)["warnings"] if "is left out" in w}
    assert left_out == set(QWEN)
    with pytest.raises(openai.BadRequestError, match="target 'base' needs temperature 1"):
        await chat(qwen, asked, temperature=0.7)


async def test_a_spread_out_pool_does_without_too(qwen: AsyncOpenAI) -> None:
    answer = await chat(qwen, wish("best_of_n", diverse={"groups": 2, "penalty": 0.5}))
    assert "repetition_penalty=1.05 is left out" in str(told(answer)["warnings"])


@pytest.mark.parametrize("name", sorted(SEARCHES.keys() - READERS - {"rps"}))
async def test_what_the_engine_carries_out_is_not_left_out(qwen: AsyncOpenAI, name: str) -> None:
    answer = await chat(qwen, wish(name))
    assert "is left out" not in str(told(answer).get("warnings"))


@pytest.mark.parametrize("path", ["completions", "responses", "messages"])
async def test_on_every_path(qwen: AsyncOpenAI, path: str) -> None:
    body: dict[str, Any] = {"model": "toy", "alignment": wish("transfer_q")}
    body |= {
        "completions": {"prompt": "hi"},
        "responses": {"input": "hi", "max_output_tokens": 8},
        "messages": {"messages": HI, "max_tokens": 8},
    }[path]
    answer = (await qwen._client.post(f"/v1/{path}", json=body)).json()
    assert "repetition_penalty=1.05 is left out" in str(answer["alignment"]["warnings"])


@pytest.mark.parametrize("name", [*PIECES, *READERS])
async def test_where_a_default_comes_from_is_named(penalties: AsyncOpenAI, name: str) -> None:
    warnings = [w for w in told(await chat(penalties, wish(name)))["warnings"] if "is left out" in w]
    carried = {"min_p=0.1 is left out, a default of generation_config.json"} if name in PIECES else set()
    assert {w.partition(" that the request")[0] for w in warnings} | carried == {
        "min_p=0.1 is left out, a default of generation_config.json",
        "presence_penalty=0.5 is left out, a default of engine.override_generation_config",
        "frequency_penalty=0.25 is left out, a default of engine.override_generation_config",
    }


@pytest.mark.parametrize("name", [*PIECES, *READERS, "best_of_n"])
async def test_a_default_length_bounds_the_answer(penalties: AsyncOpenAI, name: str) -> None:
    """max_new_tokens is one that every strategy carries out."""
    for seed in range(4):
        answer = await chat(penalties, wish(name), seed=seed)
        assert answer.usage.completion_tokens <= 2
    longer = [await chat(penalties, wish(name), seed=seed, max_tokens=8) for seed in range(4)]
    assert max(a.usage.completion_tokens for a in longer) > 2
