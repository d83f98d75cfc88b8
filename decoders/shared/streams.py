"""Several streams of chunks as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from trimtab.decoders.protocols import Chunk


async def merge(streams: Sequence[AsyncGenerator[Chunk, None]]) -> AsyncGenerator[Chunk, None]:
    """Their chunks as they come. Closing it closes all of them, and so does what one of them raises."""
    arrived: asyncio.Queue[Chunk | Exception | None] = asyncio.Queue()

    async def drained(stream: AsyncGenerator[Chunk, None]) -> None:
        try:
            async with aclosing(stream):
                async for chunk in stream:
                    arrived.put_nowait(chunk)
            arrived.put_nowait(None)
        except Exception as error:
            arrived.put_nowait(error)

    tasks = [asyncio.create_task(drained(stream)) for stream in streams]
    going = len(tasks)
    try:
        while going:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                going -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
