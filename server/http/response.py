"""What goes back: vLLM's answer with `alignment`, the usage behind it and the headers put into it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

from trimtab.decoders.protocols import LimitReached
from trimtab.rewards.protocols import RewardError
from trimtab.server.errors import encode_json, parse_error, to_api_error
from trimtab.server.http.context import RequestContext
from trimtab.server.http.errors_and_ids import ERROR_EVENTS
from trimtab.server.request.alignment import AT
from trimtab.server.request.body import Json
from trimtab.server.request.messages import MESSAGES, RESPONSES
from trimtab.server.request.threads import run_beside

KEEP_ALIVE = 15.0
"""Seconds between the comments of a stream whose search still runs: proxies hang up on a silent one after 30 or 60."""


class ResponseRewriter:
    """`send` for one request: amends JSON answers whole, and streams at their last event."""

    def __init__(self, context: RequestContext, send: Send) -> None:
        self.context = context
        self.send = send
        self.outcome = "client_abort"
        self.start: Message = {}
        self.body = bytearray()
        self.held = b""
        """A stream's event that may prove to be its last."""
        self.kind = "other"
        self.begun = False
        """Whether any of a stream's events was sent."""
        self.done = False

    @asynccontextmanager
    async def keep_alive(self) -> AsyncIterator[None]:
        """Comments in the stream while a search runs inside; the rest is as it was."""

        async def comment() -> None:
            while not self.done:
                await asyncio.sleep(KEEP_ALIVE)
                if self.kind == "stream" and not self.done:
                    await self.send({"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True})

        if self.context.run.native or self.context.plan.entry.streams:
            yield
            return
        task = asyncio.create_task(comment())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def __call__(self, message: Message) -> None:
        """Raises what ended the strategy, where vLLM would make an error of its own of it."""
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                self._raise_failure()
            await self._start_response(message)
        elif message["type"] == "http.response.body":
            await self._send_body(message)
        else:
            await self.send(message)

    def _amend(self, answer: Json) -> Json:
        """An answer, or a stream's last event, with what is ours in it."""
        usage = answer.get("usage") or {}
        answer[AT] = self.context.alignment_object(usage)
        if "completion_tokens" in usage:
            details = usage.get("completion_tokens_details") or {}
            usage["completion_tokens_details"] = details | self.context.token_counts(usage)
        return self._rename_model(answer)

    def _rename_model(self, answer: Json) -> Json:
        """With the model id that the client wrote; responses and messages have it one level down in some events."""
        for inner in (answer, answer.get("response"), answer.get("message")):
            if self.context.model is not None and isinstance(inner, dict) and "model" in inner:
                inner["model"] = self.context.model
        return answer

    async def _start_response(self, message: Message) -> None:
        self.start = message
        headers = MutableHeaders(raw=message["headers"])
        if message["status"] == 200:
            headers["x-alignment-strategy"] = self.context.strategy
            content = headers.get("content-type", "")
            self.kind = "json" if "json" in content else "stream" if "event-stream" in content else "other"
        if self.kind != "json":
            await self.send(message)

    async def _send_body(self, message: Message) -> None:
        body, more = message.get("body", b""), message.get("more_body", False)
        if self.kind == "json":
            self.body += body
            if more:
                return
            body = await run_beside(len(self.body), self._rewrite_whole, bytes(self.body))
            await self.send(self.start)
        elif self.kind == "stream":
            *before, body = self._rewrite_event(body)
            self.begun = True
            for event in before:
                await self.send({"type": "http.response.body", "body": event, "more_body": True})
        if body or not more:
            await self.send({"type": "http.response.body", "body": body, "more_body": more})
        self.done = not more
        if not more and self.outcome == "client_abort" and body != b"null":
            ok = self.start["status"] < 400
            self.outcome = self.context.outcome if ok else outcome_of_status(self.start["status"])

    def _raise_failure(self) -> None:
        failure = self.context.run.failure
        if isinstance(failure, RewardError | LimitReached):
            raise failure
        if failure is not None:
            raise to_api_error(failure) from failure

    def _replace_failure(self, event: bytes) -> bytes:
        """vLLM's last event but one of a stream that its strategy ended, with our words for the failure, or vLLM's.

        Raises what ended the strategy where the stream has not begun, and where its events have names.
        """
        failure = self.context.run.failure
        if failure is None or not self.begun or self.context.path in (RESPONSES, MESSAGES):
            self._raise_failure()
            return event
        if isinstance(failure, RewardError | LimitReached):
            raise failure
        return b"data: " + to_api_error(failure).body() + b"\n\n"

    def _rewrite_whole(self, body: bytes) -> bytes:
        answer: Json | None = json.loads(body)
        if answer is None:  # what vLLM's handler returns when the client has left
            return b"null"
        answer = self._amend(answer)
        body = encode_json(answer)
        headers = MutableHeaders(raw=self.start["headers"])
        headers["content-length"] = str(len(body))
        headers["x-alignment-strategy"] = self.context.strategy
        headers["x-alignment-sampled-tokens"] = str(answer[AT].get("sampled_tokens", 0))
        return body

    def _rewrite_event(self, event: bytes) -> list[bytes]:
        """What of a stream to send now that this came, one event each."""
        MutableHeaders(raw=self.start["headers"])["x-alignment-strategy"] = (
            self.context.strategy
        )  # while it is held yet
        if event.startswith((*ERROR_EVENTS, b"event: response.failed")):
            event = self._replace_failure(event)
            error = parse_error(event.partition(b"data: ")[2])
            self.outcome = outcome_of_status(error.status if error is not None else 500)
        if self.context.path in (RESPONSES, MESSAGES):
            return [self._rewrite_named_event(event)]
        before, self.held = self.held, b""
        if before and event.startswith(b"data: [DONE]"):
            return [rewrite_event(before, self._amend), event]
        if self.context.model is not None and event.startswith(b"data: {"):
            event = rewrite_event(event, self._rename_model)
        # Only an event that ends a choice, or one without choices, can be the last: the rest must not wait.
        if b'"finish_reason":"' in event or b'"choices":[]' in event:
            self.held, event = event, b""
        return [before, event] if before else [event]

    def _rewrite_named_event(self, event: bytes) -> bytes:
        """Responses and messages name their events."""
        if event.startswith((b"event: response.completed", b"event: response.incomplete")):
            return rewrite_event(event, lambda data: data | {"response": self._amend(data["response"])})
        if event.startswith(b"event: message_stop"):
            return rewrite_event(event, self._amend)
        if event.startswith((b"event: message_start", b"event: response.created", b"event: response.in_progress")):
            return rewrite_event(event, self._rename_model)
        return event


def outcome_of_status(status: int) -> str:
    return "ok" if status < 400 else "invalid" if status < 500 else "engine_error"


def outcome_of_error(error: BaseException) -> str:
    """How a request ended that this ended."""
    if isinstance(error, RewardError):
        return "reward_error"
    return str(error) if isinstance(error, LimitReached) else outcome_of_status(to_api_error(error).status)


def rewrite_event(event: bytes, change: Callable[[Json], Json]) -> bytes:
    """One server-sent event with its JSON data changed."""
    head, _, rest = event.partition(b"data: ")
    data, _, _ = rest.partition(b"\n")
    return head + b"data: " + encode_json(change(json.loads(data))) + b"\n\n"
