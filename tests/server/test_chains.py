"""QAlign on a real server: chains that no reward pulls draw what plain sampling does, those that one pulls do not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.server.conftest import KEY, Running, check_company
from trimtab.server.request.messages import CHAT

QUESTION: list[Any] = [{"role": "user", "content": "Hello, how are you today?"}]
LIMIT = 64
SIDE_BY_SIDE, REQUESTS = 64, 4
Answers = list[tuple[int, ...]]


@pytest.fixture(scope="module")
async def raw(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=600) as client:
        yield client


async def drawn(raw: httpx.AsyncClient, **more: Any) -> Answers:
    """Token ids of independent answers."""
    found: Answers = []
    for seed in range(REQUESTS):
        body = {"messages": QUESTION, "n": SIDE_BY_SIDE, "max_tokens": LIMIT, "seed": 1000 * seed,
                "return_token_ids": True, **more}  # fmt: skip
        answer = await raw.post(CHAT, json=body)
        assert answer.status_code == 200, answer.text
        found += [tuple(choice["token_ids"]) for choice in answer.json()["choices"]]
    return found


def chains(**params: Any) -> dict[str, Any]:
    params = {"chains": SIDE_BY_SIDE, "steps": 3, "answer": "last", **params}
    return {"strategy": "qalign", "reward": {"of": {"short": params.pop("weight", 0)}}, "params": params}


@pytest.fixture(scope="module")
async def plain(raw: httpx.AsyncClient) -> Answers:
    return await drawn(raw)


def apart(one: Answers, other: Answers) -> float:
    """The largest difference, in standard deviations: of mean length, of its square, and of the commonest tokens."""
    common = [token for token, _ in Counter(token for answer in one for token in answer).most_common(24)]

    def statistics(answers: Answers) -> np.ndarray:
        return np.array([[len(a), len(a) ** 2, *(a.count(token) for token in common)] for a in answers], dtype=float)

    a, b = statistics(one), statistics(other)
    spread = np.sqrt(a.var(axis=0) / len(a) + b.var(axis=0) / len(b))
    return float(np.max(np.abs(a.mean(axis=0) - b.mean(axis=0)) / np.maximum(spread, 1e-9)))


async def test_chains_that_nothing_pulls_draw_as_plain_sampling_does(raw: httpx.AsyncClient, plain: Answers) -> None:
    found = await drawn(raw, alignment=chains())
    assert {len(answer) for answer in plain} != {LIMIT}, "every answer was cut: lengths say nothing"
    assert apart(plain, found) < 5


async def test_chains_that_a_reward_pulls_do_not(raw: httpx.AsyncClient, plain: Answers) -> None:
    """The same statistics see a pull towards short answers."""
    found = await drawn(raw, alignment=chains(weight=1, beta=0.05))
    assert apart(plain, found) > 5
    assert np.mean([len(a) for a in found]) < np.mean([len(a) for a in plain])


async def test_company_changes_no_chain(raw: httpx.AsyncClient) -> None:
    """Neither do other requests beside it, nor what the caches hold."""

    async def one(seed: int) -> Any:
        alignment = chains(chains=4, steps=6, answer="mbr", weight=1, beta=0.1) | {"return": ["trace"]}
        body = {"messages": QUESTION, "max_tokens": 32, "seed": seed, "alignment": alignment}
        answer = (await raw.post(CHAT, json=body)).json()
        return answer["choices"], answer["alignment"]

    alone = [await one(seed) for seed in range(3)]
    together = await asyncio.gather(*(one(seed) for seed in range(12)))
    check_company(together[:3], alone)


async def test_the_states_of_the_chains_can_be_asked_for(raw: httpx.AsyncClient) -> None:
    alignment = chains(chains=2, steps=6, answer="max_reward", weight=1, beta=0.1)
    alignment |= {"return": ["trace", "candidates", "rewards"]}
    body = {"messages": QUESTION, "max_tokens": 32, "seed": 1, "alignment": alignment}
    answer = (await raw.post(CHAT, json=body)).json()
    [told] = answer["alignment"]["choices"]
    best = max(told["candidates"], key=lambda c: c["value"])
    assert best["text"] == answer["choices"][0]["message"]["content"]
    assert sum(c["visits"] for c in told["candidates"]) == sum(len(c["candidate"]) for c in told["trace"]) == 14
    for candidate in told["candidates"]:
        assert candidate["rewards"]["short"] == pytest.approx(candidate["value"])
        assert "tokens" not in candidate
