"""Waiting in tests, so that none of them depends on how fast the machine is."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

PATIENCE = 60.0
"""Seconds after which what has not happened never will. Only a test that fails waits for so long."""


async def until(happened: Callable[[], Any]) -> None:
    """Returns when it has, which a coroutine may tell too; raises TimeoutError where it never does."""

    async def look() -> Any:
        found = happened()
        return await found if inspect.isawaitable(found) else found

    async with asyncio.timeout(PATIENCE):
        while not await look():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


@contextmanager
def set_forward() -> Iterator[Callable[[float], None]]:
    """What sets the event loop's clock forward by so many seconds, which makes due what waits for them."""
    loop: Any = asyncio.get_running_loop()
    clock, ahead = loop.time, 0.0

    def forward(seconds: float) -> None:
        nonlocal ahead
        ahead += seconds

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "time", lambda: clock() + ahead)
        yield forward


@asynccontextmanager
async def skip_waits() -> AsyncIterator[None]:
    """The clock of the event loop, which is `time.monotonic`, stands still while anything is to be done. Where nothing
    is, it skips to the next time that is waited for. So work takes no time, and a wait as long as it says.

    What a thread of an executor does is work; what another process does is not seen, and would never come in time.
    """
    loop: Any = asyncio.get_running_loop()
    now, working = time.monotonic(), 0
    select, run_in_executor = loop._selector.select, loop.run_in_executor

    def skip(timeout: float | None = None) -> Any:
        nonlocal now
        if timeout is None or timeout <= 0 or working:
            return select(timeout)
        events = select(0)
        if not events:
            now += timeout
        return events

    def end_work(_: Any) -> None:
        nonlocal working
        working -= 1

    def run_and_count(*args: Any, **named: Any) -> Any:
        nonlocal working
        work = run_in_executor(*args, **named)
        working += 1
        work.add_done_callback(end_work)
        return work

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now)
        patch.setattr(loop._selector, "select", skip)
        patch.setattr(loop, "run_in_executor", run_and_count)
        yield
