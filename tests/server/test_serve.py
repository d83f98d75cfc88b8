"""`trimtab serve` on real models, through the official client and through what only a raw socket can send."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from tests.server.conftest import INSTRUCTED, KEY, PIECED, READERS, SEARCHES, Running, check_company, wishes
from tests.waiting import until
from trimtab.decoders import STRATEGIES
from trimtab.server.config import Config
from trimtab.server.request.messages import CHAT, COMPLETIONS, MESSAGES

HI: list[Any] = [{"role": "user", "content": "Hello, how do I boil an egg?"}]
LENGTH = 12
Ask = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture(scope="session")
async def raw(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
async def client(server: Running) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def wish(config: Config) -> dict[str, dict[str, Any]]:
    return wishes(config)


@pytest.fixture(scope="session")
def objectives(config: Config) -> list[str]:
    return list(config.objectives)


@pytest.fixture(scope="session")
def ask(raw: httpx.AsyncClient) -> Ask:
    """The answer to a chat, or to a completion where there is a `prompt`."""

    async def ask(**body: Any) -> dict[str, Any]:
        body = {"max_tokens": LENGTH, "seed": 7, **({} if "prompt" in body else {"messages": HI}), **body}
        answer = await raw.post(COMPLETIONS if "prompt" in body else CHAT, json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    return ask


def text(answer: dict[str, Any], i: int = 0) -> str:
    choice = answer["choices"][i]
    found: str = choice["text"] if "text" in choice else choice["message"]["content"]
    return found


async def total(raw: httpx.AsyncClient, metric: str) -> float:
    """Of all that the metric counts, whatever its labels; `metric` is a pattern."""
    shown = (await raw.get("/metrics/")).text
    found = re.findall(rf"^{metric}\{{.*\}} (\S+)$", shown, re.MULTILINE)
    assert found
    return sum(map(float, found))


async def load(raw: httpx.AsyncClient) -> float:
    """Requests that the engine runs or that wait for it."""
    return await total(raw, "vllm:num_requests_(?:running|waiting)")


# What a person does first.


async def test_chat_with_the_official_client(client: AsyncOpenAI, config: Config, objectives: list[str]) -> None:
    answer: Any = await client.chat.completions.create(
        model=config.model_name, messages=HI, max_tokens=LENGTH, n=3, seed=1, logprobs=True, top_logprobs=2,
        extra_body={"alignment": {"weights": {objectives[0]: 1.0}, "return": ["trace"]}},
    )  # fmt: skip
    assert len(answer.choices) == 3
    told = answer.model_extra["alignment"]
    assert (told["strategy"], told["weights"]) == ("guided", {objectives[0]: 1.0})
    assert told["sampled_tokens"] == answer.usage.completion_tokens
    assert [choice["index"] for choice in told["choices"]] == [0, 1, 2]
    for choice, trace in zip(answer.choices, told["choices"], strict=True):
        assert len(trace["trace"]["kl_exact"]) == len(choice.logprobs.content)
        assert all(len(step.top_logprobs) == 2 and step.logprob <= 0 for step in choice.logprobs.content)


async def test_a_stream_is_the_answer_in_pieces(client: AsyncOpenAI, config: Config, ask: Ask) -> None:
    preset = next(iter(config.presets))
    pieces, told = "", None
    async for chunk in await client.chat.completions.create(
        model=preset, messages=HI, max_tokens=LENGTH, seed=7, stream=True
    ):
        assert chunk.model == preset
        pieces += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        told = (chunk.model_extra or {}).get("alignment", told)
    whole = await ask(model=preset)
    assert pieces == text(whole)
    assert told == whole["alignment"]


async def test_weights_change_the_answer_and_nothing_else_does(ask: Ask, objectives: list[str]) -> None:
    def weighted(w: float) -> dict[str, Any]:
        return {"alignment": {"weights": {objectives[0]: w}}, "max_tokens": 48}

    answers = [text(await ask(**weighted(w))) for w in (1.0, -1.0, 4.0)]
    assert len({*answers, text(await ask(max_tokens=48))}) > 2
    assert [text(await ask(**weighted(w))) for w in (1.0, -1.0, 4.0)] == answers


@pytest.mark.parametrize("temperature", [0, 1])
async def test_zero_exponents_are_the_base(ask: Ask, config: Config, temperature: float) -> None:
    zero = {"guides": dict.fromkeys(config.guides, 0.0)}
    for seed in range(4):
        asked = {"seed": seed, "temperature": temperature, "return_token_ids": True, "max_tokens": 32}
        plain, guided = await ask(**asked), await ask(**asked, alignment=zero)
        assert plain["choices"][0]["token_ids"] == guided["choices"][0]["token_ids"]
        assert guided["alignment"]["strategy"] == "guided"


async def test_company_changes_nothing(ask: Ask, wish: dict[str, dict[str, Any]]) -> None:
    """Requests of every strategy and none at once, two of each, and each as it is alone."""
    strategies = [*wish.values(), {}] * 2
    requests = [{"alignment": strategy, "seed": i, "n": 1 + i % 2} for i, strategy in enumerate(strategies)]
    alone = [await ask(**request) for request in requests]
    together = await asyncio.gather(*(ask(**request) for request in requests))
    check_company([a["choices"] for a in together], [a["choices"] for a in alone])


# Every strategy with every feature.


@pytest.fixture(params=[name for name in STRATEGIES if name != "plain"])
def asked(request: pytest.FixtureRequest, wish: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {"alignment": wish[request.param]}


def searching(asked: dict[str, Any]) -> bool:
    return asked["alignment"].get("strategy") in SEARCHES


TOKENWISE = ("args", "transfer_q")


async def refusal(raw: httpx.AsyncClient, **body: Any) -> str:
    answer = await raw.post(COMPLETIONS if "prompt" in body else CHAT, json=body)
    assert answer.status_code == 400, answer.text
    message: str = answer.json()["error"]["message"]
    return message


async def test_stream(raw: httpx.AsyncClient, ask: Ask, asked: dict[str, Any]) -> None:
    body = {"messages": HI, "max_tokens": LENGTH, "seed": 7, "n": 2, "stream": True, **asked}
    lines = (await raw.post(CHAT, json=body)).text.splitlines()
    pieces = ["", ""]
    for line in lines:
        if line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                pieces[choice["index"]] += choice["delta"].get("content") or ""
    whole = await ask(n=2, **asked)
    assert pieces == [text(whole, 0), text(whole, 1)]


async def test_n_and_seed(ask: Ask, asked: dict[str, Any]) -> None:
    once, again = await ask(n=3, **asked), await ask(n=3, **asked)
    assert once["choices"] == again["choices"]
    assert len({text(once, i) for i in range(3)}) > 1
    shown, drawn = once["usage"]["completion_tokens"], once["alignment"]["sampled_tokens"]
    tokenwise = asked["alignment"].get("strategy") in TOKENWISE
    assert shown <= drawn if tokenwise else shown < drawn if searching(asked) else shown == drawn


async def test_logprobs(raw: httpx.AsyncClient, ask: Ask, asked: dict[str, Any]) -> None:
    """They are the mixture's: the greedy answer's tokens are the likeliest ones."""
    if asked["alignment"].get("strategy") in PIECED:
        for stream in (False, True):
            assert "logprobs" in await refusal(raw, messages=HI, logprobs=True, stream=stream, **asked)
        return
    answer = await ask(temperature=0, logprobs=True, top_logprobs=2, **asked)
    for step in answer["choices"][0]["logprobs"]["content"]:
        assert step["logprob"] == max(top["logprob"] for top in step["top_logprobs"])


async def test_stop(ask: Ask, asked: dict[str, Any]) -> None:
    if searching(asked):  # candidates are chosen by what they are up to the stop string
        stopped = await ask(stop=["e"], n=2, **asked)
        assert not any("e" in text(stopped, i) for i in range(2))
        return
    whole = text(await ask(**asked))
    last = next(c for c in reversed(whole) if c != "\ufffd")
    stopped = await ask(stop=[last], **asked)
    assert text(stopped) == whole[: whole.index(last)]
    assert (stopped["choices"][0]["finish_reason"], stopped["choices"][0]["stop_reason"]) == ("stop", last)


EGG = {"type": "object", "properties": {"egg": {"type": "boolean"}}, "required": ["egg"], "additionalProperties": False}
FORMS: list[dict[str, Any]] = [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "egg", "schema": EGG}}},
    {"structured_outputs": {"regex": r'\{"egg":(true|false)\}'}},
]


@pytest.mark.parametrize("form", FORMS, ids=["json_schema", "regex"])
async def test_structured_outputs(
    raw: httpx.AsyncClient, ask: Ask, asked: dict[str, Any], form: dict[str, Any]
) -> None:
    """Guidance comes before the grammar's mask, so it cannot bring back what that forbids."""
    if asked["alignment"].get("strategy") == "contrastive":
        for stream in (False, True):
            refused = await raw.post(CHAT, json={"messages": HI, **asked, **form, "stream": stream})
            assert (refused.status_code, refused.json()["error"]["message"]) == (
                400, "plausibility cannot be combined with structured_outputs: together they may leave no token",
            )  # fmt: skip
        return
    if asked["alignment"].get("strategy") in READERS:
        assert "grammars" in await refusal(raw, messages=HI, **asked, **form)
        return
    answer = await ask(**form, **asked, max_tokens=60, n=2)
    for i in range(2):
        said = text(answer, i)
        if answer["choices"][i]["finish_reason"] == "stop":
            assert json.loads(said)["egg"] in (True, False)
        else:  # white space is JSON too, and a random model may like it
            assert re.fullmatch(r'\s*\{\s*("(e(g(g("\s*(:\s*[a-z]*\s*\}?\s*)?)?)?)?)?)?', said), said


