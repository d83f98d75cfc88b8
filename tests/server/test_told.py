"""Directions on a real server: the prompt that is read is the one that a person would have typed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from decoders.directions import DPA
from server.conversation import CHAT
from tests.server.conftest import KEY, Running

ASK: dict[str, Any] = {"role": "user", "content": "How do I clean a copper pan?"}
TYPED: list[Any] = [{"role": "system", "content": DPA.format(h=87, w=-50)}, ASK]
WISH = {"strategy": "directional", "weights": {"angle": -30}}


@pytest.fixture(scope="module")
async def raw(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=120) as client:
        yield client


async def asked(raw: httpx.AsyncClient, **body: Any) -> Any:
    answer = await raw.post(CHAT, json={"messages": [ASK], "max_tokens": 24, "seed": 3, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("more", [{}, {"n": 3}, {"logprobs": True}, {"prompt_logprobs": 1}, {"temperature": 0}])
async def test_a_direction_is_the_message_typed_by_hand(raw: httpx.AsyncClient, more: Any) -> None:
    """Prompt, answer, log-probs and usage."""
    by_hand = await asked(raw, messages=TYPED, return_token_ids=True, **more)
    told = await asked(raw, alignment=WISH, return_token_ids=True, **more)
    assert told["choices"] == by_hand["choices"]
    assert told["prompt_token_ids"] == by_hand["prompt_token_ids"]
    assert told["prompt_logprobs"] == by_hand["prompt_logprobs"]
    same = ("prompt_tokens", "completion_tokens")
    assert [told["usage"][key] for key in same] == [by_hand["usage"][key] for key in same]


async def test_best_of_a_prompt_typed_by_hand_is_a_neighbourhood_of_nothing_else(raw: httpx.AsyncClient) -> None:
    weights = {"helpfulness": 0.866025404, "brevity": 0.5}
    best = {"strategy": "best_of_n", "weights": weights, "params": {"n": 5}}
    by_hand = await asked(raw, messages=TYPED, alignment=best, n=2)
    alone = await asked(raw, alignment={"strategy": "rps", "weights": weights, "params": {"theta_max": 0.0}}, n=2)
    assert alone["choices"] == by_hand["choices"]


async def test_company_changes_no_neighbourhood(raw: httpx.AsyncClient) -> None:
    async def one(seed: int) -> Any:
        wish = {"strategy": "rps", "weights": {"angle": -10}, "params": {"k": 3, "m": 2}, "return": ["candidates"]}
        return (await asked(raw, seed=seed, alignment=wish))["alignment"]

    alone = [await one(seed) for seed in range(4)]
    assert list(await asyncio.gather(*(one(seed) for seed in range(4)))) == alone
    directions = {tuple(c["direction"].values()) for c in alone[0]["choices"][0]["candidates"]}
    assert len(directions) == 3
