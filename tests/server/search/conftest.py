"""Searches over HTTP on the toy engine, through the official client: the server, and how it is asked."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI
from prometheus_client import REGISTRY

from tests.server import toy_server
from trimtab.rewards.protocols import Question, Response
from trimtab.rewards.validated import ValidatedScorer
from trimtab.runtime.toy_engine import ToyEngine
from trimtab.server.config import Config

HI: list[Any] = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True)
class Letters:
    """How many of the letter a answers have, and how long they are; `fault` says how it goes wrong."""

    fault: str = ""
    labels: tuple[str, ...] = ("a", "length")
    needs: frozenset[str] = frozenset()

    async def __call__(self, question: Question, responses: Sequence[Response]) -> list[list[float]]:
        if self.fault == "hung":
            await asyncio.Event().wait()
        if self.fault == "dead":
            raise RuntimeError("its engine died")
        if self.fault == "shape":
            return []
        bad = {"nan": math.nan, "inf": math.inf, "alike": 0.5}.get(self.fault)
        rows = [[float(r.text.count("a")) if bad is None else bad, float(len(r.text))] for r in responses]
        return [row[: len(self.labels)] for row in rows]


FAULTS = ("nan", "inf", "shape", "dead", "hung")


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = toy_server.checkpoint(tmp_path_factory.mktemp("toy"))
    return Config.model_validate(
        {
            "base": str(folder),
            "name": "toy",
            "guides": {"arm": str(folder)},
            "rewards": {
                "letters": {"kind": "length", "target": 1},
                "short": {"kind": "length", "unit": "characters", "target": 1},
                "bleu": {"kind": "bleu"},
                **{fault: {"kind": "length", "target": 1} for fault in FAULTS},
            },
            "objectives": {
                "a": {"reward": "letters.a", "mean": 1.0, "spread": 2.0},
                "brevity": {"reward": "short", "guide": "arm"},
                "truth": {"guide": "arm"},
            },
            "preference_prompts": {
                "system": {"template": "dpa", "slots": {"h": "a", "w": "brevity"}},
                "user": {"template": "rps", "slots": {"h": "a", "w": "brevity"}, "reader": "arm"},
                "opposite": {"template": "dpa", "slots": {"h": "a", "w": "-brevity"}},
                "words": {"template": "values", "slots": {"letters": "a", "few of them": "brevity", "truth": "truth"}},
            },
            "presets": {"toy-best": {"strategy": "best_of_n", "weights": {"a": 1.0}, "params": {"n": 8}}},
            "engine": {"dtype": "float32", "max_model_len": 1024, "enforce_eager": True},
            "limits": {"max_tokens": 10**9},  # hundreds at once, most without a bound on their length
        },
    )


@pytest.fixture(scope="session")
def toy(config: Config) -> ToyEngine:
    return toy_server.toy_engine(Path(config.base))


@pytest.fixture(scope="session")
async def app(config: Config, toy: ToyEngine) -> FastAPI:
    scorers = {fault: ValidatedScorer(scorer=Letters(fault), name=fault, timeout=0.2) for fault in FAULTS}
    letters = ValidatedScorer(scorer=Letters(), name="letters", timeout=60)
    return await toy_server.serve(config, toy, scorers={"letters": letters, **scorers})


@pytest.fixture(scope="session")
async def raw(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toy") as client:
        yield client


@pytest.fixture(scope="session")
async def client(raw: httpx.AsyncClient) -> AsyncOpenAI:
    return AsyncOpenAI(base_url="http://toy/v1", api_key="none", http_client=raw, max_retries=2)


@pytest.fixture(autouse=True)
def nothing_is_left(toy: ToyEngine) -> Any:
    yield
    assert toy.live == 0


async def chat(client: AsyncOpenAI, alignment: dict[str, Any], **more: Any) -> Any:
    return await client.chat.completions.create(
        **{"model": "toy", "messages": HI, "seed": 3, **more}, extra_body={"alignment": alignment}
    )


def told(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = answer.model_extra["alignment"]
    return found


def best(n: int = 8, **more: Any) -> dict[str, Any]:
    return {"strategy": "best_of_n", "weights": {"a": 1.0}, "params": {"n": n}, **more}


def chains(**params: Any) -> dict[str, Any]:
    return {"strategy": "qalign", "weights": {"a": 1.0}, "params": {"steps": 8, **params}}


@dataclass
class Slow:
    """The toy, a pause before each chunk and each look ahead."""

    engine: ToyEngine
    pause: float

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def generate(self, *args: Any, **more: Any) -> Any:
        async with aclosing(self.engine.generate(*args, **more)) as chunks:
            async for chunk in chunks:
                await asyncio.sleep(self.pause)
                yield chunk

    async def greedy_top_logprobs(self, *args: Any, **more: Any) -> Any:
        await asyncio.sleep(self.pause)
        return await self.engine.greedy_top_logprobs(*args, **more)


SLOW: dict[tuple[str, float], AsyncOpenAI] = {}
"""checkpoint, pause -> the server there; one takes longer to build than to ask"""


async def slow(config: Config, toy: ToyEngine, pause: float) -> AsyncOpenAI:
    if (config.base, pause) not in SLOW:
        letters = ValidatedScorer(scorer=Letters(), name="letters", timeout=60)
        app = await toy_server.serve(config, Slow(toy, pause), scorers={"letters": letters})
        transport = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toy")
        SLOW[config.base, pause] = AsyncOpenAI(
            base_url="http://toy/v1", api_key="none", http_client=transport, max_retries=2
        )
    return SLOW[config.base, pause]


def counted(strategy: str, outcome: str) -> float:
    return REGISTRY.get_sample_value("trimtab_requests_total", {"strategy": strategy, "outcome": outcome}) or 0.0


async def refused(client: AsyncOpenAI, alignment: dict[str, Any], param: str, message: str) -> None:
    """A 400 that names the parameter and says what is the matter."""
    with pytest.raises(openai.BadRequestError) as caught:
        await chat(client, alignment)
    assert caught.value.param == param
    assert message in caught.value.message