async def test_logit_bias_and_penalties(raw: httpx.AsyncClient, ask: Ask, asked: dict[str, Any]) -> None:
    """A bias that nothing outweighs leaves two tokens; a penalty on what was said makes both appear."""
    wish = asked["alignment"]
    if wish.get("strategy") == "contrastive":  # no bias makes the implausible plausible
        wish = {**wish, "params": {**wish["params"], "alpha": 0.0}}
    two = [
        (await raw.post("/tokenize", json={"prompt": c, "add_special_tokens": False})).json()["tokens"][-1]
        for c in "xy"
    ]
    if wish.get("strategy") in PIECED:
        name = "penalties" if wish["strategy"] in READERS else "frequency_penalty cannot be carried on"
        assert name in await refusal(raw, messages=HI, alignment=wish, frequency_penalty=2)
        return
    only = {"logit_bias": {str(token): 100 for token in two}, "temperature": 0, "return_token_ids": True}
    answer = await ask(**only, alignment=wish, frequency_penalty=2, max_tokens=48)
    assert set(answer["choices"][0]["token_ids"]) == set(two)


async def test_echo(raw: httpx.AsyncClient, ask: Ask, asked: dict[str, Any]) -> None:
    if asked["alignment"].get("strategy") in INSTRUCTED:
        assert "needs a chat request" in await refusal(raw, prompt="An egg", echo=True, **asked)
        return
    for more in ({}, {"max_tokens": 0}, {"logprobs": 1}, {"logprobs": 1, "max_tokens": 0}):
        if "logprobs" in more and asked["alignment"].get("strategy") in PIECED:
            assert "logprobs" in await refusal(raw, prompt="An egg", echo=True, **asked, **more)
            continue
        answer = await ask(prompt="An egg", echo=True, **asked, **more)
        assert text(answer).startswith("An egg")
        if "max_tokens" in more:
            assert text(answer) == "An egg"
        if "logprobs" in more:
            assert "".join(answer["choices"][0]["logprobs"]["tokens"]).startswith("An egg")


