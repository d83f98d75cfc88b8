"""The HTTP surface on the toy engine, through the official client: what is answered, and that its law is right."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI
from prometheus_client import REGISTRY
from starlette.types import Message

from tests.server import toy_server
from tests.waiting import until
from trimtab.decoders import STRATEGIES, StrategyEntry
from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import BASE, Chunk, Engine, Reward, Sampling, Tokens
from trimtab.runtime.toy_engine import ToyEngine
from trimtab.server.config import Config
from trimtab.server.request.messages import CHAT, MESSAGES, RESPONSES

HI: list[Any] = [{"role": "user", "content": "hi"}]
GOOD = {"weights": {"good": 0.8}}
LAW = {BASE: 1.0, "arm": 0.8}
KEY = "a-key-of-the-test"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_server.checkpoint(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def config(folder: Path) -> Config:
    return Config.model_validate(
        {
            "base": str(folder),
            "name": "toy",
            "guides": {"arm": str(folder)},
            "objectives": {"good": {"guide": "arm", "about": "goodness"}, "truth": {}},
            "presets": {"toy-good": GOOD, "org/toy-bad": {"weights": {"good": -1.0}}},
            "engine": {"dtype": "float32", "max_model_len": 256, "enforce_eager": True},
        }
    )


@pytest.fixture(scope="session")
def toy(folder: Path) -> ToyEngine:
    return toy_server.toy_engine(folder)


@pytest.fixture(scope="session")
async def app(config: Config, toy: ToyEngine) -> FastAPI:
    return await toy_server.serve(config, toy)


def http(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toy")


@pytest.fixture(scope="session")
async def raw(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with http(app) as client:
        yield client


@pytest.fixture(scope="session")
async def client(app: FastAPI) -> AsyncIterator[AsyncOpenAI]:
    async with http(app) as transport:
        yield AsyncOpenAI(base_url="http://toy/v1", api_key="none", http_client=transport, max_retries=0)


@pytest.fixture(autouse=True)
def nothing_is_left(toy: ToyEngine) -> Any:
    yield
    assert toy.live == 0


def texts(answer: Any) -> list[str]:
    return [choice.message.content for choice in answer.choices]


def alignment(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = answer.model_extra["alignment"]
    return found


def law(toy: ToyEngine, mixture: dict[str, float]) -> dict[str, float]:
    """text -> probability. One of full length was cut off before its end of sequence, so no two share a text."""
    letters = dict(zip(toy.model.vocab, ("a", "b", ""), strict=True))
    return {"".join(letters[t] for t in y): p for y, p in toy.model.sequences(toy.model.next(mixture))}


# Chat, by the official client.


async def test_an_answer_and_all_that_is_told_of_it(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.with_raw_response.create(
        model="toy", messages=HI, seed=1, extra_body={"alignment": GOOD}
    )
    body: Any = answer.parse()
    [text] = texts(body)
    told = alignment(body)
    visible = len(text) + (body.choices[0].finish_reason == "stop")
    assert told == {
        "strategy": "guided", "params": {"plausibility": 0.0}, "weights": {"good": 0.8}, "guides": LAW,
        "streaming": "native",
        "sampled_tokens": visible, "scored_tokens": 0,
    }  # fmt: skip
    assert body.model == "toy"
    assert body.usage.completion_tokens == visible
    assert body.usage.completion_tokens_details.model_extra == {"sampled_tokens": visible, "scored_tokens": 0}
    assert answer.headers["x-alignment-strategy"] == "guided"
    assert answer.headers["x-alignment-sampled-tokens"] == str(visible)
    assert answer.headers["x-request-id"] == body._request_id


@pytest.mark.parametrize("asked", [{}, {"alignment": GOOD}])
async def test_a_stream_is_the_answer_in_pieces(client: AsyncOpenAI, asked: dict[str, Any]) -> None:
    for seed in range(8):
        whole: Any = await client.chat.completions.create(
            model="toy", messages=HI, n=3, seed=seed, extra_body={**asked}
        )
        pieces = ["", "", ""]
        roles: list[int] = []
        last: Any = None
        stream = await client.chat.completions.create(
            model="toy", messages=HI, n=3, seed=seed, stream=True, extra_body=asked,
            stream_options={"include_usage": True},
        )  # fmt: skip
        async for chunk in stream:
            last = chunk
            for choice in chunk.choices:
                if choice.delta.role:
                    roles.append(choice.index)
                else:
                    assert choice.index in roles, "role first"
                    pieces[choice.index] += choice.delta.content or ""
        assert pieces == texts(whole)
        assert roles == [0, 1, 2]
        assert alignment(last) == alignment(whole)
        assert last.usage.model_dump() == whole.usage.model_dump()


async def test_alignment_comes_on_the_last_chunk_only(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="toy-good", messages=HI, stream=True, seed=3)
    chunks = [chunk async for chunk in stream]
    assert {chunk.model for chunk in chunks} == {"toy-good"}
    assert ["alignment" in (chunk.model_extra or {}) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices[0].finish_reason


async def test_a_seed_is_an_answer_whatever_else_runs(client: AsyncOpenAI) -> None:
    async def answer(seed: int) -> list[str]:
        return texts(
            await client.chat.completions.create(
                model="toy", messages=HI, n=2, seed=seed, extra_body={"alignment": GOOD}
            )
        )

    alone = [await answer(seed) for seed in range(10)]
    assert list(await asyncio.gather(*(answer(seed) for seed in range(10)))) == alone
    assert len({tuple(texts) for texts in alone}) > 1


@pytest.mark.parametrize(("asked", "mixture"), [
    ({}, {BASE: 1.0}),
    ({"alignment": GOOD}, LAW),
    ({"alignment": {"strategy": "genarm", "weights": {"good": 0.5}, "params": {"alpha": 3.0}}},
     {BASE: 1.0, "arm": 1.5}),
    ({"alignment": {"strategy": "dera", "params": {"aligned": "arm", "lambda": 0.5}}}, {BASE: 0.5, "arm": 0.5}),
    ({"alignment": {"guides": {"arm": 1.0, "base": 0.0}}}, {BASE: 0.0, "arm": 1.0}),
    ({"model": "org/toy-bad"}, {BASE: 1.0, "arm": -1.0}),
])  # fmt: skip
async def test_the_distribution_over_http_is_the_law(
    client: AsyncOpenAI, toy: ToyEngine, asked: dict[str, Any], mixture: dict[str, float]
) -> None:
    """chi-squared of 800 answers against enumeration, at 5 sigma; the rarest are counted together."""
    n = 800
    answer = await client.chat.completions.create(
        model="toy",
        messages=HI,
        n=n,
        seed=11,
        extra_body=asked,
    )
    drawn, expected = Counter(texts(answer)), law(toy, mixture)
    assert set(drawn) <= set(expected)
    common = [y for y, p in expected.items() if n * p >= 5]
    cells = [(drawn[y], n * expected[y]) for y in common]
    rest = n * (1 - math.fsum(expected[y] for y in common))
    if rest > 1e-6:
        cells.append((n - sum(count for count, _ in cells), rest))
    chi2, freedom = sum((count - mean) ** 2 / mean for count, mean in cells), len(cells) - 1
    assert abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom)


async def test_the_trace_is_the_enumerated_one(client: AsyncOpenAI, toy: ToyEngine) -> None:
    answer: Any = await client.chat.completions.create(
        model="toy", messages=HI, n=4, seed=2, extra_body={"alignment": {**GOOD, "return": ["trace"]}}
    )
    told = alignment(answer)["choices"]
    assert [choice["index"] for choice in told] == [0, 1, 2, 3]
    mixed, base = toy.model.next(LAW), toy.model.next({BASE: 1})
    ids = dict(zip("ab", toy.model.vocab, strict=False))
    for choice, text in zip(told, texts(answer), strict=True):
        y = tuple(ids[letter] for letter in text) + (() if len(text) == toy.model.max_tokens else (toy.model.eos,))
        kl = [float(np.exp(mixed(y[:t])) @ (mixed(y[:t]) - base(y[:t]))) for t in range(len(y))]
        z = [float(np.log(np.exp(base(y[:t])) @ toy.model.tables["arm"][y[:t]] ** 0.8)) for t in range(len(y))]
        assert choice["trace"]["tokens"] == list(y)
        assert choice["trace"]["texts"] == [*text, *([""] * (len(y) - len(text)))]
        assert choice["trace"]["kl_exact"] == pytest.approx(kl, abs=1e-12)
        assert choice["trace"]["log_z"] == pytest.approx(z, abs=1e-12)
        assert choice["trace"]["log_weight"] == pytest.approx(math.fsum(z), abs=1e-12)
    assert alignment(answer)["scored_tokens"] == 4 * alignment(answer)["sampled_tokens"]


async def test_prompts_times_n_have_one_index(client: AsyncOpenAI, toy: ToyEngine) -> None:
    """Traces stand under the index of the choice that they belong to."""
    answer: Any = await client.completions.create(
        model="toy", prompt=["ask ", "ask ab"[:4] + "a", "x "], n=2, seed=5, max_tokens=5,
        extra_body={"alignment": {**GOOD, "return": ["trace"]}},
    )  # fmt: skip
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3, 4, 5]
    told = {choice["index"]: choice["trace"] for choice in alignment(answer)["choices"]}
    for choice in answer.choices:
        shown = len(choice.text) + (choice.finish_reason == "stop")
        assert len(told[choice.index]["kl_exact"]) == shown
    assert answer.usage.completion_tokens == alignment(answer)["sampled_tokens"]


# Models, presets and what the server says of itself.


async def test_presets_are_models(client: AsyncOpenAI) -> None:
    models = [model async for model in client.models.list()]
    assert [model.id for model in models] == ["toy", "toy-good", "org/toy-bad"]
    for model in models:
        assert (await client.models.retrieve(model.id)).id == model.id
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("toy-god")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    assert "Did you mean 'toy-good'?" in caught.value.message


async def test_a_preset_can_be_counted_with(raw: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "hi"}]
    for path in ("/tokenize", "/v1/messages/count_tokens"):
        as_base, as_preset = [
            await raw.post(path, json={"model": model, "messages": messages}) for model in ("toy", "toy-good")
        ]
        assert as_preset.status_code == 200
        assert as_preset.json() == as_base.json()


async def test_a_preset_is_its_wish(client: AsyncOpenAI) -> None:
    by_name = await client.chat.completions.create(model="toy-good", messages=HI, n=3, seed=4)
    by_hand = await client.chat.completions.create(
        model="toy", messages=HI, n=3, seed=4, extra_body={"alignment": GOOD}
    )
    assert texts(by_name) == texts(by_hand)
    assert alignment(by_name) == alignment(by_hand)
    assert by_name.model == "toy-good"


async def test_the_catalogue_says_what_can_be_asked(raw: httpx.AsyncClient) -> None:
    told = (await raw.get("/v1/alignment")).json()
    assert set(told["strategies"]) == set(STRATEGIES)
    assert told["objectives"]["good"] == {
        "about": "goodness", "guide": "arm", "gain": 1.0, "reward": None, "mean": 0.0, "spread": 1.0,
    }  # fmt: skip
    assert told["guides"] == ["arm"]
    assert told["presets"]["toy-good"] == GOOD
    assert told["default_strategy"] == "plain"
    genarm = told["strategies"]["genarm"]
    assert genarm["paper"] == "https://arxiv.org/abs/2410.08193"
    assert genarm["params"]["alpha"]["default"] == 1.0
    assert told["strategies"]["dera"]["params"].keys() == {"aligned", "lambda"}


async def test_it_is_ready_and_healthy_while_its_engine_is(app: FastAPI, raw: httpx.AsyncClient,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    assert (await raw.get("/health")).status_code == 200
    assert ((await raw.get("/ready")).status_code, (await raw.get("/ready")).json()) == (200, {"ready": True})
    monkeypatch.setattr(app.state.engine_client.inner, "errored", True)
    assert ((await raw.get("/ready")).status_code, (await raw.get("/ready")).json()) == (503, {"ready": False})


async def test_metrics_count_what_was_asked(raw: httpx.AsyncClient) -> None:
    def count(strategy: str, outcome: str) -> float:
        return REGISTRY.get_sample_value("trimtab_requests_total", {"strategy": strategy, "outcome": outcome}) or 0.0

    before = count("guided", "ok"), count("none", "invalid"), count("guided", "invalid")
    await raw.post(CHAT, json={"messages": HI, "n": 3, "alignment": GOOD})
    await raw.post(CHAT, json={"messages": HI, "alignment": {"strategy": "x"}})
    await raw.post(CHAT, json={"messages": HI, "temperature": -1, "alignment": GOOD})
    assert (count("guided", "ok"), count("none", "invalid"), count("guided", "invalid")) == tuple(b + 1 for b in before)
    shown = (await raw.get("/metrics", follow_redirects=True)).text
    assert 'trimtab_requests_total{outcome="ok",strategy="guided"}' in shown
    assert 'trimtab_request_duration_seconds_count{strategy="guided"}' in shown


# What is refused, and how.


def told(answer: httpx.Response) -> tuple[int, str | None, str | None, str]:
    assert answer.headers["x-request-id"]
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if answer.status_code < 500 else "server_error")
    return answer.status_code, error["param"], error["code"], error["message"]


async def test_unknown_fields_are_told_of(raw: httpx.AsyncClient) -> None:
    answer = await raw.post(CHAT, json={"messages": HI, "aligment": GOOD, "weights": 1})
    assert answer.json()["alignment"]["warnings"] == ["unknown fields were ignored: aligment, weights"]


async def test_every_known_field_is_known(raw: httpx.AsyncClient) -> None:
    answer = await raw.post(CHAT, json={"messages": HI, "user": "u", "max_completion_tokens": 3, "top_k": 2})
    assert "warnings" not in answer.json()["alignment"]


async def test_an_error_is_one_that_the_client_understands(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as ours:
        await client.chat.completions.create(model="toy", messages=HI, extra_body={"alignment": {"strategy": "x"}})
    assert (ours.value.param, ours.value.code, ours.value.type) == (
        "alignment.strategy", "invalid_value", "invalid_request_error",
    )  # fmt: skip
    with pytest.raises(openai.BadRequestError) as vllms:
        await client.chat.completions.create(model="toy", messages=HI, temperature=-1)
    assert (vllms.value.param, vllms.value.code, vllms.value.type) == ("temperature", None, "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as nobody:
        await client.chat.completions.create(model="toi", messages=HI)
    assert (nobody.value.param, nobody.value.code) == ("model", "model_not_found")


async def test_paths_and_methods_that_are_not_there(raw: httpx.AsyncClient) -> None:
    assert told(await raw.get("/v1/nothing")) == (404, None, "not_found", "Not Found: GET /v1/nothing")
    assert told(await raw.get(CHAT))[:3] == (405, None, "method_not_allowed")
    assert told(await raw.delete("/v1/models"))[:3] == (405, None, "method_not_allowed")
    for other in ("/v1/embeddings", "/inference/v1/generate", "/invocations", "/v1/chat/completions/batch",
                  "/generative_scoring", "/v1/completions/render", "/v1/load_lora_adapter"):  # fmt: skip
        assert (await raw.post(other, json={"messages": HI, "alignment": GOOD})).status_code == 404, other


async def test_every_way_to_generate_goes_through_the_seam(app: FastAPI) -> None:
    """A route that this does not know may be a way to generate without `alignment`."""
    posts = {route.path for route in app.routes if "POST" in (getattr(route, "methods", None) or ())}
    assert posts == {
        CHAT, "/v1/completions", RESPONSES, "/v1/responses/{response_id}/cancel", MESSAGES,
        "/v1/messages/count_tokens", "/tokenize", "/detokenize", "/v1/alignment/score", "/v1/alignment/infer",
        "/admin/reload",
    }  # fmt: skip


async def test_only_a_key_opens_the_server(config: Config, toy: ToyEngine) -> None:
    locked = await toy_server.serve(config.model_copy(update={"api_keys": (KEY, "another")}), toy)
    body = {"messages": HI, "model": "toy", "max_tokens": 5}
    async with http(locked) as raw:
        refused = await raw.post(CHAT, json=body)
        assert told(refused) == (401, None, "invalid_api_key", "missing or incorrect API key")
        assert refused.headers["www-authenticate"] == "Bearer"
        for path in ("/v1/models", "/v1/alignment", "/metrics", "/docs", "/v1/nothing"):
            assert (await raw.get(path)).status_code == 401
        assert {(await raw.get(path)).status_code for path in ("/health", "/ready")} == {200}
        for given, status in (
            ({"authorization": f"Bearer {KEY}"}, 200), ({"authorization": "bearer another"}, 200),
            ({"x-api-key": KEY}, 200), ({"authorization": f"Bearer {KEY} "}, 401), ({"authorization": KEY}, 401),
            ({"authorization": "Bearer "}, 401), ({"authorization": f"Basic {KEY}"}, 401), ({"x-api-key": ""}, 401),
        ):  # fmt: skip
            for path in (CHAT, MESSAGES):
                assert (await raw.post(path, json=body, headers=given)).status_code == status, given


# What goes wrong while an answer is on its way.


@dataclass(frozen=True, kw_only=True)
class Breaking:
    """Breaks after a number of chunks, or at the end where there are fewer."""

    after: int
    value_error: bool = False
    work = Plain().work

    async def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        seen = 0
        async with aclosing(engine.generate(prompt, sampling, n=n, guides={BASE: 1.0})) as chunks:
            async for chunk in chunks:
                if seen == self.after:
                    break
                seen += 1
                yield chunk
        raise ValueError("what was asked is wrong") if self.value_error else RuntimeError("broken inside")


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> None:
    row = StrategyEntry(target=f"{__name__}:Breaking", draws="stream", example={}, neutral=None)
    monkeypatch.setitem(STRATEGIES, "breaking", row)


def broken(after: int, **more: Any) -> dict[str, Any]:
    return {
        "messages": HI,
        "n": 3,
        "seed": 1,
        "alignment": {"strategy": "breaking", "params": {"after": after, **more}},
    }


@pytest.mark.usefixtures("breaking")
@pytest.mark.parametrize("stream", [False, True])
async def test_what_breaks_before_the_first_byte_has_a_status(raw: httpx.AsyncClient, stream: bool) -> None:
    failed = await raw.post(CHAT, json={**broken(0), "stream": stream})
    assert told(failed)[0] == 500
    refused = await raw.post(CHAT, json={**broken(0, value_error=True), "stream": stream})
    assert told(refused) == (400, None, None, "what was asked is wrong")


@pytest.mark.usefixtures("breaking")
async def test_what_breaks_in_a_stream_is_its_last_event(raw: httpx.AsyncClient, client: AsyncOpenAI) -> None:
    for after in (1, 2, 4):
        answer = await raw.post(CHAT, json={**broken(after), "stream": True})
        assert answer.status_code == 200
        *chunks, error, done = [line for line in answer.text.splitlines() if line]
        assert done == "data: [DONE]"
        assert json.loads(error.removeprefix("data: "))["error"]["type"] == "server_error"
        assert all('"error"' not in chunk for chunk in chunks)
        assert "alignment" not in answer.text
    body = broken(2)
    with pytest.raises(openai.APIError, match="internal server error"):
        async for _ in await client.chat.completions.create(
            model="toy", messages=HI, n=3, seed=1, stream=True, extra_body={"alignment": body["alignment"]}
        ):
            pass


@pytest.mark.usefixtures("breaking")
@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
async def test_the_other_apis_tell_of_it_too(raw: httpx.AsyncClient, path: str) -> None:
    asked = {"model": "toy", "input": "hi", "messages": HI, "max_tokens": 5, "stream": True}
    answer = await raw.post(path, json={**asked, "alignment": broken(1)["alignment"], "seed": 1})
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert [event for event in events if "error" in event][-1]["error"]["type"] == "server_error"


async def visit(app: FastAPI, body: dict[str, Any], *, leave_after: int) -> int:
    """A client that leaves once it has seen so many pieces of the body; how many it saw."""
    seen, gone = 0, asyncio.Event()
    sent = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Message:
        if sent:
            return sent.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal seen
        if message["type"] == "http.response.body":
            seen += 1
        if seen >= leave_after:
            gone.set()
            await asyncio.sleep(0)

    scope = {
        "type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json")], "http_version": "1.1", "scheme": "http",
        "server": ("toy", 80), "client": ("toy", 1), "asgi": {"version": "3.0"}, "extensions": {},
    }  # fmt: skip
    if not leave_after:
        gone.set()
    await app(scope, receive, send)
    return seen


@pytest.mark.parametrize("include", [[], ["trace"]])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_leaves_nothing(
    app: FastAPI, toy: ToyEngine, stream: bool, include: list[str]
) -> None:
    """`nothing_is_left` looks right after each of these."""
    whole = await visit(app, {"messages": HI, "n": 100, "stream": stream, "alignment": GOOD}, leave_after=10**9)
    for leave_after in (0, 1, 2, 7):
        body = {"messages": HI, "n": 100, "stream": stream, "alignment": {**GOOD, "return": include}}
        assert await visit(app, body, leave_after=leave_after) <= whole
        await until(lambda: toy.live == 0)
