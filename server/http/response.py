"""What goes back: vLLM's answer with `alignment`, the usage behind it and the headers put into it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

from trimtab.decoders.protocols import LimitReached
from trimtab.engine.aligned_client import Run
from trimtab.rewards.protocols import RewardError
from trimtab.server.errors import as_error, uncaught
from trimtab.server.http.errors_and_ids import ERROR_EVENTS
from trimtab.server.request.alignment import AT
from trimtab.server.request.body import Json
from trimtab.server.request.messages import MESSAGES, RESPONSES
from trimtab.server.request.plan import Plan
from trimtab.server.scoring import Scores

KEEP_ALIVE = 15.0
"""Seconds between the comments of a stream whose search still runs: proxies hang up on a silent one after 30 or 60."""


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
    document: Json = field(default_factory=dict)
    """The body as an object, without `alignment`."""
    run: Run | None = None
    """None where vLLM answers by itself."""
    scores: Scores | None = None
    """What the reward said, where there is one."""

    @property
    def strategy(self) -> str:
        """The strategy that ran."""
        return "plain" if self.degraded else self.plan.name

    @property
    def degraded(self) -> bool:
        return self.run is not None and self.run.failed is not None and self.run.instead is not None

    @property
    def outcome(self) -> str:
        """How a request ended that was answered."""
        if self.degraded:
            return "degraded"
        return (self.run.meter.cut if self.run is not None else None) or "ok"

    def told(self, usage: Mapping[str, Any]) -> Json:
        """The response's `alignment`."""
        told = self.plan.described() | {"strategy": self.strategy} | self.spent(usage)
        if self.outcome != "ok":
            told["outcome"] = self.outcome
        if self.run is not None:
            choices: list[Json] = [
                {"index": i} | self._choice(i) for i in sorted({*self.run.reports, *self.run.answers})
            ]
            for choice in choices:
                self.warnings += [text for text in choice.pop("warnings", ()) if text not in self.warnings]
            if any(len(choice) > 1 for choice in choices):
                told["choices"] = choices
            if self.degraded:
                self.warnings.append(f"answered plainly, because {self.run.failed}")
        if self.warnings:
            told["warnings"] = self.warnings
        return told

    def _choice(self, index: int) -> Json:
        """What is told of one answer: the strategy's report, its rewards, and of the candidates what was asked for."""
        assert self.run is not None
        told = dict(self.run.reports.get(index, {}))
        if self.scores is None:
            return told
        told |= self.scores.of(self.run.answers.get(index, []))
        if "candidates" in told:
            told["candidates"] = [self._candidate(candidate) for candidate in told["candidates"]]
        return told

    def _candidate(self, candidate: Mapping[str, Any]) -> Json:
        assert self.scores is not None
        told = {key: value for key, value in candidate.items() if key != "tokens"}
        if "candidates" in self.plan.include:
            told["text"] = self.scores.text(candidate["tokens"])
        if "rewards" in self.plan.include:
            told |= self.scores.of(candidate["tokens"])
        return told

    def spent(self, usage: Mapping[str, Any]) -> dict[str, int]:
        if self.run is not None:
            return {"sampled_tokens": self.run.meter.sampled, "scored_tokens": self.run.meter.scored}
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
        self.done = False

    @asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        """Comments in the stream while a search runs inside; the rest is as it was."""

        async def comment() -> None:
            while not self.done:
                await asyncio.sleep(KEEP_ALIVE)
                if self.kind == "stream" and not self.done:
                    await self.send({"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True})

        if self.call.run is None or self.call.plan.entry.streams:
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
                self._rethrow()
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
        self.done = not more
        if not more and self.outcome == "client_abort" and body != b"null":
            ok = self.start["status"] < 400
            self.outcome = self.call.outcome if ok else outcome(self.start["status"])

    def _rethrow(self) -> None:
        run = self.call.run
        if run is not None and isinstance(run.failed, RewardError | LimitReached):
            raise run.failed

    def _whole(self, answer: Json | None) -> bytes:
        if answer is None:  # what vLLM's handler returns when the client has left
            return b"null"
        answer = self.call.amend(answer)
        body = json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()
        headers = MutableHeaders(raw=self.start["headers"])
        headers["content-length"] = str(len(body))
        headers["x-alignment-strategy"] = self.call.strategy
        headers["x-alignment-sampled-tokens"] = str(answer[AT].get("sampled_tokens", 0))
        return body

    def _event(self, event: bytes) -> list[bytes]:
        """What of a stream to send now that this came, one event each."""
        MutableHeaders(raw=self.start["headers"])["x-alignment-strategy"] = self.call.strategy  # while it is held yet
        if event.startswith((*ERROR_EVENTS, b"event: response.failed")):
            self._rethrow()
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


def outcome_of(error: Exception) -> str:
    """How a request ended that this ended."""
    if isinstance(error, RewardError):
        return "reward_error"
    return str(error) if isinstance(error, LimitReached) else outcome(uncaught(error).status)


def amended(event: bytes, change: Any) -> bytes:
    """One server-sent event with its JSON data changed."""
    head, _, rest = event.partition(b"data: ")
    data, _, _ = rest.partition(b"\n")
    changed = json.dumps(change(json.loads(data)), ensure_ascii=False, separators=(",", ":"))
    return head + b"data: " + changed.encode() + b"\n\n"
