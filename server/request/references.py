"""Answers of the frozen base that transforms compare with: drawn apart from the requests that need them, and scored.

What is remembered depends on its key alone. A drawing has a `Usage` of its own, so no request's budget or deadline ends
it, and seeds of its own; requests with one key that come at a time share it. One that leaves takes it from nobody: it
is cancelled with the last that waits, and the next draws anew. Of what was drawn, each token is counted once, as that
request's which first ceased to wait since; the request's budget does not pay for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from trimtab.decoders.protocols import Tokens
from trimtab.runtime.usage import Usage
from trimtab.server.request.reward_tree import Rows

MAX_SCORES = 2**20
"""Of reference answers, that are remembered together."""

Draw = Callable[[Usage], Awaitable[Rows]]


def make_key(*parts: object) -> str:
    """A digest of all that scores depend on: as long for a short prompt as for a long one."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def make_seed(prompt: Tokens, max_tokens: int) -> int:
    """The seed of a prompt's reference answers, the i-th of which is the same however many are drawn.

    A digest, so that nobody comes upon it: an answer drawn by the seed of its own reference would tie with it.
    """
    digest = hashlib.sha256(json.dumps(["reference", list(prompt), max_tokens]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


@dataclass(kw_only=True)
class Drawing:
    """References on their way, for all who wait for them."""

    usage: Usage = field(default_factory=Usage)
    task: asyncio.Task[Rows]
    waiters: int = 0
    counted_sampled: int = 0
    counted_scored: int = 0

    def count(self, usage: Usage) -> None:
        """What was spent since the last waiter went is this one's."""
        usage.reference_tokens += self.usage.sampled - self.counted_sampled
        usage.sampled += self.usage.sampled - self.counted_sampled
        usage.scored += self.usage.scored - self.counted_scored
        self.counted_sampled, self.counted_scored = self.usage.sampled, self.usage.scored


@dataclass(kw_only=True)
class ReferenceScores:
    """leaf -> [M] scores of reference answers, by key; the least recently used are forgotten."""

    remembered: OrderedDict[str, Rows] = field(default_factory=OrderedDict)
    drawings: dict[str, Drawing] = field(default_factory=dict)
    size: int = 0
    """Scores that are remembered."""

    async def get(self, key: str, draw: Draw, usage: Usage) -> Rows:
        """The scores, drawn by `draw` if nobody has; raises what `draw` raises, and remembers nothing then.

        `usage` is the request's.
        """
        if key in self.remembered:
            self.remembered.move_to_end(key)
            return self.remembered[key]
        drawing = self.drawings.get(key) or self._begin(key, draw)
        drawing.waiters += 1
        try:
            await asyncio.wait({drawing.task})
            return drawing.task.result()
        finally:
            drawing.waiters -= 1
            drawing.count(usage)
            if not drawing.waiters and not drawing.task.done():
                self._end(key, drawing)
                drawing.task.cancel()
                await asyncio.wait({drawing.task})

    def _begin(self, key: str, draw: Draw) -> Drawing:
        usage = Usage()

        async def run() -> Rows:
            return await draw(usage)

        drawing = Drawing(usage=usage, task=asyncio.create_task(run()))
        self.drawings[key] = drawing

        def end(task: asyncio.Task[Rows]) -> None:
            self._end(key, drawing)
            if not task.cancelled() and task.exception() is None:
                self._remember(key, task.result())

        drawing.task.add_done_callback(end)
        return drawing

    def _end(self, key: str, drawing: Drawing) -> None:
        """Whoever comes next draws anew, unless another drawing has begun already."""
        if self.drawings.get(key) is drawing:
            del self.drawings[key]

    def _remember(self, key: str, rows: Rows) -> None:
        self.remembered[key] = rows
        self.size += count_scores(rows)
        while self.size > MAX_SCORES and len(self.remembered) > 1:
            _, oldest = self.remembered.popitem(last=False)
            self.size -= count_scores(oldest)


def count_scores(rows: Rows) -> int:
    return sum(map(len, rows.values()))
