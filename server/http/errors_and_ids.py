"""What every HTTP answer has, whoever gives it: a request id, and errors in OpenAI's shape.

vLLM calls an error's type after a Python class and its status its code, and a stream that is refused before its first
token is 200 with the refusal as its only event. Clients tell errors apart by status, type and code, so they are set
right here, around the whole app; what nobody caught becomes a 500 or a stream's last event, and goes on to the log.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.server.errors import ApiError, parse_error, to_api_error

REQUEST_ID = "x-request-id"
ID = "trimtab.request_id"
"""Key of the ASGI scope under which it stands."""

ERROR_EVENTS = (b'data: {"error"', b"event: error")

log = logging.getLogger("trimtab")


@dataclass(frozen=True)
class RequestIdAndErrorMiddleware:
    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        client_id = Headers(scope=scope).get(REQUEST_ID, "")
        scope[ID] = client_id[:128] if client_id.isprintable() and client_id else uuid4().hex
        shaper = ErrorShaper(send, scope[ID])
        try:
            await self.app(scope, receive, shaper)
        except Exception as error:
            refusal = to_api_error(error)
            if refusal.status >= 500:
                log.exception("request %s failed", shaper.request_id)
            await shaper.fail(refusal)


class ErrorShaper:
    """`send` for one request. Holds an error until it is whole, and a stream's start until its first event is known."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.send = send
        self.request_id = request_id
        self.start: Message | None = None
        """Held; None once it is sent."""
        self.kind = ""
        self.body = bytearray()
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
            await self._send_last(b"data: " + error.body() + b"\n\n")
        else:
            raise ConnectionAbortedError("an answer broke off")  # the client must not take it for whole

    async def _start_response(self, message: Message) -> None:
        headers = MutableHeaders(raw=message["headers"])
        headers[REQUEST_ID] = self.request_id
        content = headers.get("content-type", "")
        if message["status"] >= 400 and "json" in content:
            self.kind, self.start = "error", message
        elif message["status"] == 200 and "event-stream" in content:
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
            error = parse_error(body, self.start["status"]) if self.start is not None else None
        elif self.kind == "stream" and body.startswith(ERROR_EVENTS):
            error = parse_error(body.partition(b"data: ")[2])
        if error is not None and self.start is not None:
            return await self._refuse(error)
        if self.start is not None:
            start, self.start = self.start, None
            await self.send(start)
        if error is not None:
            body = b"event: error\n" * body.startswith(b"event:") + b"data: " + error.body() + b"\n\n"
        await self.send({"type": "http.response.body", "body": body, "more_body": more})
        self.done = not more

    async def _refuse(self, error: ApiError) -> None:
        """The error as the whole answer, in place of the one whose start is held."""
        body = error.body()
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
        await self.send({"type": "http.response.body", "body": body, "more_body": False})
        self.done = True
