"""POST /v1/alignment/score against what a search says of the same answer, for every kind of reward."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from tests.server import toy_server
from tests.server.search.conftest import HI
from trimtab.engine.toy_client import ToyPooler
from trimtab.rewards import KINDS
from trimtab.server.config import Config
from trimtab.server.scoring import engine_key

REWARDS: dict[str, dict[str, Any]] = {
    "avoids": {"phrases": ["aa", "b"]},
    "bleu": {},
    "classifier": {"model": "."},
    "contains": {"phrases": ["aa", "b"]},
    "json_schema": {"schema": {"type": "number"}},
    "judge": {"principles": {"kind": "It is kind.", "brief": "It is brief."}},
    "length": {"unit": "tokens", "target": 3},
    "log_ratio": {"strong": "arm", "length_normalised": True},
    "process": {"model": ".", "label": "good"},
    "readability": {},
    "regex": {"pattern": "a", "count": True},
    "repetition": {"n": 1},
    "verifier": {},
}
"""kind -> its keys, the reward being called as its kind is"""
NAMES = [
    *(kind for kind in REWARDS if kind not in ("judge", "classifier")),
    "judge.kind", "judge.brief", "classifier.good", "classifier.bad", "whole_ratio",
]  # fmt: skip
GIVEN: dict[str, dict[str, Any]] = {"bleu": {"references": ["a b a"]}, "verifier": {"answer": "ab"}}


@pytest.fixture(scope="module")
async def raw(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    folder = toy_server.checkpoint(tmp_path_factory.mktemp("toy"))
    rewards = {kind: {"kind": kind, **keys} for kind, keys in REWARDS.items()}
    rewards["whole_ratio"] = {"kind": "log_ratio", "strong": "arm"}
    config = Config.model_validate(
        {
            "base": str(folder),
            "name": "toy",
            "guides": {"arm": str(folder)},
            "rewards": rewards,
            "engine": {"dtype": "float32", "max_model_len": 1024, "enforce_eager": True},
        },
        context=folder,
    )
    pooler = ToyPooler(tokenizer=AutoTokenizer.from_pretrained(folder), labels=("good", "bad"), max_tokens=1024)
    poolers = {engine_key(config.rewards["classifier"]) or "": pooler}
    app = await toy_server.serve(config, toy_server.toy_engine(Path(folder)), poolers=poolers)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toy") as client:
        yield client


def test_every_kind_has_its_specimen() -> None:
    assert set(REWARDS) == set(KINDS)


@pytest.mark.parametrize("name", NAMES)
async def test_an_answer_scores_as_the_search_that_gave_it_says(raw: httpx.AsyncClient, name: str) -> None:
    given = {"given": GIVEN[name]} if name in GIVEN else {}
    wish = {"strategy": "best_of_n", "reward": name, "params": {"n": 8}, "return": ["candidates", "rewards"], **given}
    answer = await raw.post("/v1/chat/completions", json={"model": "toy", "messages": HI, "seed": 5, "alignment": wish})
    assert answer.status_code == 200, answer.text
    [choice] = answer.json()["alignment"]["choices"]
    assert {candidate["finish_reason"] for candidate in choice["candidates"]} == {"stop", "length"}
    for finished, reason in ((True, "stop"), (False, "length")):
        candidates = [c for c in choice["candidates"] if c["finish_reason"] == reason]
        if name == "verifier" and not finished:  # where others ended, what a cut answer comes to is not read
            assert {c["value"] for c in candidates} == {None}
            continue
        body = {"messages": HI, "responses": [c["text"] for c in candidates], "reward": name, **given}
        scored = await raw.post("/v1/alignment/score", json={**body, **({} if finished else {"finished": False})})
        assert scored.status_code == 200, scored.text
        assert [s["value"] for s in scored.json()["scores"]] == [c["value"] for c in candidates]
        assert [s["rewards"] for s in scored.json()["scores"]] == [c["rewards"] for c in candidates]


@pytest.mark.parametrize(
    ("name", "text", "whole", "beginning"), [("length", "a", -1 / 3, -2 / 3), ("whole_ratio", "", None, 0.0)]
)
async def test_what_a_client_writes_ends_unless_it_is_a_beginning(
    raw: httpx.AsyncClient, name: str, text: str, whole: float | None, beginning: float
) -> None:
    """One letter is two tokens with its end, of three; an empty beginning has nothing that models could differ on."""

    async def value(**more: Any) -> float:
        body = {"messages": HI, "responses": [text], "reward": name, **more}
        score: float = (await raw.post("/v1/alignment/score", json=body)).json()["scores"][0]["value"]
        return score

    assert await value() == await value(finished=True)
    assert await value() == pytest.approx(whole) if whole is not None else await value() != 0
    assert await value(finished=False) == pytest.approx(beginning)
