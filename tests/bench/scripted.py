"""A server that does as each request's `script` says, on a real socket: load tools are tried on it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.types import Message, Receive, Scope, Send

USAGE = {"completion_tokens": 3, "completion_tokens_details": {"sampled_tokens": 12, "scored_tokens": 5}}
JSON = {"content-type": "application/json"}
EVENTS = {"content-type": "text/event-stream"}
ERROR = json.dumps({"error": {"message": "it is broken", "code": 500}})


def event(data: Any) -> str:
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n"


def delta(content: str | None = None, finish: str | None = None, index: int = 0) -> str:
    fields = {"role": "assistant"} if content is None else {"content": content}
    return event({"choices": [{"index": index, "delta": fields, "finish_reason": finish}]})


LAST = event({"choices": [], "usage": USAGE, "alignment": {"strategy": "guided"}})
DONE = event("[DONE]")
QUIET = [": keep-alive\n\n", delta(), delta("")]
"""What a stream says before there is anything to see."""
STREAMS: dict[str, list[str | float]] = {
    "stream": [*QUIET, 0.3, delta("Rub\u2028it"), delta(" well"), delta("", "stop"), LAST, DONE],
    "no-finish": [delta("Rub"), LAST, DONE],
    "one-of-two": [delta("Rub", "stop"), delta("Wash", index=1), LAST, DONE],
    "no-done": [delta("Rub", "stop"), LAST],
    "stream-error": [delta("Rub"), event(ERROR), DONE],
    "endless": [delta("Rub"), 60.0],
    "cut-stream": [delta("Rub", "length"), event({"choices": [], "alignment": {"outcome": "deadline"}}), DONE],
    "long": [delta("r" * 2000), delta("", "stop"), LAST, DONE],
}


def whole(**alignment: Any) -> str:
    choice = {"index": 0, "message": {"content": "Rub it"}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], "usage": USAGE, "alignment": alignment})


ANSWERS: dict[str, tuple[int, dict[str, str], str]] = {
    "ok": (200, JSON, whole(strategy="guided", sampled_tokens=20, scored_tokens=1)),
    "budget": (200, JSON, whole(outcome="budget")),
    "degraded": (200, JSON, whole(outcome="degraded")),
    "bad": (400, JSON, json.dumps({"error": {"message": "unknown strategy"}})),
    "busy": (429, JSON | {"retry-after": "7"}, json.dumps({"error": {"message": "too much"}})),
    "broken": (500, JSON, ERROR),
    "null": (200, JSON, "null"),
    "no-choices": (200, JSON, "{}"),
}


@dataclass
class Scripted:
    """The ASGI app and what it has seen."""

    url: str = ""
    seen: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    """Headers and body of each request."""
    left: list[float] = field(default_factory=list)
    """When clients hung up."""
    stall: float = 0.0
    """Seconds that the next request takes, and all behind it with it."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == "/v1/models":
            return await answer(send, 200, JSON, '{"data": [{"id": "first"}, {"id": "second"}]}')
        message = await receive()
        body = message["body"]
        while message["more_body"]:
            message = await receive()
            body += message["body"]
        document = json.loads(body)
        self.seen.append(({k.decode(): v.decode() for k, v in scope["headers"]}, document))
        async with self.turn:
            stall, self.stall = self.stall, 0.0
            await asyncio.sleep(stall)
        played = asyncio.create_task(self.play(document.get("script", "ok"), send))
        gone = asyncio.create_task(receive())
        await asyncio.wait([played, gone], return_when=asyncio.FIRST_COMPLETED)
        if not played.done():
            self.left.append(time.monotonic())
            played.cancel()
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await played

    async def play(self, script: str, send: Send) -> None:
        if script == "silent":
            await asyncio.sleep(60)
        if script in ANSWERS:
            return await answer(send, *ANSWERS[script])
        if script == "broken-off":  # less than it promises: uvicorn ends the connection
            await send(start(200, JSON | {"content-length": "1000"}))
            return await send({"type": "http.response.body", "body": b"{"})
        await send(start(200, EVENTS))
        for step in STREAMS[script]:
            if isinstance(step, float):
                await asyncio.sleep(step)
            else:
                await send({"type": "http.response.body", "body": step.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def start(status: int, headers: dict[str, str]) -> Message:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": raw}


async def answer(send: Send, status: int, headers: dict[str, str], body: str) -> None:
    await send(start(status, headers))
    await send({"type": "http.response.body", "body": body.encode()})


@contextlib.contextmanager
def serve(app: Scripted | None = None) -> Iterator[Scripted]:
    """In a thread with a loop of its own, so that neither side stalls the other."""
    app = app or Scripted()
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="critical", lifespan="off", loop="asyncio", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    app.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield app
    finally:
        server.should_exit = True
        thread.join()
