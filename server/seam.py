"""Where our contract meets vLLM's app: an ASGI middleware around it that speaks only HTTP.

On the way in it takes `alignment` out of the body, turns a preset's model id into the base's, and leaves the plan where
the engine client's `generate()` finds it. On the way out it puts the `alignment` object, the usage behind it and the
headers into what vLLM answers, and counts the request. Bodies that need no change pass as they came.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from decoders.protocols import indifferent
from engine.aligned import Run, running
from engine.table import KEY
from server.alignment import AT, Plan, plan
from server.config import Config
from server.envelope import ERROR_EVENTS
from server.errors import ApiError, as_error, listed, shown, uncaught, unknown
from server.metrics import DURATION, REQUESTS, UNKNOWN_FIELDS

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"

PLAIN_ONLY = ("use_beam_search", "prompt_embeds", "background", "kv_transfer_params", "ec_transfer_params")
"""Request fields that no strategy can honour: with them vLLM draws tokens its own way, answers later, or reads a cache
that another server filled."""

Json = dict[str, Any]


class ClientGone(Exception):
    """The client left before its request was whole."""


@dataclass(kw_only=True)
class Call:
    """One HTTP request: what was asked, and what is there to tell."""

    path: str
    body: bytes
    """What vLLM's app gets to read."""
    model: str | None
    """The model id as the client wrote it, where it is a preset's."""
    plan: Plan
    warnings: list[str]
    run: Run | None = None
    """None where vLLM answers by itself."""
    strategy: str = field(init=False)

    def __post_init__(self) -> None:
        self.strategy = self.plan.name
        if not self.plan.is_plain:
            self.run = Run(strategy=self.plan.strategy, reward=indifferent, want=self.plan.want)

    def told(self, usage: Mapping[str, Any]) -> Json:
        """The response's `alignment`."""
        told = self.plan.described() | self.spent(usage)
        if self.run is not None and self.run.reports:
            told["choices"] = [{"index": i, **report} for i, report in sorted(self.run.reports.items())]
        if self.warnings:
            told["warnings"] = self.warnings
        return told

    def spent(self, usage: Mapping[str, Any]) -> dict[str, int]:
        if self.run is not None:
            return {"sampled_tokens": self.run.sampled, "scored_tokens": self.run.scored}
        shown = usage.get("completion_tokens") or usage.get("output_tokens")
        return {} if shown is None else {"sampled_tokens": shown, "scored_tokens": 0}

    def amend(self, answer: Json) -> Json:
        """An answer, or a stream's last event, with what is ours in it."""
        usage = answer.get("usage") or {}
        answer[AT] = self.told(usage)
        if "completion_tokens" in usage:
            usage["completion_tokens_details"] = (usage.get("completion_tokens_details") or {}) | self.spent(usage)
        return self.named(answer)

    def named(self, answer: Json) -> Json:
        """With the model id that the client wrote; responses and messages have it one level down in some events."""
        for inner in (answer, answer.get("response"), answer.get("message")):
            if self.model is not None and isinstance(inner, dict) and "model" in inner:
                inner["model"] = self.model
        return answer


class Twice(dict[str, Any]):
    """A JSON object that was given some of its keys twice."""

    keys_twice: list[str]


