"""Who may come in now: what all requests together may yet cost is bounded, and no caller may fill it alone.

What a request can cost is known before it begins: its strategy says so (`Strategy.work`). Costs are in tokens to
sample; a token that is only scored counts `limits.scored_weight` of one. In flight are the requests that were let in
and have not been answered: those that vLLM decodes, and those that wait in its queue.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

from trimtab.server.errors import ApiError
from trimtab.server.metrics import ADMITTED_TOKENS, CANDIDATES, CAPACITY, IN_FLIGHT, REFUSED

WINDOW = 30.0
"""Seconds over which the drain rate is measured."""
UNKNOWN_WAIT, LONGEST_WAIT = 5, 60
"""Seconds of Retry-After: where nothing has been answered yet, and at the most, for clients heed no longer one."""

Account = tuple[str, bool]
"""A caller, and whether it is its searches' account: its plain requests have another."""


@dataclass(kw_only=True)
class Admission:
    capacity: int
    """Tokens that all requests let in may cost together."""
    clock: Callable[[], float] = monotonic
    held: Counter[Account] = field(default_factory=Counter)
    closing: bool = False
    """Whether the server answers what it has begun, and begins nothing."""
    drained: deque[tuple[float, int]] = field(default_factory=deque)
    """(when, tokens) of the requests answered within `WINDOW`."""
    requests: int = 0
    empty: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.resize(self.capacity)

    def resize(self, capacity: int) -> None:
        self.capacity = capacity
        CAPACITY.set(capacity)

    @property
    def total(self) -> int:
        return self.held.total()

    @contextmanager
    def admit(self, account: Account, tokens: int, candidates: int = 1) -> Iterator[None]:
        """While a request is being answered; raises ApiError where it cannot be now, or ever.

        An account may hold no more than what is left free for others: alone, half of the capacity and a request.
        """
        if self.closing:
            REFUSED.labels("closing").inc()
            raise ApiError("the server is shutting down", code="shutting_down", status=503, retry_after=UNKNOWN_WAIT)
        if tokens > self.capacity:
            REFUSED.labels("too_large").inc()
            raise ApiError(
                f"this request can cost {tokens} tokens and would never fit limits.max_tokens, {self.capacity} on this "
                "server: ask for fewer or shorter answers (max_tokens), fewer candidates or steps, or set "
                "alignment.budget.max_sampled_tokens",
                code="out_of_range",
            )
        over = self.total + tokens - self.capacity
        beyond = self.held[account] + tokens - (self.capacity - self.total)
        if over > 0 or beyond > 0:
            reason = "capacity" if over > 0 else "share"
            REFUSED.labels(reason).inc()
            wait = self.wait(max(over, -(-beyond // 2)))  # what this account lets go of also becomes free
            cause = "the server is full" if over > 0 else "your requests fill your share of the server"
            raise ApiError(f"{cause}: retry in {wait} s", code="rate_limit_exceeded", status=429, retry_after=wait)
        self.held[account] += tokens
        self._count(1, candidates)
        try:
            yield
        finally:
            self.held[account] -= tokens
            if not self.held[account]:
                del self.held[account]
            self.drained.append((self.clock(), tokens))
            self._count(-1, -candidates)

    async def wait_until_empty(self) -> None:
        """Returns once nothing is in flight."""
        if self.requests:
            self.empty.clear()
            await self.empty.wait()

    def wait(self, tokens: int) -> int:
        """Seconds until so many tokens will have gone, at the rate of late."""
        since = self.clock() - WINDOW
        while self.drained and self.drained[0][0] < since:
            self.drained.popleft()
        gone = sum(tokens for _, tokens in self.drained)
        if not gone:
            return UNKNOWN_WAIT
        rate = gone / max(1.0, self.clock() - self.drained[0][0])
        return min(LONGEST_WAIT, math.ceil(tokens / rate))

    def _count(self, requests: int, candidates: int) -> None:
        self.requests += requests
        if not self.requests:
            self.empty.set()
        ADMITTED_TOKENS.set(self.total)
        IN_FLIGHT.inc(requests)
        CANDIDATES.inc(candidates)