async def test_prompts_times_n(ask: Ask, asked: dict[str, Any]) -> None:
    strategy = asked["alignment"].get("strategy")
    if strategy in INSTRUCTED:
        return
    shows = STRATEGIES[strategy or "guided"].shows
    pools = "candidates" in shows and strategy != "qalign"
    tells = "candidates" if pools else "trace"
    include = {"return": [tells]} if tells in shows else {}
    answer = await ask(prompt=["An egg", "A pan of water"], n=2, **{"alignment": asked["alignment"] | include})
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["index"] for choice in answer["alignment"]["choices"]] == [0, 1, 2, 3]
    if strategy in TOKENWISE:
        assert all(len(c["trace"]) == c["decisions"] for c in answer["alignment"]["choices"])
        return
    if searching(asked) and tells in shows and strategy != "beam":
        assert [len(choice.get(tells, ())) for choice in answer["alignment"]["choices"]] == [4, 0, 4, 0] if pools else [
            3, 0, 3, 0
        ]  # fmt: skip
    if searching(asked):
        return
    assert (
        sum(len(c["trace"]["kl_exact"]) for c in answer["alignment"]["choices"]) == answer["usage"]["completion_tokens"]
    )


async def test_responses(client: AsyncOpenAI, config: Config, asked: dict[str, Any]) -> None:
    answer: Any = await client.responses.create(
        model=config.model_name, input="An egg", max_output_tokens=LENGTH, extra_body={**asked, "seed": 7}
    )
    assert answer.model_extra["alignment"]["sampled_tokens"] >= answer.usage.output_tokens
    last: Any = None
    async for event in await client.responses.create(
        model=config.model_name, input="An egg", max_output_tokens=LENGTH, extra_body={**asked, "seed": 7}, stream=True
    ):
        last = event
    assert last.type == "response.completed"
    streamed, whole = last.response.model_extra["alignment"], answer.model_extra["alignment"]
    if asked.get("alignment", {}).get("strategy") == "segments":  # a draw that is ended may have drawn on meanwhile
        for count in ("sampled_tokens", "scored_tokens"):
            assert abs(streamed.pop(count) - whole.pop(count)) <= 4
    assert streamed == whole


