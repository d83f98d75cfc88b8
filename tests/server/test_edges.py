"""What browsers, proxies and bad requests get, and what of the server nobody gets: on the toy engine."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY
from pydantic import BaseModel, ValidationError
from starlette.types import Message, Receive, Scope, Send

from tests.server import toy_server
from trimtab.decoders import STRATEGIES, StrategyEntry
from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import Chunk
from trimtab.runtime.toy_engine import ToyEngine
from trimtab.server import json_log
from trimtab.server.config import Config, ConfigError
from trimtab.server.errors import ApiError, encode_json, hide_internals, parse_error, to_api_error
from trimtab.server.http import app as http_app
from trimtab.server.http.errors_and_ids import RequestIdAndErrorMiddleware
from trimtab.server.http.request_log import write_line
from trimtab.server.http.vllm_app import argv
from trimtab.server.json_log import HIDDEN, JsonFormatter, format_error, without_secrets
from trimtab.server.request import tracing

ORIGIN = {"origin": "https://app.example.org"}
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
HI: list[Any] = [{"role": "user", "content": "hi"}]
KEY = "a-key-of-the-test"
PROGRESS: dict[str, Any] = {
    "messages": HI,
    "stream": True,
    "alignment": {"strategy": "mbr", "params": {"n": 2}, "return": ["progress"]},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = toy_server.checkpoint(tmp_path_factory.mktemp("edges"))
    return Config.model_validate(
        {
            "base": str(folder),
            "name": "toy",
            "guides": {"arm": str(folder)},
            "objectives": {"good": {"guide": "arm"}},
            "engine": {"dtype": "float32", "max_model_len": 256, "enforce_eager": True},
            "api_keys": [KEY],
            "allowed_origins": [ORIGIN["origin"]],
        }
    )


@pytest.fixture(scope="module")
def toy(config: Config) -> ToyEngine:
    return toy_server.toy_engine(Path(config.base))


@pytest.fixture(scope="module")
async def app(config: Config, toy: ToyEngine) -> FastAPI:
    return await toy_server.serve(config, toy)


def http(app: Any, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toy", headers=headers)


@pytest.fixture(scope="module")
async def raw(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with http(app, authorization=f"Bearer {KEY}") as client:
        yield client


# Browsers.


async def test_a_browser_may_ask_and_read_every_answer(app: FastAPI, raw: httpx.AsyncClient) -> None:
    asked: list[tuple[int, httpx.Response]] = [
        (200, await raw.post(CHAT, json={"messages": HI}, headers=ORIGIN)),
        (200, await raw.post(CHAT, json={"messages": HI, "stream": True}, headers=ORIGIN)),
        (200, await raw.post(CHAT, json=PROGRESS, headers=ORIGIN)),
        (400, await raw.post(CHAT, content=b"{", headers=ORIGIN)),
        (400, await raw.post(CHAT, json={"messages": HI, "alignment": {"strategy": "x"}}, headers=ORIGIN)),
        (404, await raw.get("/v1/nothing", headers=ORIGIN)),
        (404, await raw.post(CHAT, json={"messages": HI, "model": "x"}, headers=ORIGIN)),
        (405, await raw.get(CHAT, headers=ORIGIN)),
        (413, await raw.post(CHAT, content=b" " * 5 * 2**20, headers=ORIGIN)),
        (415, await raw.post(CHAT, content=b"x", headers=ORIGIN | {"content-encoding": "br"})),
    ]
    async with http(app) as nobody:
        asked.append((401, await nobody.post(CHAT, json={"messages": HI}, headers=ORIGIN)))
        asked.append((200, await nobody.get("/health", headers=ORIGIN)))
    assert sum(b'"progress":{' in answer.content for _, answer in asked) == 1
    for status, answer in asked:
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == ORIGIN["origin"], status
        exposed = set(answer.headers["access-control-expose-headers"].split(", "))
        assert exposed >= {"x-request-id", "retry-after", "x-alignment-strategy", "x-alignment-sampled-tokens"}


async def test_a_full_server_tells_a_browser(config: Config, toy: ToyEngine) -> None:
    full = config.model_copy(update={"limits": config.limits.model_copy(update={"max_tokens": 1})})
    served = toy_server.site(full, toy)
    app = await toy_server.app(served)
    served.admission.closing = True
    async with http(app, authorization=f"Bearer {KEY}") as client:
        answer = await client.post(CHAT, json={"messages": HI}, headers=ORIGIN)
    assert answer.status_code == 503
    assert answer.headers["access-control-allow-origin"] == ORIGIN["origin"]


async def test_a_preflight_needs_no_key(app: FastAPI) -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    async with http(app) as client:
        answer = await client.options(CHAT, headers=ORIGIN | asks)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN["origin"]
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert "authorization" in answer.headers["access-control-allow-headers"].lower()
        other = await client.options(CHAT, headers=asks | {"origin": "https://elsewhere.example"})
        assert "access-control-allow-origin" not in other.headers
        assert (other.status_code, other.json()["error"]["code"]) == (400, "origin_not_allowed")


async def test_without_origins_no_browser_may(config: Config, toy: ToyEngine) -> None:
    closed = await toy_server.serve(config.model_copy(update={"allowed_origins": (), "api_keys": ()}), toy)
    async with http(closed) as client:
        answer = await client.post(CHAT, json={"messages": HI}, headers=ORIGIN)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("origin", ["app.example.org", "https://app.example.org/", "https://a b", "", "null"])
def test_what_is_no_origin_is_refused(config: Config, origin: str) -> None:
    with pytest.raises(ValidationError, match="an origin is scheme://host"):
        Config.model_validate({"base": config.base, "allowed_origins": [origin]})


@pytest.mark.parametrize("key", ["allowed_origins", "allow_credentials", "allowed_methods", "allowed_headers"])
def test_the_engine_s_spelling_of_cors_is_refused(config: Config, key: str) -> None:
    asked = config.model_copy(update={"engine": {**config.engine, key: ["*"]}})
    with pytest.raises(ConfigError, match=rf"engine\.{key}: .* allowed_origins, at the top level"):
        argv(asked)


# Proxies.


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
async def test_no_proxy_holds_a_stream_back(raw: httpx.AsyncClient, path: str) -> None:
    body = {"model": "toy", "stream": True, "max_tokens": 5, "messages": HI, "input": "hi"}
    body.pop("messages" if path == RESPONSES else "input")
    answer = await raw.post(path, json=body)
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")


async def test_every_get_has_a_head_and_every_405_says_what_is_allowed(app: FastAPI, raw: httpx.AsyncClient) -> None:
    for route in app.routes:
        methods, path = getattr(route, "methods", None) or set(), str(getattr(route, "path", ""))
        if not methods or "{" in path or path == "/metrics":  # which a mounted app answers, whatever the method
            continue
        if "GET" in methods:
            whole, head = await raw.get(path), await raw.head(path)
            assert (head.status_code, head.content) == (whole.status_code, b""), path
        refused = await raw.request("PUT", path)
        assert refused.status_code == 405
        assert set(refused.headers["allow"].split(", ")) >= methods


async def test_no_trailing_slash_leads_away(raw: httpx.AsyncClient) -> None:
    for path in ("/health/", "/v1/chat/completions/", "/v1/alignment/"):
        for method in ("GET", "POST"):
            answer = await raw.request(method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
            assert "location" not in answer.headers


POSTS = (CHAT, "/v1/completions", RESPONSES, MESSAGES, "/v1/messages/count_tokens", "/tokenize", "/detokenize",
         "/v1/alignment/score", "/v1/alignment/infer")  # fmt: skip


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "Gzip, identity"])
async def test_a_compressed_body_is_refused_as_such(raw: httpx.AsyncClient, path: str, encoding: str) -> None:
    headers = {"content-encoding": encoding, "content-type": "application/json"}
    answer = await raw.post(path, content=b"\x1f\x8b", headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (415, "content-encoding")
    assert error["code"] == "unsupported_content_encoding"


BODIES: dict[str, bytes] = {
    "empty": b"", "array": b"[]", "array-of-one": b"[1]", "number": b"1", "text": b'"x"', "null": b"null", "nul": b"\0",
    "half-utf-8": b'{"model": "\xc3', "latin-1": b'{"model": "\xe9"}', "utf-16": '{"model": "x"}'.encode("utf-16"),
    "bom": b"\xef\xbb\xbf{}", "broken": b'{"a": ', "object": b"{}", "nulls": b'{"messages": null, "prompt": null, '
    b'"input": null, "tokens": null, "model": null}', "objects": b'{"messages": {}, "prompt": {}, "input": {}, '
    b'"tokens": {}, "responses": {}}', "numbers": b'{"messages": 1, "prompt": 1, "input": 1, "tokens": 1}',
    "large": b'{"tokens": [1e400], "max_tokens": 1e400, "prompt": [1e400], "messages": [1e400], "input": 1e400}',
}  # fmt: skip


@pytest.mark.parametrize("path", [*POSTS, "/admin/reload", "/v1/responses/x/cancel", "/health", "/nothing"])
@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data", ""])
async def test_no_body_is_answered_with_a_fault(raw: httpx.AsyncClient, path: str, content_type: str) -> None:
    for name, body in BODIES.items():
        answer = await raw.post(path, content=body, headers={"content-type": content_type} if content_type else {})
        assert 400 <= answer.status_code < 500, (name, answer.text)
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert hide_internals(error["message"]) == error["message"] or error["code"] == "invalid_json", name
        assert "validation error" not in error["message"]
        assert "{'" not in error["message"]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"), (5, "messages"), ({}, "messages"), ("hi", "messages"), ([1], "messages.0"),
        ([*HI, {"role": "assistant", "content": {"$ref": "#"}}], "messages.1.content"),
        ([{"role": "user", "content": 1}], "messages.0.content"),
        ([{"role": "assistant", "tool_calls": 5}], "messages.0.tool_calls"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_messages_of_no_shape_are_refused_by_name(
    raw: httpx.AsyncClient, path: str, messages: Any, param: str
) -> None:
    answered = await raw.post(path, json={"model": "toy", "max_tokens": 5, "messages": messages})
    assert (answered.status_code, answered.json()["error"]["param"]) == (400, param)


class RefusingStrategy:
    """Refuses, or breaks, while vLLM's app streams what it answers."""

    work = Plain().work

    def __init__(self, *, fault: bool) -> None:
        self.fault = fault

    async def __call__(self, *_: Any, **__: Any) -> AsyncGenerator[Chunk, None]:
        if self.fault:
            raise RuntimeError("words-of-the-inside")
        raise ValueError("n=3 must divide 4")
        yield


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", RESPONSES, MESSAGES])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", [False, True])
async def test_a_strategy_s_refusal_has_its_own_status_on_every_path(
    raw: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str, stream: bool, fault: bool
) -> None:
    row = StrategyEntry(target=f"{__name__}:RefusingStrategy", draws="stream", example={}, neutral=None)
    monkeypatch.setitem(STRATEGIES, "refusing", row)
    named = {RESPONSES: "input", "/v1/completions": "prompt"}.get(path, "messages")
    asked = {
        named: HI if named == "messages" else "hi",
        "alignment": {"strategy": "refusing", "params": {"fault": fault}},
    }
    answered = await raw.post(path, json={"model": "toy", "max_tokens": 5, "stream": stream, **asked})
    assert "words-of-the-inside" not in answered.text
    if answered.status_code == 200:  # Responses and Messages begin to stream before there is anything
        assert stream
        error = json.loads(answered.text.split("data: ")[-1])["error"]
        assert "event: error\ndata: " in answered.text
    else:
        assert answered.status_code == (500 if fault else 400)
        error = answered.json()["error"]
    assert error["message"] == ("internal server error" if fault else "n=3 must divide 4")


