"""What every HTTP answer has, whoever gives it: a request id, and errors in OpenAI's shape.

vLLM calls an error's type after a Python class and its status its code, and a stream that is refused before its first
token is 200 with the refusal as its only event. Clients tell errors apart by status, type and code, so they are set
right here, around the whole app; what nobody caught becomes a 500 or a stream's last event, and goes on to the log.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.server.errors import ApiError, opaque_error, parse_error, to_api_error

REQUEST_ID = "x-request-id"
ID = "trimtab.request_id"
"""Key of the ASGI scope under which it stands."""

EXPOSED = (REQUEST_ID, "retry-after", "x-alignment-sampled-tokens", "x-alignment-strategy", "x-should-retry")
"""Response headers that a browser lets scripts of allowed origins read."""

ERROR_EVENTS = (b'data: {"error"', b"event: error")

log = logging.getLogger("trimtab")


@dataclass(frozen=True)
class RequestIdAndErrorMiddleware:
    """`body_s`: seconds that a request's body may take from its first byte to its last."""

    app: ASGIApp
    body_s: float = 60.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        client_id = Headers(scope=scope).get(REQUEST_ID, "")[:128]
        scope[ID] = client_id if re.fullmatch("[!-~]+", client_id) else uuid4().hex  # one word of a log line
        shaper = ErrorShaper(send, scope[ID], head=scope["method"] == "HEAD")
        if scope["method"] == "HEAD":  # what GET answers, without its body
            scope = {**scope, "method": "GET"}
        try:
            await self.app(scope, bound_body(scope, receive, self.body_s), shaper)
        except (
            Exception,
            asyncio.CancelledError,
        ) as error:  # the latter ends what a closing server no longer waits for
            refusal = to_api_error(error)
            if refusal.status >= 500 and refusal.code != "shutting_down":
                log.error("request %s failed", shaper.request_id, exc_info=error)
            await shaper.fail(refusal)
            if isinstance(error, asyncio.CancelledError):
                raise


def bound_body(scope: Scope, receive: Receive, seconds: float) -> Receive:
    """A `receive` that raises ApiError for a body that is compressed or does not come to its end in time."""
    encoding = Headers(scope=scope).get("content-encoding", "identity").strip().lower()
    clock: Callable[[], float] = asyncio.get_running_loop().time
    until = clock() + seconds
    more = True

    async def receive_in_time() -> Message:
        nonlocal more
        if not more:
            return await receive()
        if encoding not in ("", "identity"):
            refusal = f"content-encoding {encoding[:60]!r} is not read here: send the body as it is"
            raise ApiError(refusal, param="content-encoding", code="unsupported_content_encoding", status=415)
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            error = ApiError(f"the request body took longer than {seconds:g} s", code="request_timeout", status=408)
            error.close = True
            raise error from None
        more = message["type"] == "http.request" and message.get("more_body", False)
        return message

    return receive_in_time


class ErrorShaper:
    """`send` for one request. Holds an error until it is whole, and a stream's start until its first event is known."""

    def __init__(self, send: Send, request_id: str, *, head: bool = False) -> None:
        self.send = send
        self.request_id = request_id
        self.head = head
        """Whether nobody reads the body."""
        self.start: Message | None = None
        """Held; None once it is sent."""
        self.kind = ""
        self.body = bytearray()
        self.named = False
        """Whether a stream's events have names, as those of Responses and Messages do."""
        self.done = False

    async def __call__(self, message: Message) -> None:
        if self.done:
            return
        if message["type"] == "http.response.start":
            await self._start_response(message)
        elif message["type"] == "http.response.body":
            await self._send_body(message.get("body", b""), more=message.get("more_body", False))
        else:
            await self.send(message)

    async def fail(self, error: ApiError) -> None:
        """What the client gets of an error that nobody caught."""
        if self.done:
            return
        if not self.kind or self.start is not None:
            await self._refuse(error)
        elif self.kind == "stream":
            await self._send_last(self._event(error))
        else:
            raise ConnectionAbortedError("an answer broke off")  # the client must not take it for whole

    def _event(self, error: ApiError) -> bytes:
        return b"event: error\n" * self.named + b"data: " + error.body(self.request_id) + b"\n\n"

    def _parse(self, body: bytes, status: int | None = None) -> ApiError | None:
        """An error as the client may see it: what vLLM says of a fault inside is for nobody."""
        error = parse_error(body, status)
        if error is None or error.status < 500 or error.code is not None:
            return error
        log.error("request %s was answered with status %d from inside vLLM", self.request_id, error.status)
        return opaque_error(error.status)

    async def _start_response(self, message: Message) -> None:
        headers = MutableHeaders(raw=message["headers"])
        headers[REQUEST_ID] = self.request_id
        content = headers.get("content-type", "")
        if message["status"] >= 400 and "json" in content:
            self.kind, self.start = "error", message
        elif message["status"] == 200 and "event-stream" in content:
            headers["cache-control"] = "no-cache"
            headers["x-accel-buffering"] = "no"  # nginx would hold events back
            self.kind, self.start = "stream", message
        else:
            self.kind = "other"
            await self.send(message)

    async def _send_body(self, body: bytes, *, more: bool) -> None:
        error = None
        if self.kind == "error":
            self.body += body
            if more:
                return
            body = bytes(self.body)
            error = self._parse(body, self.start["status"]) if self.start is not None else None
        elif self.kind == "stream":
            self.named = self.named or body.startswith(b"event:")
            if body.startswith(ERROR_EVENTS):
                error = self._parse(body.partition(b"data: ")[2])
        if error is not None and self.start is not None:
            return await self._refuse(error)
        if self.start is not None:
            start, self.start = self.start, None
            await self.send(start)
        if error is not None:
            body = self._event(error)
        await self.send({"type": "http.response.body", "body": b"" if self.head else body, "more_body": more})
        self.done = not more

    async def _refuse(self, error: ApiError) -> None:
        """The error as the whole answer, in place of the one whose start is held."""
        body = error.body(self.request_id)
        headers = MutableHeaders(raw=list(self.start["headers"]) if self.start is not None else [])
        headers |= error.headers | {
            REQUEST_ID: self.request_id,
            "content-type": "application/json",
            "content-length": str(len(body)),
        }
        self.start = None
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers.raw})
        await self._send_last(body)

    async def _send_last(self, body: bytes) -> None:
        await self.send({"type": "http.response.body", "body": b"" if self.head else body, "more_body": False})
        self.done = True