async def test_messages(raw: httpx.AsyncClient, config: Config, asked: dict[str, Any]) -> None:
    if asked["alignment"].get("strategy") == "rps":  # this endpoint takes no seed, by which directions are drawn
        asked = {"alignment": {**asked["alignment"], "params": {"mode": "grid_relative"}}}
    body = {"model": config.model_name, "max_tokens": LENGTH, "messages": HI, "temperature": 0, **asked}
    headers = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
    whole = (await raw.post(MESSAGES, json=body, headers=headers)).json()
    assert whole["alignment"]["sampled_tokens"] >= whole["usage"]["output_tokens"]
    stream = await raw.post(MESSAGES, json={**body, "stream": True}, headers=headers)
    events = [
        json.loads(line.removeprefix("data: ")) for line in stream.text.splitlines() if line.startswith("data: {")
    ]
    assert "".join(e["delta"].get("text", "") for e in events if e["type"] == "content_block_delta") == "".join(
        block["text"] for block in whole["content"]
    )
    streamed = events[-1]["alignment"]
    if searching(asked):  # without a seed, which of equal candidates is chosen may differ
        streamed, whole["alignment"] = (
            {
                k: v
                for k, v in a.items()
                if k != "choices" and (k[-7:] != "_tokens" or asked["alignment"].get("strategy") not in PIECED)
            }
            for a in (streamed, whole["alignment"])
        )
    assert streamed == whole["alignment"]


@pytest.mark.parametrize(
    ("body", "param", "code", "message"),
    [
        ({"use_beam_search": True, "n": 2}, "use_beam_search", "unsupported_pair",
         "use_beam_search cannot be combined with strategy '{}'"),
        ({"kv_transfer_params": {"a": 1}}, "kv_transfer_params", "unsupported_pair",
         "kv_transfer_params cannot be combined with strategy '{}'"),
        ({"vllm_xargs": {"trimtab": "x"}}, "vllm_xargs.trimtab", "invalid_value",
         "vllm_xargs.trimtab is reserved: use alignment"),
    ],
)  # fmt: skip
async def test_refused_by_name(
    raw: httpx.AsyncClient, asked: dict[str, Any], body: dict[str, Any], param: str, code: str, message: str
) -> None:
    answer = await raw.post(CHAT, json={"messages": HI, **asked, **body})
    error = answer.json()["error"]
    strategy = asked["alignment"].get("strategy", "guided")
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["message"].startswith(message.format(strategy))


async def test_an_image_is_refused(raw: httpx.AsyncClient, asked: dict[str, Any]) -> None:
    """By its place where a reward would have to read it; by vLLM elsewhere, for the demo's base reads text alone."""
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    answer = await raw.post(CHAT, json={"messages": [{"role": "user", "content": [image]}], **asked})
    error = answer.json()["error"]
    assert answer.status_code == 400, error
    assert (error["param"], error["code"]) in ((None, None), ("messages.0.content.0", "unsupported_pair"))


# What it must survive.


