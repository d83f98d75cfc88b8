"""A client's connection: uvicorn's, with bounds on what it may hold before it has asked for anything.

uvicorn bounds the size of headers and the time between two requests. It waits for ever for headers that do not end, for
a connection's first byte, and for the rest of a body that nobody reads.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from trimtab.server.config import Config
from trimtab.server.errors import ApiError

MAX_HEADER_BYTES = 65536
"""Of a request's line and headers together."""


class BoundedProtocol(H11Protocol):
    """A new connection has the bounds of the configuration as it then is."""

    def __init__(self, *args: Any, configuration: Callable[[], Config], **more: Any) -> None:
        super().__init__(*args, **more)
        timeouts = configuration().timeouts
        self.headers_s = timeouts.headers_s
        self.timeout_keep_alive = timeouts.keep_alive_s  # type: ignore[assignment]
        self.most = configuration().max_connections
        self.timer: asyncio.TimerHandle | None = None
        """Runs while something is waited for that may never come."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            idle = next(
                (c for c in self.connections if isinstance(c, BoundedProtocol) and c is not self and c.idle), None
            )
            if idle is None:
                return self._refuse(503, "too_many_connections", "the server has no room for another connection")
            self.connections.discard(idle)  # at once, so that the next one does not choose it again
            idle.transport.close()
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        if self.idle:
            self._start_timer()
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY) or (self.cycle and not self.cycle.response_complete):
            self._stop_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:  # refused unread, and uvicorn reads what comes of it
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    @property
    def idle(self) -> bool:
        """Whether the connection has no request, nor the beginning of one that the server answers."""
        return self.conn.their_state is h11.IDLE and (self.cycle is None or self.cycle.response_complete)

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP, or has too large headers, as h11 says while this runs."""
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        if status == 431:
            message = f"the request's line and headers are larger than {MAX_HEADER_BYTES} bytes"
            return self._refuse(status, "headers_too_large", message)
        self._refuse(400, "invalid_http", "this is not a valid HTTP request")

    def _start_timer(self) -> None:
        if self.timer is None:
            self.timer = self.loop.call_later(self.headers_s, self._give_up)

    def _stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _give_up(self) -> None:
        self.timer = None
        if self.idle and self.conn.trailing_data[0]:
            return self._refuse(408, "request_timeout", f"the request's headers took longer than {self.headers_s:g} s")
        self.transport.close()

    def _refuse(self, status: int, code: str, message: str) -> None:
        """An answer without a request, and the connection's end."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return self.transport.close()
        request_id = uuid4().hex
        body = ApiError(message, code=code, status=status).body(request_id)
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        response = h11.Response(status_code=status, headers=[*headers.items(), ("x-request-id", request_id)])
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def bounded_protocol(configuration: Callable[[], Config]) -> Any:
    """The protocol of a server's connections, to uvicorn a class of its own."""
    return partial(BoundedProtocol, configuration=configuration)
