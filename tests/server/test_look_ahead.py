"""Searches that look ahead, on the demo's twin and value head: against the same written around transformers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.server.conftest import DEMO, KEY, Running, check_company, serve, until_up
from trimtab.bench.peers.hf_reward import HFReward
from trimtab.bench.peers.hf_transfer_q import HFTransferQ
from trimtab.server.request.messages import CHAT

FOLDER = DEMO.parent
QUESTIONS = [
    "How do I clean a copper pan?",
    "Can you recommend a book for a long train ride?",
    "Tom has 7 apples and buys 5 more. How many is that?",
]


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    patient = ("--set", "limits.max_wait_s=600")  # many searches at once, and no client that tries again
    yield from until_up(serve(FOLDER / "search.yaml", tmp_path_factory.mktemp("look") / "log", *patient))


@pytest.fixture(scope="module")
async def raw(looking: Running) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=looking.url, headers=headers, timeout=600) as client:
        yield client


def asked(question: str) -> list[Any]:
    return [{"role": "user", "content": question}]


async def answer(raw: httpx.AsyncClient, question: str, alignment: dict[str, Any], **more: Any) -> Any:
    found = await raw.post(CHAT, json={"messages": asked(question), "seed": 1, "alignment": alignment, **more})
    assert found.status_code == 200, found.text
    return found.json()


async def test_transfer_q_is_the_published_loop(raw: httpx.AsyncClient) -> None:
    """Greedy in every part, it says what the base, the merged twin and the reward model in transformers say."""
    loop = HFTransferQ(
        str(FOLDER / "base"), FOLDER / "guides" / "aligned", HFReward(FOLDER / "rewards" / "a", "helpfulness")
    )
    params = {"k": 4, "alpha": 0.5, "horizon": 6, "rollout_temperature": 0.0, "baseline": {"aligned": 1.0}}
    alignment = {"strategy": "transfer_q", "reward": "rm-a.helpfulness", "params": params}
    texts = []
    for question in QUESTIONS[:2]:
        found = await answer(raw, question, alignment, temperature=0, max_tokens=24)
        texts.append(found["choices"][0]["message"]["content"])
        assert texts[-1] == loop.answer(asked(question), 4, 6, 0.5, max_tokens=24)
        assert found["alignment"]["sampled_tokens"] > 4 * found["usage"]["completion_tokens"]
    plain = await answer(raw, QUESTIONS[0], {"strategy": "plain"}, temperature=0, max_tokens=24)
    assert plain["choices"][0]["message"]["content"] != texts[0], "it changes nothing"


async def test_the_value_head_reads_beginnings_as_transformers_does(raw: httpx.AsyncClient) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "rewards" / "value")
    model = AutoModelForSequenceClassification.from_pretrained(FOLDER / "rewards" / "value", dtype=torch.float32)
    texts = ["", "Rub", "Rub it with salt and half a lemon,", "Rub it with salt and half a lemon, then rinse it well."]
    body = {"messages": asked(QUESTIONS[0]), "responses": texts, "reward": "value.helpfulness"}
    found = (await raw.post("/v1/alignment/score", json=body)).json()
    before = tokenizer.apply_chat_template(asked(QUESTIONS[0]), tokenize=False, add_generation_prompt=True)
    for text, score in zip(texts, found["scores"], strict=True):
        ids = tokenizer(before + text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = model(ids).logits[0, model.config.label2id["helpfulness"]].item()
        assert score["value"] == pytest.approx(expected, abs=1e-4)


STEPPED: dict[str, dict[str, Any]] = {
    "transfer_q": {"k": 4, "rollouts": 2, "horizon": 6, "min_p": 0.1, "baseline": {"aligned": 1.0}},
    "args": {"k": 4, "weight": 2.0},
    "blockwise": {"n": 4, "block": 8, "prefix_reward": "value.helpfulness"},
    "particles": {"n": 6, "block": 8, "beta": 0.5, "prefix_reward": "value.helpfulness"},
    "beam": {"n": 6, "width": 3, "block": 8, "prefix_reward": "value.helpfulness"},
}


@pytest.mark.parametrize("name", STEPPED)
async def test_company_changes_no_answer(raw: httpx.AsyncClient, name: str) -> None:
    alignment = {"strategy": name, "reward": "rm-a.helpfulness", "params": STEPPED[name]}
    alone = [await answer(raw, q, alignment, max_tokens=32) for q in QUESTIONS]
    together = await asyncio.gather(*(answer(raw, q, alignment, max_tokens=32) for q in QUESTIONS * 2))
    texts = [[a["choices"][0]["message"]["content"] for a in answers] for answers in (together, alone * 2)]
    check_company(*texts)


@pytest.mark.parametrize("name", STEPPED)
async def test_rewards_rise(raw: httpx.AsyncClient, name: str) -> None:
    """Over the base's own answers, seed by seed, by the reward that the search was given."""
    alignment = {"strategy": name, "reward": "rm-a.helpfulness", "params": STEPPED[name]}

    async def mean(alignment: dict[str, Any]) -> float:
        answers = await asyncio.gather(
            *(answer(raw, q, alignment, max_tokens=64, seed=s) for q in QUESTIONS for s in range(4))
        )
        total = 0.0
        for i, q in enumerate(QUESTIONS):
            texts = [a["choices"][0]["message"]["content"] for a in answers[4 * i : 4 * i + 4]]
            body = {"messages": asked(q), "responses": texts, "reward": "rm-a.helpfulness"}
            total += sum(s["value"] for s in (await raw.post("/v1/alignment/score", json=body)).json()["scores"])
        return total / 12

    assert await mean(alignment) > await mean({"strategy": "plain"}) + 0.2
