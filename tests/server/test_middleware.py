"""The middleware between our contract and vLLM's app, on an app of a few lines in its place."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.waiting import until
from trimtab.decoders.protocols import AllAnswer, Split
from trimtab.decoders.report import SearchProgress
from trimtab.runtime.strategy_run import StrategyRun, current_run
from trimtab.runtime.toy_engine import ToyEngine, ToyModel
from trimtab.server.admission import Admission
from trimtab.server.config import Config
from trimtab.server.http import response
from trimtab.server.http.context import PARSED
from trimtab.server.http.middleware import AlignmentMiddleware
from trimtab.server.request.body import parse
from trimtab.server.request.cost import Extent
from trimtab.server.request.messages import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from trimtab.server.scoring import BaseHost, Scoring

CONFIG = Config.model_validate(
    {
        "base": "org/base",
        "guides": {"kind": "org/kind"},
        "objectives": {"warmth": {"guide": "kind"}},
        "presets": {"base-warm": {"weights": {"warmth": 1.0}}},
        "max_body_mib": 0.01,
    }
)
FIELDS = frozenset({"model", "messages", "prompt", "n", "vllm_xargs"})
NOBODY = ToyEngine(ToyModel(tables={}, vocab=(0,), max_tokens=1), start=0)
SCORING = Scoring(config=CONFIG, scorers={}, host=BaseHost(engine=NOBODY, tokenizer=None))
WARM = {"weights": {"warmth": 1.0}}


class Literally:
    """A reader that takes bodies for what they are."""

    paths = generating = frozenset({CHAT, COMPLETIONS, RESPONSES, MESSAGES})
    context = 512

    def fields(self, path: str) -> frozenset[str]:
        return FIELDS

    def parse(self, path: str, document: Mapping[str, Any]) -> Any:
        return document

    def extent(self, path: str, parsed: Any, size: int) -> Extent:
        return Extent(max_tokens=self.context, context=self.context)

    def check_text(self, length: int) -> None:
        raise AssertionError("nobody scores here")

    def longest_answer(self, bound: int | None) -> int:
        raise AssertionError("nobody scores here")

    def split(self, path: str, parsed: Any) -> Split:
        return AllAnswer()

    def split_written(self, document: Mapping[str, Any]) -> Split:
        raise AssertionError("nobody scores here")

    async def render(self, path: str, document: Any) -> list[int]:
        raise AssertionError("nobody instructs the model here")


def seam(app: ASGIApp) -> AlignmentMiddleware:
    return AlignmentMiddleware(app, CONFIG, Literally(), SCORING, Admission(capacity=10**6))


@dataclass
class Fake:
    """Answers with what it is told to, and remembers what it was asked."""

    parts: list[bytes] = field(default_factory=lambda: [b'{"model": "base"}'])
    content: str = "application/json"
    status: int = 200
    work: Callable[[StrategyRun | None], Awaitable[None]] | None = None
    body: Any = None
    run: StrategyRun | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.body = scope.get(PARSED)
        self.run = current_run.get()
        if self.work is not None:
            await self.work(self.run)
        head = [(b"content-type", self.content.encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": head})
        for i, part in enumerate(self.parts):
            await send({"type": "http.response.body", "body": part, "more_body": i + 1 < len(self.parts)})


def client(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(seam(app)), base_url="http://toy")


async def post(app: Fake, body: Any, path: str = CHAT) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with client(app) as http:
        return await http.post(path, content=content, headers={"content-type": "application/json"})


def counted(strategy: str, outcome: str) -> float:
    return REGISTRY.get_sample_value("trimtab_requests_total", {"strategy": strategy, "outcome": outcome}) or 0.0


def events(*data: dict[str, Any] | str) -> list[bytes]:
    return [f"data: {d if isinstance(d, str) else json.dumps(d, separators=(',', ':'))}\n\n".encode() for d in data]


def read(answer: httpx.Response) -> list[Any]:
    """The data of each event."""
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [d if d == "[DONE]" else json.loads(d) for d in data]


STREAM = "text/event-stream; charset=utf-8"


# On the way in.


async def test_a_body_without_a_wish_passes_as_it_came() -> None:
    app = Fake()
    await post(app, b'{"model" : "base",  "n": 1, "messages": [] }')
    assert app.body == {"model": "base", "n": 1, "messages": []}
    assert app.run is not None
    assert app.run.native


async def test_alignment_is_taken_out_and_left_where_the_engine_finds_it() -> None:
    app = Fake()
    await post(app, {"model": "base", "messages": [], "alignment": WARM})
    assert app.body == {"model": "base", "messages": []}
    assert app.run is not None
    assert dict(app.run.strategy.mixture) == {"base": 1.0, "kind": 1.0}
    assert current_run.get() is None


async def test_a_preset_is_the_base_with_a_wish() -> None:
    app = Fake()
    answer = await post(app, {"model": "base-warm", "messages": []})
    assert app.body == {"model": "base", "messages": []}
    assert app.run is not None
    assert answer.json()["model"] == "base-warm"
    assert answer.json()["alignment"]["weights"] == {"warmth": 1.0}


async def test_a_request_goes_over_its_preset() -> None:
    answer = await post(Fake(), {"model": "base-warm", "alignment": {"weights": {"warmth": -2}}})
    assert answer.json()["alignment"]["guides"] == {"base": 1.0, "kind": -2.0}


async def test_no_model_is_the_base() -> None:
    app = Fake()
    assert (await post(app, {"messages": []})).status_code == 200
    assert app.body == {"messages": []}


@pytest.mark.parametrize(
    ("body", "status", "param", "code", "message"),
    [
        (b"", 400, None, "invalid_json", "the request body is not valid JSON: Expecting value: line 1 column 1 (char "),
        (b"{", 400, None, "invalid_json", "the request body is not valid JSON: Expecting property name enclosed in do"),
        (b'{"n": NaN}', 400, None, "invalid_json", "the request body is not valid JSON: NaN is not a JSON number"),
        (b'{"n": -Infinity}', 400, None, "invalid_json", "the request body is not valid JSON: -Infinity is not a JSON"),
        (b'{"n": "\xff\xfe"}', 400, None, "invalid_json", "the request body is not valid JSON: 'utf-8' codec can't de"),
        (b'{"messages": "\\ud800"}', 400, "messages", "invalid_json", "the request body holds half of a"),
        (b'{"alignment": {"\\udfff": 1}}', 400, "alignment.\\udfff", "invalid_json", "the request body holds half"),
        (b"[]", 400, None, "invalid_json", "the request body must be a JSON object"),
        (b"null", 400, None, "invalid_json", "the request body must be a JSON object"),
        (b'{"alignment": ' + b"[" * 4000 + b"]" * 4000 + b"}", 400, None, "invalid_json",
         "the request body is nested too deeply"),
        (b'{"messages": "' + b"x" * 20_000 + b'"}', 413, None, "request_too_large",
         "the request body is larger than 0.01 MiB"),
        (b'{"extra_body": {"alignment": {}}}', 400, "extra_body", "unknown_parameter",
         "extra_body is an argument of OpenAI's Python client, not a field of the request: put what is in it at the"),
        (b'{"model": "base-wram"}', 404, "model", "model_not_found",
         "unknown model 'base-wram'; valid: base, base-warm. Did you mean 'base-warm'?"),
        (b'{"vllm_xargs": {"trimtab": "AAAA"}}', 400, "vllm_xargs.trimtab", "invalid_value",
         "vllm_xargs.trimtab is reserved: use alignment"),
        (b'{"alignment": null}', 400, "alignment", "invalid_value", "alignment must be an object with keys among"),
        (b'{"alignment": {}, "alignment": {}}', 400, "alignment", "duplicate_key", "'alignment' is given twice"),
        (b'{"alignment": {"strategy": "plain", "strategy": "mod"}}', 400, "alignment.strategy", "duplicate_key",
         "'strategy' is given twice"),
        (b'{"alignment": {"weights": {"warmth": 1, "x": 2, "warmth": 3}}}', 400, "alignment.weights.warmth",
         "duplicate_key", "'warmth' is given twice"),
        *[
            (json.dumps({name: True, "alignment": WARM}).encode(), 400, name, "unsupported_pair",
             f"{name} cannot be combined with strategy 'guided'")
            for name in ("use_beam_search", "prompt_embeds", "background", "kv_transfer_params", "ec_transfer_params")
        ],
    ],
)  # fmt: skip
async def test_refusals_reach_nobody_behind(body: bytes, status: int, param: str, code: str, message: str) -> None:
    before, app = counted("none", "invalid"), Fake()
    answer = await post(app, body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert error["message"].startswith(message)
    assert app.body is None
    assert counted("none", "invalid") == before + 1


async def test_a_surrogate_pair_is_a_character() -> None:
    app = Fake()
    assert (await post(app, b'{"messages": "\\ud83d\\ude00", "alignment": {}}')).status_code == 200
    assert app.body == {"messages": "\N{GRINNING FACE}"}


def test_many_keys_of_which_one_twice() -> None:
    """Counting is linear: a quadratic count of 2e5 keys would take hours."""
    keys = ",".join(f'"k{i}": 1' for i in range(200_000))
    document = parse(f'{{"metadata": {{{keys}, "k7": 2}}, "alignment": {{}}}}'.encode())
    assert document["metadata"]["k7"] == 2


async def test_a_depth_that_only_vllm_cannot_read_is_not_a_500() -> None:
    for depth in range(900, 1000, 5):
        body = b'{"alignment": {}, "n": ' + b"[" * depth + b"]" * depth + b"}"
        app = Fake()
        answer = await post(app, body)
        assert answer.status_code in (200, 400), depth


async def test_other_paths_and_methods_pass_by() -> None:
    app = Fake(parts=[b"[]"])
    async with client(app) as http:
        assert (await http.get(CHAT)).text == "[]"
        assert (await http.post("/tokenize", content=b'{"alignment": 1}')).text == "[]"


async def test_a_client_that_leaves_while_it_sends_is_counted_and_nothing_runs() -> None:
    before, app = counted("none", "client_abort"), Fake()
    messages: list[Message] = [
        {"type": "http.request", "body": b'{"mess', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        raise AssertionError("nobody is there to answer")

    await seam(app)({"type": "http", "method": "POST", "path": CHAT, "headers": []}, receive, send)
    assert app.body is None
    assert counted("none", "client_abort") == before + 1


# On the way out.


def spend(sampled: int, **report: Any) -> Callable[[StrategyRun | None], Awaitable[None]]:
    async def work(run: StrategyRun | None) -> None:
        assert run is not None
        run.usage.sampled += sampled
        if report:
            run.reports[0] = report

    return work


async def test_an_answer_says_what_ran_and_what_it_took() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 1}}
    app = Fake(
        parts=[json.dumps({"model": "base", "usage": usage}).encode()], work=spend(40, trace={"kl_exact": [0.5]})
    )
    answer = await post(app, {"alignment": WARM, "weird": 1})
    assert answer.headers["x-alignment-strategy"] == "guided"
    assert answer.headers["x-alignment-sampled-tokens"] == "40"
    assert answer.headers["content-length"] == str(len(answer.content))
    body = answer.json()
    assert body["usage"]["completion_tokens"] == 4
    assert body["usage"]["completion_tokens_details"] == {
        "reasoning_tokens": 1, "sampled_tokens": 40, "scored_tokens": 0,
    }  # fmt: skip
    assert body["alignment"] == {
        "strategy": "guided",
        "params": {"plausibility": 0.0},
        "weights": {"warmth": 1.0},
        "guides": {"base": 1.0, "kind": 1.0},
        "streaming": "native",
        "sampled_tokens": 40,
        "scored_tokens": 0,
        "choices": [{"index": 0, "trace": {"kl_exact": [0.5]}}],
        "warnings": ["unknown fields were ignored: weird"],
    }


async def test_a_plain_answer_says_so() -> None:
    answer = await post(Fake(parts=[b'{"usage": {"completion_tokens": 4}}']), {})
    assert answer.headers["x-alignment-strategy"] == "plain"
    assert answer.json()["alignment"] == {"strategy": "plain", "sampled_tokens": 4, "scored_tokens": 0}


async def test_an_answer_in_pieces_is_amended_whole() -> None:
    answer = await post(Fake(parts=[b'{"model"', b': "base"', b"}"]), {"model": "base-warm"})
    assert answer.json()["model"] == "base-warm"


async def test_an_error_passes_and_is_counted() -> None:
    for status, outcome in ((400, "invalid"), (404, "invalid"), (500, "engine_error"), (503, "engine_error")):
        before = counted("guided", outcome)
        answer = await post(Fake(parts=[b'{"error": {}}'], status=status), {"alignment": WARM})
        assert (answer.status_code, answer.json()) == (status, {"error": {}})
        assert counted("guided", outcome) == before + 1


async def test_the_null_of_a_client_gone_is_no_answer() -> None:
    before = counted("guided", "client_abort")
    await post(Fake(parts=[b"null"]), {"alignment": WARM})
    assert counted("guided", "client_abort") == before + 1


def chunk(i: int = 0, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"model": "base", "choices": [{"index": i, "delta": {"content": "x"}, "finish_reason": finish}], **more}


async def test_a_stream_tells_on_its_last_chunk() -> None:
    before = counted("guided", "ok")
    parts = events(chunk(), chunk(finish="stop"), "[DONE]")
    answer = await post(Fake(parts=parts, content=STREAM, work=spend(2)), {"model": "base-warm"})
    first, last, done = read(answer)
    assert "alignment" not in first
    assert (first["model"], last["model"], done) == ("base-warm", "base-warm", "[DONE]")
    assert last["alignment"]["sampled_tokens"] == 2
    assert last["choices"] == chunk(finish="stop")["choices"]
    assert counted("guided", "ok") == before + 1


async def test_a_usage_chunk_is_the_last() -> None:
    usage = {"model": "base", "choices": [], "usage": {"completion_tokens": 2}}
    answer = await post(Fake(parts=events(chunk(finish="stop"), usage, "[DONE]"), content=STREAM), {"alignment": WARM})
    finish, last, _ = read(answer)
    assert "alignment" not in finish
    assert last["alignment"]["strategy"] == "guided"
    assert last["usage"]["completion_tokens_details"] == {"sampled_tokens": 0, "scored_tokens": 0}


async def test_several_choices_end_one_after_the_other() -> None:
    parts = events(chunk(0, "stop"), chunk(1), chunk(1, "stop"), "[DONE]")
    answer = await post(Fake(parts=parts, content=STREAM), {"alignment": WARM})
    *before, last, _ = read(answer)
    assert [c["choices"][0]["index"] for c in before] == [0, 1]
    assert all("alignment" not in c for c in before)
    assert "alignment" in last


async def test_text_that_looks_like_an_end_does_not_wait() -> None:
    """Only chunks that may be the last are held back."""
    sent: list[bytes] = []
    tricky = chunk() | {"choices": [{"index": 0, "delta": {"content": '"finish_reason":"stop" "choices":[]'}}]}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", STREAM.encode())]})
        for part, held in zip(events(tricky, chunk(), chunk(finish="stop"), "[DONE]"), (0, 0, 1, 0), strict=True):
            count = len(sent)
            await send({"type": "http.response.body", "body": part, "more_body": b"DONE" not in part})
            assert (len(sent) == count) == bool(held)

    async def receive() -> Message:
        return {"type": "http.request", "body": b'{"alignment": {}}', "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            sent.append(message["body"])

    await seam(app)({"type": "http", "method": "POST", "path": CHAT, "headers": []}, receive, send)
    assert sent[-1].endswith(b"data: [DONE]\n\n")


async def test_an_error_in_a_stream_passes_at_once_after_what_was_held() -> None:
    before = counted("guided", "invalid")
    error = {"error": {"message": "m", "code": 400}}
    broken = f"data: {json.dumps(error)}\n\n".encode()
    parts = [*events(chunk(0, "stop")), broken, *events("[DONE]")]
    answer = await post(Fake(parts=parts, content=STREAM), {"alignment": WARM})
    finish, failed, done = read(answer)
    assert (finish["choices"][0]["finish_reason"], failed, done) == ("stop", error, "[DONE]")
    assert "alignment" not in answer.text
    assert counted("guided", "invalid") == before + 1


async def test_keep_alive_comments_pass() -> None:
    answer = await post(Fake(parts=[b": ping\n\n", *events(chunk(finish="stop"), "[DONE]")], content=STREAM), {})
    assert answer.text.startswith(": ping\n\n")


async def test_a_slow_reader_gets_the_newest_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it keeps waiting is one event, however much is reported meanwhile; and no number is infinite."""
    monkeypatch.setattr(response, "PROGRESS_INTERVAL", 0.0)
    sent: list[bytes] = []
    reading = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        run = current_run.get()
        assert run is not None
        assert run.progress is not None
        run.choices = 1
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", STREAM.encode())]})
        for done in range(50):
            run.progress.record(0, SearchProgress(stage="draw", done=done, of=50, best=(1,), value=math.inf))
            await asyncio.sleep(0)
        reading.set()
        await until(lambda: len(sent) == 2)
        for part in events(chunk(finish="stop"), "[DONE]"):
            await send({"type": "http.response.body", "body": part, "more_body": b"DONE" not in part})

    async def receive() -> Message:
        alignment = {"strategy": "mbr", "return": ["progress"]}
        return {"type": "http.request", "body": json.dumps({"alignment": alignment, "stream": True}).encode()}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await reading.wait()
            sent.append(message["body"])

    await seam(app)({"type": "http", "method": "POST", "path": CHAT, "headers": []}, receive, send)
    *shown, _, done = [part.removeprefix(b"data: ") for part in sent]
    stale, newest = (json.loads(part)["alignment"]["progress"] for part in shown)
    assert stale["done"] < newest["done"] == 49
    assert stale["best"] == newest["best"] == {"value": None}
    assert done == b"[DONE]\n\n"


