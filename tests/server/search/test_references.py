"""Reference answers, which transforms compare with: what is remembered depends on its key alone."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from tests.server import toy_server
from tests.server.search.conftest import Letters, told
from tests.waiting import until
from trimtab.decoders.protocols import Chunk, Mixture, Sampling, Tokens
from trimtab.rewards.validated import ValidatedScorer
from trimtab.runtime.toy_engine import ToyEngine
from trimtab.runtime.usage import Usage
from trimtab.server.config import Config
from trimtab.server.request.references import MAX_SCORES, ReferenceScores, make_key, make_seed

NUMBERS = count()


def question() -> list[Any]:
    """A conversation that nobody has had."""
    return [{"role": "user", "content": f"question {next(NUMBERS)}"}]


@dataclass
class Watched:
    """The toy, which notes what it is asked to draw; `gate`, where there is one, holds what is drawn back."""

    engine: ToyEngine
    drawn: list[Sampling] = field(default_factory=list)
    gate: asyncio.Event | None = None
    waiting: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def generate(
        self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture
    ) -> AsyncGenerator[Chunk, None]:
        self.drawn.append(sampling)
        if self.gate is not None and sampling.engine_params is None:  # no request's own
            self.waiting += 1
            try:
                await self.gate.wait()
            finally:
                self.waiting -= 1
        async with aclosing(self.engine.generate(prompt, sampling, n=n, guides=guides)) as chunks:
            async for chunk in chunks:
                yield chunk

    @property
    def references(self) -> list[Sampling]:
        return [sampling for sampling in self.drawn if sampling.engine_params is None]


async def serve(config: Config, engine: Any) -> AsyncOpenAI:
    letters = ValidatedScorer(scorer=Letters(), name="letters", timeout=60)
    app = await toy_server.serve(config, engine, scorers={"letters": letters})
    transport = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toy")
    return AsyncOpenAI(base_url="http://toy/v1", api_key="none", http_client=transport, max_retries=0)


@pytest.fixture(scope="module")
async def other(config: Config, toy: ToyEngine) -> AsyncOpenAI:
    """Another server than `client`'s, with references of its own."""
    return await serve(config, toy)


@pytest.fixture(scope="module")
async def watching(config: Config, toy: ToyEngine) -> tuple[Watched, AsyncOpenAI]:
    watched = Watched(toy)
    return watched, await serve(config, watched)


def asks(transform: Any = "par", of: Any = "letters.a", n: int = 2, **more: Any) -> dict[str, Any]:
    return {
        "strategy": "best_of_n", "reward": {"of": of, "transform": transform}, "params": {"n": n},
        "return": ["candidates", "rewards"], **more,
    }  # fmt: skip


async def ask(
    client: AsyncOpenAI, messages: list[Any], alignment: dict[str, Any], extra: Any = None, **more: Any
) -> dict[str, Any]:
    """The response's `alignment`."""
    answer = await client.chat.completions.create(
        **{"model": "toy", "messages": messages, "seed": 3, **more},
        extra_body={"alignment": alignment, **(extra or {})},
    )
    return told(answer)


CENTRE = {"centre": {"references": 8}}
"""Its value shows the references' mean."""

FIRST_ASKERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a small budget": (asks(CENTRE, budget={"max_sampled_tokens": 3}), {}),
    "a deadline": (asks(CENTRE, budget={"deadline_ms": 60_000}), {}),
    "a stop string": (asks(CENTRE), {"stop": ["a"]}),
    "a stop string that is shown": (asks(CENTRE), {"stop": ["a"], "extra": {"include_stop_str_in_output": True}}),
    "another seed": (asks(CENTRE), {"seed": 0}),
    "no seed": (asks(CENTRE), {"seed": None}),
    "greedy": (asks(CENTRE), {"temperature": 0}),
    "more candidates": (asks(CENTRE, n=8), {}),
    "guides": (asks(CENTRE, guides={"arm": 2.0}), {}),
    "more references": (asks({"centre": {"references": 16}}), {}),
    "another transform": (asks({"lsc": {"references": 8}}), {}),
    "more rewards": (asks(CENTRE, of=["letters.a", "short"]), {}),
    "a given that its reward needs": (asks(CENTRE, of=["letters.a", "bleu"], given={"references": ["a b"]}), {}),
    "another length class": (asks(CENTRE), {"max_tokens": 1}),
    "a length of the class": (asks(CENTRE), {"max_tokens": 3}),
}


