"""Sends requests when they are due, open loop or closed, and waits for the last of them."""

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
"""Seconds that a closed loop's client waits after it could not connect, so as not to spin on a dead server."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much, and for how long: `rate` or `concurrency`, `duration` or `requests` or both, whichever ends first."""

    rate: float | None = None
    """Requests per second, whether earlier ones are answered or not: an open loop."""
    concurrency: int | None = None
    """Clients, each sending its next request when its last is answered: a closed loop."""
    arrival: str = "poisson"
    duration: float | None = None
    """Seconds after the warm-up."""
    requests: int | None = None
    """After the warm-up."""
    warmup: float = 0.0
    """Seconds whose requests are sent and not counted."""
    drain: float = 30.0
    """Seconds that requests have to end after the last was due."""
    seed: int = 0

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g} requests/s, {self.arrival}"
        return f"{self.concurrency} clients"


@dataclass(frozen=True, kw_only=True)
class LoadRun:
    load: Load
    exchanges: tuple[Exchange, ...]
    """The counted ones, in the order in which they were due."""
    start: float
    """When counting began, on the clock of `time.monotonic`."""
    span: float
    """Seconds from there to the last counted request's end, and no less than the load's duration."""


async def run(load: Load, drawn: Iterator[Request], send: Send, ended: Callable[[], object] = lambda: None) -> LoadRun:
    """`ended` is called at each end of a counted request. Raises, in a group, what a bug in `send` raises."""
    loop = asyncio.get_running_loop()
    began = time.monotonic()
    start = began + load.warmup
    last = math.inf if load.duration is None else start + load.duration
    exchanges: list[Exchange] = []
    counted = 0

    def due(moment: float) -> Exchange | None:
        """The request of that moment; None when there is none any more."""
        nonlocal counted
        if moment >= last or counted == load.requests or patience.expired():
            return None
        exchanges.append(Exchange(request=next(drawn), intended=moment, counted=moment >= start))
        counted += exchanges[-1].counted
        if counted == load.requests:  # clients that wait for an answer ask for no more: the drain begins here
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
    with contextlib.suppress(TimeoutError):  # those that it leaves in flight are incomplete
        async with asyncio.timeout(limit) as patience, asyncio.TaskGroup() as tasks:
            if load.rate is not None:
                await on_time(load.rate, tasks)
            else:
                for _ in range(load.concurrency or 0):
                    tasks.create_task(client())
    counts = tuple(one for one in exchanges if one.counted)
    ends = [one.ended for one in counts if one.ended is not None]
    return LoadRun(load=load, exchanges=counts, start=start, span=max([*ends, start + (load.duration or 0.0)]) - start)