async def test_the_events_of_responses() -> None:
    inner = {"model": "base", "usage": {"output_tokens": 2}}
    parts = [
        f"event: {kind}\ndata: {json.dumps({'type': kind, 'response': inner})}\n\n".encode()
        for kind in ("response.created", "response.in_progress", "response.completed")
    ]
    answer = await post(Fake(parts=parts, content=STREAM), {"model": "base-warm"}, RESPONSES)
    created, progress, completed = (event["response"] for event in read(answer))
    assert {created["model"], progress["model"], completed["model"]} == {"base-warm"}
    assert "alignment" not in created
    assert completed["alignment"]["strategy"] == "guided"
    assert answer.text.count("event: ") == 3


async def test_the_events_of_messages() -> None:
    start = {"type": "message_start", "message": {"model": "base"}}
    parts = [
        f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode()
        for data in (start, {"type": "content_block_delta"}, {"type": "message_stop"})
    ]
    answer = await post(Fake(parts=parts, content=STREAM), {"model": "base-warm"}, MESSAGES)
    started, delta, stopped = read(answer)
    assert started["message"]["model"] == "base-warm"
    assert delta == {"type": "content_block_delta"}
    assert stopped["alignment"]["weights"] == {"warmth": 1.0}


async def test_a_client_that_leaves_a_stream_is_counted_once() -> None:
    before = counted("guided", "client_abort")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", STREAM.encode())]})
        await send({"type": "http.response.body", "body": events(chunk())[0], "more_body": True})

    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps({"alignment": WARM}).encode(), "more_body": False}

    async def send(message: Message) -> None:
        pass

    await seam(app)({"type": "http", "method": "POST", "path": CHAT, "headers": []}, receive, send)
    assert counted("guided", "client_abort") == before + 1


async def test_what_the_app_does_not_catch_is_counted_and_goes_on() -> None:
    before = counted("guided", "engine_error")

    async def work(run: StrategyRun | None) -> None:
        raise RuntimeError("dead")

    with pytest.raises(RuntimeError, match="dead"):
        await post(Fake(work=work), {"alignment": WARM})
    assert counted("guided", "engine_error") == before + 1
    assert current_run.get() is None


async def test_requests_side_by_side_keep_their_own_runs() -> None:

    runs: list[StrategyRun | None] = []
    both = asyncio.Barrier(2)

    async def work(run: StrategyRun | None) -> None:
        await both.wait()
        runs.append(current_run.get())
        assert current_run.get() is run

    await asyncio.gather(*(post(Fake(work=work), {"alignment": WARM}) for _ in range(2)))
    assert runs[0] is not runs[1]