@pytest.mark.parametrize("fault", [ValueError, TypeError, OverflowError])
async def test_a_fault_of_our_own_endpoints_is_no_client_s(
    raw: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, fault: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise fault("float() argument must be a string") from None

    monkeypatch.setattr(http_app, "describe_server", fail)
    answer = await raw.get("/v1/alignment")
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "internal server error")


# Faults inside.


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("password"), KeyError("password"), TypeError("zip() argument 2 is longer than argument 1"),
        IndexError("list index out of range"), UnicodeDecodeError("utf-8", b"password", 0, 1, "x"),
        ValueError("zip() argument 2 is longer than argument 1"), OSError(2, "No such file", "/etc/password"),
    ],
)  # fmt: skip
def test_what_nobody_wrote_for_a_client_is_not_shown_to_one(error: Exception) -> None:
    assert (to_api_error(error).status, to_api_error(error).message) == (500, "internal server error")


def test_only_a_raised_message_is_written_for_a_client() -> None:
    class Model(BaseModel):
        a: int

    def fail_zip() -> None:
        list(zip([1], [1, 2], strict=True))

    def fail_pydantic() -> None:
        Model.model_validate({"a": "password"})

    def fail_numpy() -> None:
        np.zeros(3) + np.zeros(4)

    def fail_json() -> None:
        json.loads("password")

    def refuse() -> None:
        raise ValueError("n=3 must divide 4")

    for fail in (fail_zip, fail_pydantic, fail_numpy, fail_json):
        with pytest.raises(ValueError, match=r".") as caught:
            fail()
        assert to_api_error(caught.value).status == 500, fail
    with pytest.raises(ValueError, match="divide") as caught:
        refuse()
    assert (to_api_error(caught.value).status, to_api_error(caught.value).message) == (400, "n=3 must divide 4")