def deep(depth: int) -> bytes:
    return b'{"messages": ' + b"[" * depth + b"]" * depth + b"}"


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("content", "headers", "status", "param", "code", "message"),
    [
        (b'{"messages": []}', JSON, 400, None, None, "Cannot apply chat template to an empty conversation"),
        (b'{"messages": null}', JSON, 400, "messages", "invalid_value", "messages must be an array"),
        (json.dumps({"messages": [{"role": "user", "content": "egg " * 5000}]}).encode(), JSON, 400, "input_text",
         "context_length_exceeded", "This model's maximum context length is"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', JSON, 400, "messages.0.content", "invalid_json",
         "the request body holds half of a surrogate pair, which is no text"),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', JSON, 400, None, "invalid_json",
         "the request body is not valid JSON: 'utf-8' codec can't decode byte 0xff"),
        (deep(100_000), JSON, 400, None, "invalid_json", "the request body is nested too deeply"),
        (b"{", JSON, 400, None, "invalid_json", "the request body is not valid JSON: Expecting property name"),
        (b'{"messages": [{"role": "user", "content": "hi"}]}', {"content-type": "text/plain"}, 415, None,
         "unsupported_media_type", "Unsupported Media Type: Only 'application/json' is allowed"),
        (b'{"messages": [{"role": "user", "content": "' + b"egg " * 2_500_000 + b'"}]}', JSON, 400, "input_text",
         "context_length_exceeded", "This model's maximum context length is"),
        (b'{"messages": "' + b"x" * 17 * 2**20 + b'"}', JSON, 413, None, "request_too_large",
         "the request body is larger than 16 MiB"),
    ],
    ids=["no-messages", "null", "too-long", "surrogate", "utf-8", "deep", "broken", "text", "10MB", "17MB"],
)  # fmt: skip
@pytest.mark.parametrize("aligned", [False, True])
async def test_bad_bodies(
    raw: httpx.AsyncClient, ask: Ask, objectives: list[str], aligned: bool, content: bytes, headers: dict[str, str],
    status: int, param: str | None, code: str | None, message: str,
) -> None:  # fmt: skip
    if aligned and content.endswith(b"}") and content != deep(100_000):
        content = content[:-1] + f', "alignment": {{"weights": {{"{objectives[0]}": 1}}}}}}'.encode()
    answer = await raw.post(CHAT, content=content, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["message"].startswith(message)
    assert (await raw.get("/health")).status_code == 200
    assert text(await ask(max_tokens=2)) is not None


@pytest.mark.parametrize("content", ["", " ", "\x00", "</s><s><|im_end|>", "\ufeff\u202e\U0001f600", "a" * 100])
async def test_odd_text(ask: Ask, asked: dict[str, Any], content: str) -> None:
    for role in ("user", "system"):
        answer = await ask(messages=[{"role": role, "content": content}], **asked)
        assert answer["usage"]["completion_tokens"] >= 1


async def test_a_request_id_twice_at_once(raw: httpx.AsyncClient) -> None:
    body = {"messages": HI, "max_tokens": LENGTH}
    answers = await asyncio.gather(*(raw.post(CHAT, json=body, headers={"x-request-id": "the-same"}) for _ in range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert {answer.headers["x-request-id"] for answer in answers} == {"the-same"}


# Clients that leave.


def request(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


LARGE: dict[str, dict[str, Any]] = {
    "best_of_n": {"n": 8},
    "qalign": {"chains": 8, "steps": 200},
    "transfer_q": {"k": 8, "rollouts": 4, "horizon": None},
    "particles": {"n": 16, "block": 8},
}


DRAWN = "vllm:generation_tokens_total"


@pytest.mark.parametrize("strategy", ["plain", "guided", *LARGE])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stage", ["sending", "at once", "running", "mid-stream", "not reading"])
async def test_a_client_that_leaves_leaves_nothing(
    server: Running, raw: httpx.AsyncClient, config: Config, wish: dict[str, Any], strategy: str, stream: bool,
    stage: str,
) -> None:  # fmt: skip
    long = int(config.engine.get("max_model_len", 256)) - 100
    body = {"messages": HI, "n": 8, "max_tokens": long, "min_tokens": long, "stream": stream}
    if strategy != "plain":
        body["alignment"] = wish[strategy]
    if strategy in SEARCHES:
        body |= {"n": 1, "alignment": {**wish[strategy], "params": LARGE[strategy]}}
        if strategy in READERS:
            del body["min_tokens"]
        if stage == "mid-stream" and strategy not in TOKENWISE:  # nothing comes before it has chosen
            return
    sent, before = request(body), await total(raw, DRAWN)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(sent[: len(sent) // 2] if stage == "sending" else sent)
    await writer.drain()

    async def busy() -> bool:
        return await load(raw) > 0

    async def quiet() -> bool:
        return await load(raw) == 0

    if stage in ("running", "mid-stream", "not reading"):
        await until(busy)
    if stage == "mid-stream" and stream:
        await reader.readuntil(b"data: ")
    writer.transport.abort()
    await until(quiet)
    if "min_tokens" in body and strategy not in PIECED:  # it would have drawn eight answers of that length
        assert await total(raw, DRAWN) - before < 8 * long / 2
    assert (await raw.get("/health")).status_code == 200


# What is said outside of answers.


def counts(shown: str) -> dict[tuple[str, str], float]:
    found = re.findall(r'^trimtab_requests_total\{outcome="(\w+)",strategy="(\w+)"\} (\S+)$', shown, re.MULTILINE)
    return {(strategy, outcome): float(count) for outcome, strategy, count in found}


async def test_metrics_count_each_request_once(raw: httpx.AsyncClient, ask: Ask, wish: dict[str, Any]) -> None:
    before = counts((await raw.get("/metrics/")).text)
    await ask(n=3, alignment=wish["guided"])
    await ask(prompt=["a", "b"], alignment=wish["genarm"])
    await ask()
    await raw.post(CHAT, json={"messages": HI, "alignment": {"strategy": "none"}})
    await raw.post(CHAT, json={"messages": HI, "temperature": -1, "alignment": wish["dera"]})
    await raw.post(CHAT, json={"messages": HI, "logit_bias": {"9999999": 1}, "stream": True, "alignment": wish["mod"]})
    expected = {
        ("guided", "ok"): 1, ("genarm", "ok"): 1, ("plain", "ok"): 1, ("none", "invalid"): 1, ("dera", "invalid"): 1,
        ("mod", "invalid"): 1,
    }  # fmt: skip
    found: dict[tuple[str, str], float] = {}

    async def counted() -> bool:
        after = counts((await raw.get("/metrics/")).text)
        found.update({key: count - before.get(key, 0.0) for key, count in after.items() if count != before.get(key)})
        return len(found) == len(expected)

    await until(counted)  # a request is counted when it is over, which its client may see first
    assert found == expected


async def test_nobody_comes_in_without_the_key(server: Running) -> None:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            await stranger.models.list()
    assert (caught.value.code, caught.value.type) == ("invalid_api_key", "invalid_request_error")


def environment(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


async def test_no_usage_is_reported_and_no_secret_is_logged(server: Running, ask: Ask) -> None:
    secret = "the colour of my egg is a secret"
    await ask(messages=[{"role": "user", "content": secret}])
    others = [environment(pid) for pid in server.members() if pid != server.process.pid]
    first = "PYTHONPATH="  # a process that renames itself writes over its own, but for what lies at its end
    readable = [found for found in others if any(line.startswith(first) for line in found)]
    assert readable
    assert all("VLLM_NO_USAGE_STATS=1" in found for found in readable)
    assert KEY not in server.told()
    assert secret not in server.told()


# Its end. Last in this file, since nothing answers after it.


async def test_sigterm_while_requests_run(server: Running, raw: httpx.AsyncClient, config: Config) -> None:
    """What can be answered within `limits.drain_s` is, what is new is refused, the rest ends with an error."""
    long = int(config.engine.get("max_model_len", 256)) - 100
    bodies = [{"messages": HI, "n": 8, "max_tokens": long, "min_tokens": long, "stream": bool(i % 2)} for i in range(4)]
    pending = [asyncio.create_task(raw.post(CHAT, json=body)) for body in bodies]

    async def busy() -> bool:
        return await load(raw) > 0

    await until(busy)
    short = asyncio.create_task(raw.post(CHAT, json={"messages": HI, "max_tokens": 2}))

    async def let_in() -> bool:
        return short.done() or "trimtab_inflight_requests 5.0" in (await raw.get("/metrics/")).text

    await until(let_in)
    server.process.send_signal(signal.SIGTERM)

    async def closing() -> bool:
        return (await raw.get("/ready")).status_code == 503

    await until(closing)
    assert (await raw.get("/health")).status_code == 200
    refused = await raw.post(CHAT, json={"messages": HI, "max_tokens": 2})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
    assert int(refused.headers["retry-after"]) > 0
    assert (await short).status_code == 200
    assert await asyncio.to_thread(server.wait) == 0, server.told()
    for answer in await asyncio.gather(*pending, return_exceptions=True):
        if isinstance(answer, httpx.Response):  # the rest was cut off as it was being sent
            assert answer.status_code in (200, 500, 503)

    async def gone() -> bool:
        return not server.members()

    await until(gone)
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", server.port)) != 0
