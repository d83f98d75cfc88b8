"""A server's life after its engines are up: it serves, reloads when told, drains when told, and ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from trimtab.server.config import ConfigError
from trimtab.server.http.vllm_app import NoSignalServer
from trimtab.server.state import Site

LAST_WORDS = 2
"""Seconds that finished answers have to reach their clients once the engine has stopped."""
LOOK = 1.0
"""Seconds between two looks at the engines."""
TOLD_DEAD = 5.0
"""Seconds for which /health tells of a dead engine before the server ends, for nothing brings it back."""

log = logging.getLogger("trimtab")


class EngineDied(Exception):
    """The base's engine ended by itself."""


async def serve(app: FastAPI, site: Site, sock: socket.socket) -> None:
    """Until SIGTERM or SIGINT, and then until what is in flight is answered, or `limits.drain_s` are over, or a second
    signal comes. SIGHUP reloads the configuration. Raises EngineDied."""
    settings = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=LAST_WORDS)
    server = NoSignalServer(settings)
    app.state.server = server  # vLLM's own handlers end it when they meet a dead engine
    told: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.put_nowait, number)
    loop.add_signal_handler(signal.SIGHUP, _reload, site)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    watch = asyncio.create_task(_died(site))
    asked = asyncio.create_task(told.get())
    await asyncio.wait({serving, watch, asked}, return_when=asyncio.FIRST_COMPLETED)
    if asked.done():
        await _drained(site, told)
        await asyncio.to_thread(site.client.shutdown)  # what is left ends with an error of its own
    died = site.client.errored and not asked.done()
    server.should_exit = True
    for task in (watch, asked):
        task.cancel()
    with suppress(asyncio.CancelledError):
        await serving
    if died:
        raise EngineDied("the engine died; /health said so")


async def _died(site: Site) -> None:
    """Returns some time after the base's engine died."""
    while not site.client.errored:  # noqa: ASYNC110 - vLLM tells nobody
        await asyncio.sleep(LOOK)
    log.error("the engine died")
    await asyncio.sleep(TOLD_DEAD)


async def _drained(site: Site, told: asyncio.Queue[int]) -> None:
    """Returns when nothing is in flight, when the time for it is over, or when a second signal comes."""
    site.admission.closing = True
    left, limit = site.admission.requests, site.config.limits.drain_s
    log.info("told to stop; %d requests in flight have %g s", left, limit)
    with suppress(TimeoutError):
        async with asyncio.timeout(limit):
            again = asyncio.create_task(told.get())
            empty = asyncio.create_task(site.admission.wait_until_empty())
            await asyncio.wait({again, empty}, return_when=asyncio.FIRST_COMPLETED)
    log.info("%d requests in flight are cut off", site.admission.requests)


def _reload(site: Site) -> None:
    with suppress(ConfigError):  # told in the log
        site.reload()
