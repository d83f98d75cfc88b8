"""Directions on a real server: the prompt that is read is the one that a person would have typed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.server.conftest import KEY, Running, check_company
from trimtab.preferences.preference_direction import DPA
from trimtab.server.request.messages import CHAT

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


async def test_a_neighbourhood_of_nothing_else_is_a_pool_of_the_message_typed_by_hand(raw: httpx.AsyncClient) -> None:
    """Only who judges differs: rewards read the conversation as the client wrote it, without the direction."""
    weights = {"helpfulness": 0.866025404, "brevity": 0.5}
    common = {"weights": weights, "return": ["candidates"]}
    best = {"strategy": "best_of_n", "params": {"n": 5}, **common}
    by_hand = await asked(raw, messages=TYPED, alignment=best)
    alone = await asked(raw, alignment={"strategy": "rps", "params": {"theta_max": 0.0}, **common})
    pools = [a["alignment"]["choices"][0]["candidates"] for a in (alone, by_hand)]
    assert [c["text"] for c in pools[0]] == [c["text"] for c in pools[1]]
    scores: dict[str, Any] = {"messages": [ASK], "responses": [c["text"] for c in pools[0]], "weights": weights}
    reward_tokens = (await raw.post("/v1/alignment/score", json=scores)).json()["scores"]
    assert [c["value"] for c in pools[0]] == pytest.approx([s["value"] for s in reward_tokens], abs=0.05)


async def test_company_changes_no_neighbourhood(raw: httpx.AsyncClient) -> None:
    async def one(seed: int) -> Any:
        wish = {"strategy": "rps", "weights": {"angle": -10}, "params": {"k": 3, "m": 2}, "return": ["candidates"]}
        return (await asked(raw, seed=seed, alignment=wish))["alignment"]

    alone = [await one(seed) for seed in range(4)]
    check_company(await asyncio.gather(*(one(seed) for seed in range(4))), alone)
    directions = {tuple(c["direction"].values()) for c in alone[0]["choices"][0]["candidates"]}
    assert len(directions) == 3


async def test_the_prompt_chooses_the_weights(raw: httpx.AsyncClient) -> None:
    """A sum is wanted short, an outpouring met with warmth: what the demo's adapter learnt of questions that it met."""
    for question, wanted in (
        ("Tom has 7 apples and buys 5 more. How many apples does Tom have now?", "brevity"),
        ("I feel sad today.", "warmth"),
    ):
        told = await asked(raw, messages=[{"role": "user", "content": question}], alignment={"weights": "auto"})
        weights = told["alignment"]["weights"]
        assert told["alignment"]["auto_weights"] is True
        assert sum(weights.values()) == pytest.approx(1)
        assert max(weights, key=weights.__getitem__) == wanted


async def test_what_a_person_chose_becomes_weights(raw: httpx.AsyncClient) -> None:
    """Short answers chosen over long ones, and the weights that come of it bring short ones."""
    short, long = (
        "Use lemon and salt.",
        "First take a soft cloth. Then take some lemon and salt, and rub. Rinse it well.",
    )
    said = [{"messages": [ASK], "chosen": short, "rejected": long}, {"messages": [ASK], "before": long, "after": short}]
    answer = await raw.post("/v1/alignment/infer", json={"comparisons": said[:1], "edits": said[1:]})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["weights"]["brevity"] > 0
    assert found["interval"]["brevity"][1] > 0
    told = await asked(raw, alignment={"weights": found["weights"]})
    assert told["alignment"]["weights"] == found["weights"]
