"""Work of a reward that is let in in turn, and the clock that its timeout goes by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from trimtab.decoders.shared.gather import gather_or_cancel

Result = TypeVar("Result")

READINGS = 8
"""Calls that one request has under way at a judge, or at the base for its rewards, at a time."""


@dataclass
class Clock:
    """When the work of one call of a reward was last seen to go on, by `time.monotonic`."""

    at: float = field(default_factory=lambda: time.monotonic())


current_clock: ContextVar[Clock | None] = ContextVar("current_clock", default=None)


def restart_clock() -> None:
    """A part of the work is done, or begins after a wait: whoever waits for the reward counts from here."""
    if (clock := current_clock.get()) is not None:
        clock.at = time.monotonic()


async def gather_in_turn(
    turns: asyncio.Semaphore, calls: Iterable[Callable[[], Coroutine[Any, Any, Result]]]
) -> list[Result]:
    """The results in order, each call made when it gets one of the turns; the first failure cancels the rest."""

    async def make(call: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        async with turns:
            result = await call()
        restart_clock()
        return result

    return await gather_or_cancel(make(call) for call in calls)
