"""Work that grows with a body, beside the event loop instead of on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

SMALL = 32 * 1024
"""Bytes, or characters, whose handling takes no longer than handing them to a thread and back."""
WORKERS = 2
"""Threads. What they do is Python for the most part, so more of them would only take turns."""

Result = TypeVar("Result")

_executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="trimtab-body")


async def run_beside(size: int, function: Callable[..., Result], *args: Any) -> Result:
    """What the function returns or raises; in a thread where what it handles is large."""
    if size <= SMALL:
        return function(*args)
    call = partial(copy_context().run, function, *args)
    return await asyncio.get_running_loop().run_in_executor(_executor, call)
