"""A server's life after its engines are up: it serves, reloads and drains on signals, and ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from trimtab.server.config import Config, ConfigError
from trimtab.server.http.connection import MAX_HEADER_BYTES, bounded_protocol
from trimtab.server.http.vllm_app import NoSignalServer
from trimtab.server.state import ServerState

CLOSE_GRACE_S = 2
"""Seconds that finished answers have to reach their clients once the engine has stopped."""
POLL_S = 1.0
"""Between two looks at the engines."""
DEAD_ENGINE_GRACE_S = 5.0
"""Seconds for which /health answers 503 for a dead engine before the server ends, for nothing brings it back."""

log = logging.getLogger("trimtab")


class EngineDied(Exception):
    """The base's engine ended by itself."""


class AnnouncingServer(NoSignalServer):  # type: ignore[misc]
    """Says in the log where it is, once it answers there."""

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config)
        self.state = state

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        page = "; open it in a browser for the playground" if self.state.config.playground else ""
        for sock in sockets or ():
            log.info("ready at %s%s", locate(sock), page)


def locate(sock: socket.socket) -> str:
    """The URL of what listens there, as a browser on this machine reaches it."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


async def serve(app: FastAPI, state: ServerState, sock: socket.socket) -> None:
    """Until SIGTERM or SIGINT, and then until what is in flight is answered, or `limits.drain_s` are over, or a second
    signal comes. SIGHUP reloads the configuration. Raises EngineDied."""
    server = AnnouncingServer(configure_uvicorn(app, lambda: state.config), state)
    app.state.server = server  # vLLM's own handlers end it when they meet a dead engine
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    loop.add_signal_handler(signal.SIGHUP, _reload, state)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    watch = asyncio.create_task(_wait_for_death(state))
    heartbeats = [asyncio.create_task(heartbeat.run()) for heartbeat in state.heartbeats]
    signalled = asyncio.create_task(signals.get())
    await asyncio.wait({serving, watch, signalled}, return_when=asyncio.FIRST_COMPLETED)
    if signalled.done():
        await _drain(state, signals)
        _cut_off(server)
        await asyncio.to_thread(state.client.shutdown)
    died = state.client.errored and not signalled.done()
    server.should_exit = True
    for task in (watch, signalled, *heartbeats):
        task.cancel()
    with suppress(asyncio.CancelledError):
        await serving
    if died:
        raise EngineDied("the engine died; /health said so")


def configure_uvicorn(app: ASGIApp, configuration: Callable[[], Config]) -> uvicorn.Config:
    """How connections are served; h11 bounds the size of headers, which uvicorn's faster parser does not."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(asyncio.CancelledError):  # of a request that is cut off, whose client has its answer
            await app(scope, receive, send)

    return uvicorn.Config(
        answer,
        http=bounded_protocol(configuration),
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_graceful_shutdown=CLOSE_GRACE_S,
        log_config=None,  # ours stands already
        log_level="warning",
        access_log=False,
    )


def _cut_off(server: uvicorn.Server) -> None:
    """End what is still being answered, each with an error that says so, before its engine goes."""
    for task in server.server_state.tasks:
        task.cancel()


async def _wait_for_death(state: ServerState) -> None:
    """Returns some time after the base's engine died."""
    while not state.client.errored:  # noqa: ASYNC110 - vLLM tells nobody
        await asyncio.sleep(POLL_S)
    log.error("the engine died")
    await asyncio.sleep(DEAD_ENGINE_GRACE_S)


async def _drain(state: ServerState, signals: asyncio.Queue[int]) -> None:
    """Returns when nothing is in flight, when the time for it is over, or when a second signal comes."""
    state.admission.closing = True
    left, limit = state.admission.requests, state.config.limits.drain_s
    log.info("told to stop; %d requests in flight have %g s", left, limit)
    with suppress(TimeoutError):
        async with asyncio.timeout(limit):
            again = asyncio.create_task(signals.get())
            empty = asyncio.create_task(state.admission.wait_until_empty())
            await asyncio.wait({again, empty}, return_when=asyncio.FIRST_COMPLETED)
    log.info("%d requests in flight are cut off", state.admission.requests)


def _reload(state: ServerState) -> None:
    with suppress(ConfigError):  # it is in the log
        state.reload()