@pytest.mark.parametrize(
    ("vllms", "shown"),
    [
        ("'NoneType' object is not iterable", "the request cannot be carried out as it is written"),
        ("1 validation error for ChatCompletionRequest\nmax_tokens\n  Input should be greater than 0 "
         "[type=greater_than, input_value=-1, input_type=int]\n    For further information visit https://errors.pydantic.dev/2/v/x",
         "max_tokens: input should be greater than 0"),
        ("2 validation errors for ValidatorIterator\n0.ChatCompletionContentPartTextParam\n  Input should be a valid "
         "dictionary [type=dict_type, input_value='x', input_type=str]\n", "input should be an object"),
        ("no file /work/models/base/x.jinja here", "no file <path> here"),
        ("ask /v1/chat/completions instead", "ask /v1/chat/completions instead"),
        ("temperature must not be negative (parameter=temperature, value=-1.0)", "temperature must not be negative"),
        ("<class 'int'> is no list", "the request cannot be carried out as it is written"),
    ],
)  # fmt: skip
def test_vllm_s_messages_lose_python_s_words(vllms: str, shown: str) -> None:
    error = parse_error(json.dumps({"error": {"message": vllms, "code": 400}}).encode())
    assert error is not None
    assert error.message == shown


async def answer(*parts: Any, status: int = 200, content: str = "application/json", **more: Any) -> httpx.Response:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content.encode())]})
        for i, part in enumerate(parts):
            await send({"type": "http.response.body", "body": part, "more_body": i + 1 < len(parts)})

    async with http(RequestIdAndErrorMiddleware(app)) as client:
        return await client.request(**{"method": "GET", "url": "/", **more})


