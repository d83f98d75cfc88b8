"""How far a search is, in the stream that its answer will come in: what it says, how often, and who does not mind."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI
from prometheus_client import REGISTRY

from tests.server.search.conftest import HI, best, chains, chat, counted, refused, slow
from tests.server.search.test_search import SEARCHES
from trimtab.decoders import STRATEGIES
from trimtab.runtime.toy_engine import ToyEngine
from trimtab.server.config import Config
from trimtab.server.http import response
from trimtab.server.request.messages import CHAT, COMPLETIONS, MESSAGES, RESPONSES

PAUSE = 0.2
SEED = 1
"""With which no search ends at its first token."""
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HI},
    COMPLETIONS: {"prompt": "assistant: "},
    MESSAGES: {"messages": HI, "max_tokens": 8},
}
POOL = {"strategy": "mbr", "params": {"n": 2}}
PROGRESS = {"return": ["progress"]}
BEST = {"return": ["progress", "best"]}
BUFFERED = [name for name, row in STRATEGIES.items() if not row.streams]

pytestmark = pytest.mark.usefixtures("no_waits")


@pytest.fixture
async def unhurried(config: Config, toy: ToyEngine) -> AsyncOpenAI:
    """A client of a server whose engine pauses before each answer, on a clock that waits for no work."""
    return await slow(config, toy, PAUSE)


@pytest.fixture
async def http(unhurried: AsyncOpenAI) -> httpx.AsyncClient:
    client: httpx.AsyncClient = unhurried._client
    return client


async def stream(
    http: httpx.AsyncClient, alignment: Mapping[str, Any], path: str = CHAT, **more: Any
) -> list[dict[str, Any]]:
    """The events' data, what is no JSON left out."""
    body = {"model": "toy", "seed": 3, "stream": True, **BODIES[path], "alignment": alignment, **more}
    answer = await http.post(f"http://toy{path}", json=body)
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def tells(event: Mapping[str, Any]) -> bool:
    return "progress" in event.get("alignment", {})


def progress(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event["alignment"]["progress"] for event in events if tells(event)]


def value(text: str) -> float:
    """Of the reward, on the scale of its objective."""
    return (text.count("a") - 1) / 2


@pytest.mark.parametrize("name", BUFFERED)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_every_search_says_how_far_it_is(
    http: httpx.AsyncClient, name: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response, "PROGRESS_INTERVAL", PAUSE / 2)
    if path == COMPLETIONS and "direction" in STRATEGIES[name].takes:
        return  # a bare prompt has no place for what instructs the model
    events = await stream(http, SEARCHES[name] | BEST, path, seed=SEED)
    shown = [event for event in events if tells(event)]
    assert events[: len(shown)] == shown, "the answer comes last"
    assert len(shown) > 1
    for event in shown:
        assert event["choices"] == []
        assert event["alignment"].keys() == {"progress"}
        for key in ("id", "object", "created", "model"):
            assert event[key] == events[-1][key]
    done: dict[str, int] = {}
    for one in progress(events):
        assert one.keys() - {"best"} == {"stage", "done", "of", "sampled_tokens", "scored_tokens", "elapsed_ms"}
        assert done.get(one["stage"], 0) <= one["done"] <= one["of"]
        done[one["stage"]] = one["done"]
        assert "best" not in one or one["best"].keys() == {"value", "text"}
        if "best" in one and name != "rps":
            assert one["best"]["value"] == value(one["best"]["text"])
    assert "best" in progress(events)[-1] or "weights" not in SEARCHES[name]
    for count in ("sampled_tokens", "scored_tokens"):
        counts = [one[count] for one in progress(events)] + [events[-1]["alignment"][count]]
        assert counts == sorted(counts)
    assert [event for event in events if not tells(event)] == unlike_ids(
        await stream(http, SEARCHES[name], path, seed=SEED), events
    )