@pytest.mark.parametrize("first", FIRST_ASKERS)
async def test_who_asks_first_changes_nothing(client: AsyncOpenAI, other: AsyncOpenAI, first: str) -> None:
    messages, (alignment, more) = question(), FIRST_ASKERS[first]
    await ask(other, messages, alignment, **more)
    mine = [await ask(server, messages, asks(CENTRE), max_tokens=4) for server in (client, other)]
    assert mine[0]["choices"] == mine[1]["choices"]


async def test_a_budget_leaves_the_same_whether_references_are_remembered(client: AsyncOpenAI, toy: ToyEngine) -> None:
    """And they are counted as the request's that had them drawn."""
    messages = question()
    bounded = asks(CENTRE, n=4, budget={"max_sampled_tokens": 8})
    cold, warm = [await ask(client, messages, bounded) for _ in range(2)]
    assert cold["choices"] == warm["choices"]
    assert warm["sampled_tokens"] <= 8 + 4
    prompt = toy.tokenizer.apply_chat_template(  # type: ignore[attr-defined]
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    plain = await client.chat.completions.create(model="toy", messages=messages, seed=make_seed(prompt, 1024), n=8)
    assert cold["sampled_tokens"] - warm["sampled_tokens"] == plain.usage.completion_tokens
    assert cold["scored_tokens"] - warm["scored_tokens"] == plain.usage.completion_tokens
    [choice] = cold["choices"]
    mean = sum(answer.message.content.count("a") for answer in plain.choices) / 8
    shown = choice["candidates"][0]
    assert shown["transformed"]["centre(letters.a)"] == pytest.approx(shown["rewards"]["centre(letters.a)"] - mean)


@pytest.mark.parametrize("seed", [0, 3])
async def test_an_answer_and_its_reference_are_independent(client: AsyncOpenAI, toy: ToyEngine, seed: int) -> None:
    """They tie as often as two answers of the base do, by enumeration, within 5 standard errors; not every time."""
    law: dict[int, float] = {}
    for answer, p in toy.model.sequences(toy.model.next({"base": 1.0})):
        letters = toy.text(answer).count("a")
        law[letters] = law.get(letters, 0.0) + p
    tie = sum(p * p for p in law.values())
    n = 60
    answers = [await ask(client, question(), asks("par", n=1), seed=seed) for _ in range(n)]
    ties = sum(answer["choices"][0]["value"] == 0.5 for answer in answers)
    assert abs(ties / n - tie) < 5 * math.sqrt(tie * (1 - tie) / n)


@pytest.mark.parametrize(("max_tokens", "length"), [(1, 1), (2, 2), (3, 4), (4, 4), (None, 1024)])
async def test_references_are_of_the_request_s_length_and_their_seed_nobody_s(
    watching: tuple[Watched, AsyncOpenAI], max_tokens: int | None, length: int
) -> None:
    watched, client = watching
    watched.drawn.clear()
    more = {} if max_tokens is None else {"max_tokens": max_tokens}
    await ask(client, question(), asks("par"), seed=0, **more)
    await ask(client, question(), asks("par"), seed=0, **more)
    one, other = watched.references
    assert (one.max_tokens, one.stop, one.temperature) == (length, (), 1.0)
    assert one.seed != other.seed
    assert min(one.seed or 0, other.seed or 0) > 2**32


async def test_the_score_endpoint_compares_with_the_same_references(client: AsyncOpenAI) -> None:
    messages = question()
    for more in ({}, {"max_tokens": 3}):
        [choice] = (await ask(client, messages, asks(CENTRE, n=6), **more))["choices"]
        body = {"messages": messages, "reward": asks(CENTRE)["reward"], **more}
        for candidate in choice["candidates"]:
            whole = candidate["finish_reason"] == "stop"
            answer: Any = await client.post(
                "/alignment/score", body={**body, "responses": [candidate["text"]], "finished": whole}, cast_to=object
            )
            assert answer["scores"][0]["value"] == candidate["value"]


async def test_concurrent_requests_share_a_drawing_that_the_first_to_leave_does_not_end(
    config: Config, toy: ToyEngine
) -> None:
    watched = Watched(toy, gate=asyncio.Event())
    client, messages = await serve(config, watched), question()
    asked = [asyncio.create_task(ask(client, messages, asks(CENTRE))) for _ in range(3)]
    await until(lambda: len(watched.drawn) == 4)
    await asyncio.sleep(0.05)
    assert (watched.waiting, len(watched.references)) == (1, 1)
    asked[0].cancel()
    await asyncio.gather(asked[0], return_exceptions=True)
    assert watched.waiting == 1
    assert watched.gate is not None
    watched.gate.set()
    one, other = await asyncio.gather(*asked[1:])
    assert one["choices"] == other["choices"]
    assert len(watched.references) == 1


async def test_a_drawing_that_nobody_waits_for_ends_and_the_next_draws_anew() -> None:
    scores, live, usage = ReferenceScores(), [0], Usage()

    async def draw(own: Usage) -> dict[str, list[float]]:
        own.sampled = 5
        live[0] += 1
        try:
            await asyncio.Event().wait()
        finally:
            live[0] -= 1
        return {}

    async def draw_at_once(own: Usage) -> dict[str, list[float]]:
        return {"leaf": [1.0]}

    waiters = [asyncio.create_task(scores.get("key", draw, usage)) for _ in range(2)]
    await until(lambda: live == [1])
    for waiter, left in zip(waiters, (1, 0), strict=True):
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        assert live == [left], "at once, not some time later"
    assert usage.sampled == 5
    assert await scores.get("key", draw_at_once, usage) == {"leaf": [1.0]}


async def test_what_fails_is_not_remembered_and_each_token_is_one_request_s() -> None:
    scores, usages = ReferenceScores(), [Usage() for _ in range(3)]
    go = asyncio.Event()

    async def draw(usage: Usage) -> dict[str, list[float]]:
        usage.sampled, usage.scored = 5, 7
        await go.wait()
        usage.sampled = 9
        return {"leaf": [1.0]}

    async def fail(usage: Usage) -> dict[str, list[float]]:
        raise RuntimeError("dead")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="dead"):
            await scores.get("key", fail, usages[0])
    waiters = [asyncio.create_task(scores.get("key", draw, usage)) for usage in usages]
    await asyncio.sleep(0.01)
    waiters[0].cancel()
    await asyncio.gather(waiters[0], return_exceptions=True)
    go.set()
    assert await waiters[1] == await waiters[2] == {"leaf": [1.0]}
    assert [(usage.sampled, usage.reference_tokens, usage.scored) for usage in usages] == [
        (5, 5, 7),
        (4, 4, 0),
        (0, 0, 0),
    ]
    assert await scores.get("key", fail, usages[0]) == {"leaf": [1.0]}


async def test_the_least_recently_used_are_forgotten() -> None:
    scores, third = ReferenceScores(), MAX_SCORES // 3 + 1
    for key in ("a", "b", "a", "c"):

        async def draw(usage: Usage) -> dict[str, range]:
            return {"leaf": range(third)}

        await scores.get(key, draw, Usage())
    assert list(scores.remembered) == ["a", "c"]
    assert scores.size == 2 * third


def test_a_key_is_of_all_its_parts() -> None:
    parts: list[Any] = [[1, 2], [{"role": "user", "content": "a"}], {"answer": "1"}, ["a"], 8, 16]
    others = [[1, 2, 3], [{"role": "user", "content": "b"}], {}, ["a", "b"], 4, 32]
    keys = {make_key(*parts)} | {make_key(*parts[:i], other, *parts[i + 1 :]) for i, other in enumerate(others)}
    assert len(keys) == 1 + len(parts)
    assert json.loads(json.dumps(make_key(*parts))) == make_key(*parts)