def marked(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    twice = Twice(found)
    twice.keys_twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    return twice


def parse(body: bytes) -> Json:
    """The request's JSON object; raises ApiError where it is none, and RecursionError where it is too deep."""
    try:
        document = json.loads(body, parse_constant=_no_constant)
        if b"\\ud" in body or b"\\uD" in body:
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ApiError(
            "the request body holds half of a surrogate pair, which is no text", code="invalid_json"
        ) from None
    except ValueError as error:
        raise ApiError(f"the request body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(document, dict):
        raise ApiError("the request body must be a JSON object", code="invalid_json")
    if AT in document:
        whole = json.loads(body, object_pairs_hook=marked)
        asked = whole[AT]
        inside = [asked, *asked.values()] if isinstance(asked, dict) else []
        twice = [key for inner in inside if isinstance(inner, Twice) for key in inner.keys_twice]
        if twice or (isinstance(whole, Twice) and AT in whole.keys_twice):
            raise ApiError(f"{shown([*twice, AT][0])} is given twice", param=AT, code="duplicate_key")
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


@dataclass(frozen=True)
class Seam:
    """`fields`: request path -> the top-level fields that vLLM's own request model of that path has."""

    app: ASGIApp
    config: Config
    fields: Mapping[str, frozenset[str]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in self.fields:
            return await self.app(scope, receive, send)
        began = time.monotonic()
        try:
            call = self.understand(scope["path"], await self.read(receive))
        except ClientGone:
            REQUESTS.labels("none", "client_abort").inc()
            return
        except (ApiError, RecursionError) as error:
            too_deep = ApiError("the request body is nested too deeply", code="invalid_json")
            REQUESTS.labels("none", "invalid").inc()
            return await (error if isinstance(error, ApiError) else too_deep).response()(scope, receive, send)
        answer = Answer(call, send)
        token = running.set(call.run)
        try:
            await self.app(scope, replay(call.body, receive), answer)
        except Exception as error:
            answer.outcome = outcome(uncaught(error).status)
            raise
        finally:
            running.reset(token)
            REQUESTS.labels(call.strategy, answer.outcome).inc()
            DURATION.labels(call.strategy).observe(time.monotonic() - began)
            if call.run is not None:
                await call.run.close()

    async def read(self, receive: Receive) -> bytes:
        limit = int(self.config.max_body_mib * 2**20)
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body += message.get("body", b"")
            if len(body) > limit:
                longest = f"{self.config.max_body_mib:g} MiB"
                raise ApiError(f"the request body is larger than {longest}", code="request_too_large", status=413)
            if not message.get("more_body"):
                return bytes(body)

    def understand(self, path: str, body: bytes) -> Call:
        """Raises ApiError for what cannot be carried out."""
        document = parse(body)
        if "extra_body" in document:
            raise ApiError(
                "extra_body is an argument of OpenAI's Python client, not a field of the request: "
                'put what is in it at the top level, as {"model": …, "alignment": {…}}',
                param="extra_body",
                code="unknown_parameter",
            )
        whole = len(document)
        asked = document.pop(AT, {})
        model = document.get("model")
        preset = self.config.presets.get(model) if isinstance(model, str) else None
        if isinstance(model, str) and model and preset is None and model != self.config.model_name:
            known = [self.config.model_name, *self.config.presets]
            raise ApiError(unknown("model", model, known), param="model", code="model_not_found", status=404)
        if isinstance(xargs := document.get("vllm_xargs"), dict) and KEY in xargs:
            raise ApiError(f"vllm_xargs.{KEY} is reserved: use {AT}", param=f"vllm_xargs.{KEY}")
        changed = preset is not None or len(document) < whole
        if preset is not None:
            document["model"] = self.config.model_name
            asked = {**preset, **asked} if isinstance(asked, dict) else asked
        planned = plan(asked, self.config)
        for name in PLAIN_ONLY:
            if document.get(name) and not planned.is_plain:
                raise ApiError(
                    f"{name} cannot be combined with strategy {planned.name!r}", param=name, code="unsupported_pair"
                )
        surplus = document.keys() - self.fields[path]
        UNKNOWN_FIELDS.inc(len(surplus))
        warnings = [f"unknown fields were ignored: {listed(name[:64] for name in surplus)}"] if surplus else []
        return Call(
            path=path,
            body=json.dumps(document).encode() if changed else body,
            model=model if preset is not None else None,
            plan=planned,
            warnings=warnings,
        )


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once more, then whatever comes."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


class Answer:
    """`send` for one call: amends JSON answers whole, and streams at their last event."""

    def __init__(self, call: Call, send: Send) -> None:
        self.call = call
        self.send = send
        self.outcome = "client_abort"
        self.start: Message = {}
        self.body = bytearray()
        self.held = b""
        """A stream's event that may prove to be its last."""
        self.kind = "other"

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] == "http.response.body":
            await self._go_on(message)
        else:
            await self.send(message)

    async def _begin(self, message: Message) -> None:
        self.start = message
        headers = MutableHeaders(raw=message["headers"])
        if message["status"] == 200:
            headers["x-alignment-strategy"] = self.call.strategy
            content = headers.get("content-type", "")
            self.kind = "json" if "json" in content else "stream" if "event-stream" in content else "other"
        if self.kind != "json":
            await self.send(message)

    async def _go_on(self, message: Message) -> None:
        body, more = message.get("body", b""), message.get("more_body", False)
        if self.kind == "json":
            self.body += body
            if more:
                return
            body = self._whole(json.loads(self.body))
            await self.send(self.start)
        elif self.kind == "stream":
            *before, body = self._event(body)
            for event in before:
                await self.send({"type": "http.response.body", "body": event, "more_body": True})
        if body or not more:
            await self.send({"type": "http.response.body", "body": body, "more_body": more})
        if not more and self.outcome == "client_abort" and body != b"null":
            self.outcome = outcome(self.start["status"])

    def _whole(self, answer: Json | None) -> bytes:
        if answer is None:  # what vLLM's handler returns when the client has left
            return b"null"
        answer = self.call.amend(answer)
        body = json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()
        headers = MutableHeaders(raw=self.start["headers"])
        headers["content-length"] = str(len(body))
        headers["x-alignment-sampled-tokens"] = str(answer[AT].get("sampled_tokens", 0))
        return body

    def _event(self, event: bytes) -> list[bytes]:
        """What of a stream to send now that this came, one event each."""
        if event.startswith((*ERROR_EVENTS, b"event: response.failed")):
            error = as_error(event.partition(b"data: ")[2])
            self.outcome = outcome(error.status if error is not None else 500)
        if self.call.path in (RESPONSES, MESSAGES):
            return [self._typed(event)]
        before, self.held = self.held, b""
        if before and event.startswith(b"data: [DONE]"):
            return [amended(before, self.call.amend), event]
        if self.call.model is not None and event.startswith(b"data: {"):
            event = amended(event, self.call.named)
        # Only an event that ends a choice, or one without choices, can be the last: the rest must not wait.
        if b'"finish_reason":"' in event or b'"choices":[]' in event:
            self.held, event = event, b""
        return [before, event] if before else [event]

    def _typed(self, event: bytes) -> bytes:
        """Responses and messages name their events."""
        if event.startswith((b"event: response.completed", b"event: response.incomplete")):
            return amended(event, lambda data: data | {"response": self.call.amend(data["response"])})
        if event.startswith(b"event: message_stop"):
            return amended(event, self.call.amend)
        if event.startswith((b"event: message_start", b"event: response.created", b"event: response.in_progress")):
            return amended(event, self.call.named)
        return event


def outcome(status: int) -> str:
    return "ok" if status < 400 else "invalid" if status < 500 else "engine_error"


def amended(event: bytes, change: Any) -> bytes:
    """One server-sent event with its JSON data changed."""
    head, _, rest = event.partition(b"data: ")
    data, _, _ = rest.partition(b"\n")
    changed = json.dumps(change(json.loads(data)), ensure_ascii=False, separators=(",", ":"))
    return head + b"data: " + changed.encode() + b"\n\n"