def unlike_ids(events: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events as they would be in the answer of these others."""
    head = {key: others[-1][key] for key in ("id", "created")}
    return [event | head for event in events]


@pytest.mark.parametrize("path", BODIES)
async def test_at_most_twice_a_second_and_never_of_nothing_new(http: httpx.AsyncClient, path: str) -> None:
    """The eight steps of four chains take 1.8 s here, the pool 0.4 s."""
    events = await stream(http, chains() | PROGRESS, path)
    told = progress(events)
    times = [one["elapsed_ms"] for one in told]
    assert len(told) == 4
    assert all(later - earlier >= 500 for earlier, later in itertools.pairwise(times))
    states = [{key: count for key, count in one.items() if key != "elapsed_ms"} for one in told]
    assert all(state not in states[:i] for i, state in enumerate(states))
    assert all("text" not in one.get("best", {}) for one in told), "nobody asked for it"
    assert len(progress(await stream(http, best(n=2) | PROGRESS, path))) == 1
    assert not progress(await stream(http, chains(), path))


async def test_a_named_event_where_events_have_names(http: httpx.AsyncClient) -> None:
    body = {"model": "toy", "stream": True, **BODIES[MESSAGES], "alignment": chains() | PROGRESS}
    answer = await http.post(f"http://toy{MESSAGES}", json=body)
    blocks = [block for block in answer.text.split("\n\n") if "progress" in block]
    assert len(blocks) == 4
    assert all(block.startswith("event: alignment.progress\ndata: {") for block in blocks)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert [event["type"] == "alignment.progress" for event in events] == [tells(event) for event in events]


async def test_in_silence_there_are_comments(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer comes after three of them, the second three later."""
    monkeypatch.setattr(response, "KEEP_ALIVE", PAUSE / 4)
    monkeypatch.setattr(response, "PROGRESS_INTERVAL", 0.0)
    body = {"model": "toy", "stream": True, "messages": HI, "seed": 3, "alignment": POOL | PROGRESS}
    answer = await http.post(f"http://toy{CHAT}", json=body)
    kinds = [
        "p" if '"progress"' in event else "c"
        for event in answer.text.split("\n\n")
        if "progress" in event or event == ": keep-alive"
    ]
    assert "".join(kinds).startswith("pcccpccc")


async def test_the_id_is_that_of_the_request(http: httpx.AsyncClient) -> None:
    body = {"model": "toy-best", "messages": HI, "stream": True, "alignment": PROGRESS}
    answer = await http.post(f"http://toy{CHAT}", json=body, headers={"x-request-id": "mine-7"})
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert any(tells(event) for event in events)
    heads = {(event["id"], event["object"], event["model"]) for event in events}
    assert heads == {("chatcmpl-mine-7", "chat.completion.chunk", "toy-best")}
    assert answer.headers["x-request-id"] == "mine-7"


async def test_several_answers_have_one_progress_and_the_best_is_the_first_s(http: httpx.AsyncClient) -> None:
    events = await stream(http, best(n=4) | BEST, n=3)
    assert {one["of"] for one in progress(events)} == {4}
    texts = ["", "", ""]
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
    assert value(texts[0]) == max(map(value, texts))
    for one in progress(events):
        assert "best" not in one or one["best"]["value"] <= value(texts[0])


async def test_several_prompts_have_one_progress_and_no_best(http: httpx.AsyncClient) -> None:
    events = await stream(http, chains(**{"chains": 2}) | PROGRESS, COMPLETIONS, prompt=["assistant: ", "assistant: b"])
    told = progress(events)
    assert len(told) > 2
    assert {one["of"] for one in told} == {2 * 2 * 9}
    assert all("best" not in one for one in told)
    assert sorted(one["done"] for one in told) == [one["done"] for one in told]
    assert told[-1]["done"] > 2 * 9


@pytest.mark.parametrize("strategy", [name for name, row in STRATEGIES.items() if row.streams])
@pytest.mark.parametrize("key", ["progress", "best"])
async def test_what_streams_its_tokens_refuses(client: AsyncOpenAI, strategy: str, key: str) -> None:
    takes = STRATEGIES[strategy].takes
    alignment: dict[str, Any] = {"strategy": strategy, "return": [key]}
    if "direction" in takes or "reward" in takes:
        alignment["weights"] = {"a": 1.0}
    elif "guides" in takes:
        alignment["guides"] = {"arm": 1.0}
    await refused(client, alignment, "alignment.return", f"return {key!r} cannot be honoured by strategy {strategy!r}")


async def test_what_cannot_be_asked_for(client: AsyncOpenAI, raw: httpx.AsyncClient) -> None:
    at = "alignment.return"
    await refused(client, best() | PROGRESS, at, "'progress' needs stream: true")
    await refused(client, best() | {"return": ["best"]}, at, "'progress', which has to be named too")
    body = {"prompt": ["a", "b"], "stream": True, "alignment": best() | BEST}
    answer = await raw.post(COMPLETIONS, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, at)
    assert "2 prompts" in answer.json()["error"]["message"]
    listed = (await raw.get("/v1/alignment")).json()["strategies"]
    for name, row in STRATEGIES.items():
        assert set(listed[name]["return"]) == row.shows | (set() if row.streams else {"best", "progress"})


async def test_the_best_is_what_a_client_would_read(http: httpx.AsyncClient) -> None:
    """Up to a stop string, and without the end of sequence that its tokens have."""
    events = await stream(http, best(n=6) | BEST, stop="bb")
    texts = [one["best"]["text"] for one in progress(events) if "best" in one]
    assert texts
    assert all(set(text) <= {"a", "b"} and "bb" not in text for text in texts)


async def test_progress_counts_for_nothing(http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    """In the metrics and in the log the request is what it is without."""

    async def line(alignment: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
        before, first = counted("qalign", "ok"), visible()
        caplog.clear()
        with caplog.at_level(logging.INFO, "trimtab.request"):
            await stream(http, alignment)
        [record] = [record for record in caplog.records if record.name == "trimtab.request"]
        assert counted("qalign", "ok") == before + 1
        fields = {key: field for key, field in record.fields.items() if key not in ("request_id", "seconds")}  # type: ignore[attr-defined]
        return fields, visible() - first

    def visible() -> float:
        return REGISTRY.get_sample_value("trimtab_tokens_total", {"kind": "visible"}) or 0.0

    assert await line(chains() | BEST) == await line(chains())


async def test_a_reward_that_fails_behind_progress(raw: httpx.AsyncClient) -> None:
    """The status is sent by then: the error is the last event, or a plain answer follows, where that is asked for."""
    failing = {"strategy": "best_of_n", "reward": "nan.a", "params": {"n": 4}}
    events = await stream(raw, failing | PROGRESS)
    assert tells(events[0])
    assert events[-1]["error"]["code"] == "reward_error"
    events = await stream(raw, failing | PROGRESS | {"on_error": "degrade"})
    assert tells(events[0])
    assert events[-1]["alignment"]["outcome"] == "degraded"
    answer = next(i for i, event in enumerate(events) if event["choices"])
    assert not any(tells(event) for event in events[answer:])


# The official clients.


async def test_openai_s_chat_streams(unhurried: AsyncOpenAI) -> None:
    whole = await chat(unhurried, best())
    written = whole.choices[0].message.content
    assert written
    chunks = [chunk async for chunk in await chat(unhurried, best() | BEST, stream=True)]
    assert sum("progress" in (chunk.model_extra or {}).get("alignment", {}) for chunk in chunks) > 1
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == written
    asked: dict[str, Any] = {"model": "toy", "messages": HI, "seed": 3, "extra_body": {"alignment": best() | BEST}}
    async with unhurried.chat.completions.stream(**asked) as events:
        content = [event.delta async for event in events if event.type == "content.delta"]
        snapshot = events.current_completion_snapshot  # the final one is refused to an answer that is cut
    assert "".join(content) == snapshot.choices[0].message.content == written


async def test_openai_s_completion_streams(unhurried: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "toy", "prompt": "assistant: ", "seed": 3}
    whole = await unhurried.completions.create(**asked, extra_body={"alignment": best()})
    assert whole.choices[0].text
    chunks = await unhurried.completions.create(**asked, stream=True, extra_body={"alignment": best() | BEST})
    assert "".join([choice.text async for chunk in chunks for choice in chunk.choices]) == whole.choices[0].text


async def test_responses_refuse_it(unhurried: AsyncOpenAI) -> None:
    """OpenAI's client for JavaScript ends its stream of a response at an event that it does not know."""
    with pytest.raises(openai.BadRequestError) as caught:
        await unhurried.responses.create(model="toy", input="hi", stream=True, extra_body={"alignment": best() | BEST})
    assert caught.value.param == "alignment.return"
    assert RESPONSES in caught.value.message


async def test_anthropic_s_message_streams(app: FastAPI) -> None:
    transport = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://toy")
    claude = anthropic.AsyncAnthropic(base_url="http://toy", api_key="none", http_client=transport)
    asked: dict[str, Any] = {"model": "toy", "messages": HI, "max_tokens": 8}
    body = {"temperature": 0, "alignment": best(n=3)}
    whole = await claude.messages.create(**asked, extra_body=body)
    async with claude.messages.stream(**asked, extra_body=body | {"alignment": best(n=3) | BEST}) as events:
        text = "".join([piece async for piece in events.text_stream])
        final = await events.get_final_message()
    [block] = final.content
    [wanted] = whole.content
    assert text == block.text == wanted.text != ""  # type: ignore[union-attr]