async def test_what_vllm_says_of_a_fault_stays_inside() -> None:
    fault = {"error": {"message": "CUDA out of memory at /work/x", "type": "InternalServerError", "code": 500}}
    whole = await answer(json.dumps(fault).encode(), status=500)
    event = b"data: " + json.dumps(fault).encode() + b"\n\n"
    first = await answer(event, content="text/event-stream")
    later = await answer(b"data: {}\n\n", event, b"data: [DONE]\n\n", content="text/event-stream")
    named = await answer(b"event: a\ndata: {}\n\n", b"event: error\n" + event, content="text/event-stream")
    assert (whole.status_code, first.status_code, later.status_code) == (500, 500, 200)
    for shown in (whole, first, later, named):
        assert "CUDA" not in shown.text
        assert "internal server error" in shown.text
        assert json.dumps(shown.headers["x-request-id"]) in shown.text
    assert "event: error\ndata: " in named.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [1, -float("inf")]}])
def test_json_has_no_nan(value: Any) -> None:
    with pytest.raises(ApiError) as caught:
        encode_json(value)
    assert (caught.value.status, caught.value.code) == (500, "internal_error")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_report_that_is_not_finite_is_a_fault(
    raw: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    from trimtab.server.http.context import RequestContext

    monkeypatch.setattr(RequestContext, "alignment_object", lambda *_: {"kl": float("nan")})
    answered = await raw.post(CHAT, json={"messages": HI, "stream": stream})
    assert "NaN" not in answered.text
    if stream:
        assert json.loads(answered.text.split("data: ")[-1])["error"]["code"] == "internal_error"
    else:
        assert (answered.status_code, answered.json()["error"]["code"]) == (500, "internal_error")


async def test_a_body_that_does_not_end_is_a_408() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass

    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
    async with asyncio.timeout(5):
        await RequestIdAndErrorMiddleware(app, body_s=0.2)(scope, receive, send)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["error"]["code"] == "request_timeout"


@pytest.mark.parametrize(("sent", "taken"), [("abc-1", True), ("a b", False), ("x outcome=ok", False), ("é", False)])
async def test_a_request_id_is_one_word(sent: str, taken: bool) -> None:
    shown = await answer(b"{}", headers={"x-request-id": sent.encode()})
    assert (shown.headers["x-request-id"] == sent) is taken


# What nobody reads in a log, a metric or a trace.


def test_a_configuration_is_shown_without_secrets(config: Config) -> None:
    whole = Config.model_validate(
        {
            "base": config.base,
            "api_keys": ["secret-01"],
            "admin_keys": ["secret-2"],
            "otlp_endpoint": "https://user:secret-3@traces.example/v1?token=secret-4",
            "engine": {"hf_token": "secret-5", "max_num_batched_tokens": 7, "model_loader_extra_config":
                       {"aws_secret_access_key": "secret-6", "nested": [{"apiKey": "secret-7"}]},
                       "otlp_traces_endpoint": "http://secret-8@x/", "tokenizer": "shown"},
            "rewards": {"judge": {"kind": "judge", "endpoint": "http://u:secret-9@h/v1", "api_key_env": "SHOWN_NAME",
                                  "headers": {"x-any": "secret-10"}, "password": "secret-11",
                                  "authorization": "Bearer secret-12-long"}},
            "trusted_headers": ["x-session-id"], "caller_header": "x-consumer",
        }
    )  # fmt: skip
    shown = json.dumps(without_secrets(whole))
    assert not re.findall(r"secret-\d+", shown)
    for text in ("SHOWN_NAME", "x-session-id", "x-consumer", '"tokenizer": "shown"', '"max_num_batched_tokens": 7'):
        assert text in shown
    assert HIDDEN in shown
    assert "secret-01" not in repr(whole)


def test_ours_are_written_whatever_becomes_of_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    loggers = [logging.getLogger(name) for name in ("", *json_log.LOGGERS)]
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    words = "words-of-the-client"
    factory, stream = logging.getLogRecordFactory(), io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(json_log, "_factories", [])
    try:
        json_log.configure_logging("json")
        logging.getLogger().setLevel(logging.CRITICAL)  # as vLLM's app does by an import
        for handler in logging.getLogger().handlers:
            handler.setLevel(logging.CRITICAL)
        logging.getLogger("trimtab.request").disabled = True  # as a dictConfig does
        json_log.configure_logging("json")
        write_line("id", CHAT, {"strategy": "plain", "seconds": float("nan")})
        try:
            raise RuntimeError("it broke") from ValueError(words)
        except RuntimeError:
            logging.getLogger("trimtab").exception("failed")
        try:
            raise ApiError(words)
        except ApiError as error:
            logging.getLogger("trimtab.x").exception("refused: %s", error)
    finally:
        logging.setLogRecordFactory(factory)
        for logger, level, handlers, propagate in before:
            logger.setLevel(level)
            logger.handlers, logger.propagate = handlers, propagate
    first, second, third = map(json.loads, stream.getvalue().splitlines())
    assert (first["request_id"], first["seconds"]) == ("id", "nan")
    assert "RuntimeError: it broke" in second["exception"]
    assert "ValueError" in second["exception"]
    assert third["message"] == "refused: ApiError ApiError"
    assert words not in stream.getvalue()


def test_a_cause_that_is_its_own_ends() -> None:
    error = RuntimeError("x")
    error.__cause__ = error
    assert format_error(error) == "RuntimeError: x"
    record = logging.makeLogRecord({"msg": "x", "exc_info": (RuntimeError, error, None)})
    assert json.loads(JsonFormatter().format(record))


HUGE = (2**63, -(2**63) - 1, 10**4000, 1e308, 2**63 - 1)


@pytest.mark.parametrize("value", HUGE, ids=range(len(HUGE)))
@pytest.mark.parametrize("field", ["seed", "max_tokens", "n", "temperature", "top_p"])
def test_any_number_of_a_request_can_be_exported(monkeypatch: pytest.MonkeyPatch, field: str, value: float) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "tracer", provider.get_tracer("test"))
    scope = {"type": "http", "headers": [(b"baggage", b"x=" + b"y" * 9000)]}
    with tracing.span_request(scope, CHAT, "toy", {field: value}):
        pass
    assert encode_spans(exporter.get_finished_spans())


