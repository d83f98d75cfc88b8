"""Sends requests when they are due, in an open or a closed loop, and waits for the last."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from trimtab.bench.load.arrival import ARRIVALS
from trimtab.bench.load.exchange import Exchange, Outcome
from trimtab.bench.load.mix import Request

Send = Callable[[Exchange], Awaitable[None]]

PAUSE = 0.1
"""Seconds that a closed loop's client waits after a failed connection, so as not to spin on a dead server."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """`rate` or `concurrency`, until `duration` or `requests` (or the first of both) is reached."""

    rate: float | None = None
    """Requests per second of an open loop, whether earlier ones are answered or not."""
    concurrency: int | None = None
    """Clients of a closed loop, each of which sends its next request when its last is answered."""
    arrival: str = "poisson"
    duration: float | None = None
    """Seconds after the warm-up."""
    requests: int | None = None
    """After the warm-up."""
    warmup: float = 0.0
    """Seconds in which requests are sent and not counted."""
    drain: float = 30.0
    """Seconds after the last request was due in which requests may end."""
    seed: int = 0

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g} requests/s, {self.arrival}"
        return f"{self.concurrency} clients"


@dataclass(frozen=True, kw_only=True)
class LoadRun:
    load: Load
    exchanges: tuple[Exchange, ...]
    """Those that count, in the order in which they were due."""
    start: float
    """When counting began, by `time.monotonic`."""
    span: float
    """Seconds from `start` to the end of the last request, but at least the load's duration."""


async def run(load: Load, drawn: Iterator[Request], send: Send, ended: Callable[[], object] = lambda: None) -> LoadRun:
    """`ended` is called at the end of each counted request. Errors of `send` are raised in an exception group."""
    loop = asyncio.get_running_loop()
    began = time.monotonic()
    start = began + load.warmup
    last = math.inf if load.duration is None else start + load.duration
    exchanges: list[Exchange] = []
    counted = 0

    def due(moment: float) -> Exchange | None:
        """The request for this moment; None when the load has ended."""
        nonlocal counted
        if moment >= last or counted == load.requests or patience.expired():
            return None
        exchanges.append(Exchange(request=next(drawn), intended=moment, counted=moment >= start))
        counted += exchanges[-1].counted
        if counted == load.requests:  # no client sends another request: the drain begins here
            wait = moment - time.monotonic() + load.drain
            patience.reschedule(min(loop.time() + wait, patience.when() or math.inf))
        return exchanges[-1]

    async def exchange(one: Exchange) -> None:
        await send(one)
        if one.counted:
            ended()

    async def client() -> None:
        while (one := due(time.monotonic())) is not None:
            await exchange(one)
            if one.outcome is Outcome.CONNECTION:
                await asyncio.sleep(PAUSE)

    async def on_time(rate: float, tasks: asyncio.TaskGroup) -> None:
        for offset in ARRIVALS[load.arrival](rate, random.Random(f"arrivals {load.seed}")):
            if (one := due(began + offset)) is None:
                return
            await asyncio.sleep(one.intended - time.monotonic())
            tasks.create_task(exchange(one))

    limit = None if load.duration is None else load.warmup + load.duration + load.drain
    with contextlib.suppress(TimeoutError):  # requests still in flight are incomplete
        async with asyncio.timeout(limit) as patience, asyncio.TaskGroup() as tasks:
            if load.rate is not None:
                await on_time(load.rate, tasks)
            else:
                for _ in range(load.concurrency or 0):
                    tasks.create_task(client())
    counts = tuple(one for one in exchanges if one.counted)
    ends = [one.ended for one in counts if one.ended is not None]
    return LoadRun(load=load, exchanges=counts, start=start, span=max([*ends, start + (load.duration or 0.0)]) - start)
