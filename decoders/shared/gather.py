"""Concurrent calls of which none outlives the first failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

Result = TypeVar("Result")


@asynccontextmanager
async def join_or_cancel() -> AsyncIterator[asyncio.TaskGroup]:
    """A group of tasks, all ended when it closes. The first failure, of a task or inside, cancels the rest and is
    raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def gather_or_cancel(calls: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results in order. The first failure cancels the rest and is raised; `asyncio.gather` lets them run."""
    async with join_or_cancel() as group:
        tasks = [group.create_task(call) for call in calls]
    return [task.result() for task in tasks]