async def test_no_label_of_a_metric_is_a_client_s(raw: httpx.AsyncClient) -> None:
    secret = "words-of-a-client"
    bodies: list[dict[str, Any]] = [
        {"messages": HI, "model": secret}, {"messages": HI, secret: 1}, {"messages": HI, "user": secret},
        {"messages": HI, "alignment": {"strategy": secret}}, {"messages": HI, "alignment": {"weights": {secret: 1}}},
        {"messages": HI, "alignment": {"params": {secret: 1}}}, {"messages": HI, "alignment": {"guides": {secret: 1}}},
        {"messages": HI, "alignment": {"reward": secret}},
        {"messages": HI, "alignment": {"weights": {"good": 1}}, "seed": 7},
    ]  # fmt: skip
    for body in bodies:
        await raw.post(CHAT, json=body, headers={"x-request-id": secret, "x-consumer": secret})
    await raw.get(f"/{secret}")
    await raw.request("PROPFIND", f"/{secret}")
    labels = {
        (metric.name, key, value)
        for metric in REGISTRY.collect()
        if metric.name.startswith("trimtab_")
        for one in metric.samples
        for key, value in one.labels.items()
    }
    assert secret not in str(labels)
    assert {value for _, key, value in labels if key == "strategy"} <= {
        *STRATEGIES,
        "none",
        "refusing",
        "score",
        "infer",
    }
