"""What goes back: vLLM's answer with `alignment`, the usage behind it and the headers put into it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

from trimtab.decoders.protocols import LimitReached
from trimtab.decoders.report import drop_nonfinite
from trimtab.rewards.protocols import RewardError
from trimtab.server.errors import encode_json, parse_error, to_api_error
from trimtab.server.http.context import RequestContext
from trimtab.server.http.errors_and_ids import ERROR_EVENTS
from trimtab.server.request.alignment import AT
from trimtab.server.request.body import Json
from trimtab.server.request.messages import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from trimtab.server.request.threads import run_beside

KEEP_ALIVE = 15.0
"""Seconds between the comments of a stream whose search still runs: proxies hang up on a silent one after 30 or 60."""
PROGRESS_INTERVAL = 0.5
"""Seconds between two events that tell of a search's progress, at least."""
KINDS = {CHAT: ("chatcmpl", "chat.completion.chunk"), COMPLETIONS: ("cmpl", "text_completion")}
"""path -> what the id of its streams' chunks begins with, and their `object`"""


class ResponseRewriter:
    """`send` for one request: amends JSON answers whole, and streams at their last event."""

    def __init__(
        self, context: RequestContext, send: Send, *, request_id: str = "", model: str = "", began: float = 0.0
    ) -> None:
        """`began` on the loop's clock."""
        self.context = context
        self.send = send
        self.request_id = request_id
        self.model = model
        self.began = began
        self.head: Json = {}
        """What each chunk of a stream with progress begins with, so that all are of one answer."""
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
        """While a search runs inside, its progress in the stream where that is asked for, and comments in long silence;
        the rest is as it was."""
        if self.context.run.native or self.context.plan.entry.streams:
            yield
            return
        task = asyncio.create_task(self._break_silence())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _break_silence(self) -> None:
        """One event at a time: while a slow reader keeps it, what is newer waits, and the newest is next."""
        run = self.context.run
        changed = run.progress.changed if run.progress is not None else asyncio.Event()
        while not self.done:
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), KEEP_ALIVE)
            news = changed.is_set()
            event = b": keep-alive\n\n"
            if self.kind == "stream" and news:
                changed.clear()
                answered = len(run.answers) == run.choices
                event = b"" if answered else self._encode_progress()
            if self.kind == "stream" and event and not self.done:
                await self.send({"type": "http.response.body", "body": event, "more_body": True})
            if news:
                await asyncio.sleep(PROGRESS_INTERVAL)

    def _encode_progress(self) -> bytes:
        run = self.context.run
        assert run.progress is not None, "nobody asks"
        progress, elapsed = run.progress.total(), asyncio.get_running_loop().time() - self.began
        shown: Json = {"stage": progress.stage, "done": progress.done, "of": progress.of}
        shown |= self.context.token_counts({}) | {"elapsed_ms": round(1000 * elapsed)}
        if progress.best is not None:
            shown["best"] = {"value": drop_nonfinite(progress.value)}
            if "best" in self.context.plan.include:
                shown["best"]["text"] = run.parts(run.prompts[0], progress.best).answer
        kind = KINDS.get(self.context.path)
        if kind is None:
            name = "alignment.progress"
            return f"event: {name}\n".encode() + encode_event({"type": name, AT: {"progress": shown}})
        self.head = self.head or {
            "id": f"{kind[0]}-{self.request_id}",
            "object": kind[1],
            "created": int(time.time()),
            "model": self.model,
        }
        return encode_event({**self.head, "choices": [], AT: {"progress": shown}})

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
        """With the model id that the client wrote; responses and messages have it one level down in some events. Behind
        progress it has that one's head too."""
        if "choices" in answer:
            answer |= self.head
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
        if (self.head or self.context.model is not None) and event.startswith(b"data: {"):
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
    return head + encode_event(change(json.loads(data)))


def encode_event(data: Json) -> bytes:
    """As a server-sent event without a name."""
    return b"data: " + encode_json(data) + b"\n\n"
