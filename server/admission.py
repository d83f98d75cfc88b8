"""Who may come in now: how long a request may wait is bounded, and no caller may fill the server alone.

What a request can cost is known before it begins: its strategy says so (`Strategy.work`). Costs are in tokens to
sample; a token that is only read counts `limits.scored_weight` of one. In flight are the requests that were let in and
have not been answered: those that vLLM decodes, and those that wait in its queue.

Where `limits.max_tokens` is set, it bounds what is in flight. Where it is not, the wait is bounded: with H_a what
account a has in flight, H all of them, A accounts and R the tokens that were let go of a second of late,

    wait of a request of m tokens = min(H + m, A (H_a + m)) / R  <=  limits.max_wait_s                              (1)

the second term being its wait where callers take turns. R is measured over the seconds since the first of them
in which something was in flight. Requests whose answers fit one batch of the engine's do not wait, whatever (1) says.
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
class Hold:
    """What one request holds while it is being answered."""

    admission: Admission
    account: Account
    tokens: int

    def settle(self, tokens: int) -> None:
        """It can cost so many tokens, as is known now."""
        if self.account in self.admission.held:
            self.admission.held[self.account] += tokens - self.tokens
            self.tokens = tokens
            ADMITTED_TOKENS.set(self.admission.total)


@dataclass(kw_only=True)
class Admission:
    capacity: int
    """Tokens that all requests let in may cost together."""
    max_wait: float | None = None
    """Seconds that a request may wait, by (1); None: what is in flight is bounded by the capacity alone."""
    batch: int = 0
    """Answers that the engine draws side by side."""
    clock: Callable[[], float] = monotonic
    held: Counter[Account] = field(default_factory=Counter)
    closing: bool = False
    """Whether the server answers what it has begun, and begins nothing."""
    drained: deque[tuple[float, int]] = field(default_factory=deque)
    """(when, tokens) of the requests answered within `WINDOW`."""
    busy: deque[tuple[float, float]] = field(default_factory=deque)
    """(from, to) of the times within `WINDOW` in which something was in flight; the last one may be going on."""
    requests: int = 0
    candidates: int = 0
    """Answers in the making, of all requests in flight."""
    empty: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.resize(self.capacity, self.max_wait)

    def resize(self, capacity: int, max_wait: float | None = None) -> None:
        self.capacity, self.max_wait = capacity, max_wait
        CAPACITY.set(capacity)

    @property
    def total(self) -> int:
        return self.held.total()

    @contextmanager
    def admit(self, account: Account, tokens: int, candidates: int = 1) -> Iterator[Hold]:
        """While a request is being answered; raises ApiError where it cannot be now, or ever.

        By the capacity, an account may hold no more than what is left free for others: alone, half of it and a request.
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
            # What this account lets go of also becomes free.
            self._refuse(wait=self.wait(max(over, -(-beyond // 2))), by_share=over <= 0)
        expected = self.expected_wait(account, tokens)
        if expected is not None and self.requests and self.candidates + candidates > self.batch:
            late = expected - (self.max_wait or math.inf)
            if late > 0:
                accounts = len({*self.held} | {account})
                self._refuse(wait=max(1, min(LONGEST_WAIT, math.ceil(late))), by_share=accounts > 1)
        hold = Hold(admission=self, account=account, tokens=tokens)
        self.held[account] += tokens
        self._count(1, candidates)
        try:
            yield hold
        finally:
            self.held[account] -= hold.tokens
            if not self.held[account]:
                del self.held[account]
            self.drained.append((self.clock(), hold.tokens))
            self._count(-1, -candidates)

    async def wait_until_empty(self) -> None:
        """Returns once nothing is in flight."""
        if self.requests:
            self.empty.clear()
            await self.empty.wait()

    def expected_wait(self, account: Account, tokens: int) -> float | None:
        """(1), in seconds; None where nothing bounds it, or nothing has been measured."""
        rate = self.rate() if self.max_wait is not None else 0.0
        if not rate:
            return None
        accounts = len({*self.held} | {account})
        return min(self.total + tokens, accounts * (self.held[account] + tokens)) / rate  # (1)

    def rate(self) -> float:
        """R, in tokens a second; 0 where nothing has been answered of late."""
        now = self.clock()
        since = now - WINDOW
        while self.drained and self.drained[0][0] < since:
            self.drained.popleft()
        while self.busy and self.busy[0][1] < since:
            self.busy.popleft()
        first = self.drained[0][0] if self.drained else now
        seconds = sum(max(0.0, min(to, now) - max(start, first)) for start, to in self.busy)
        return sum(tokens for _, tokens in self.drained) / max(1.0, seconds)

    def wait(self, tokens: int) -> int:
        """Seconds until so many tokens will have gone, at the rate of late."""
        rate = self.rate()
        return min(LONGEST_WAIT, math.ceil(tokens / rate)) if rate else UNKNOWN_WAIT

    def _refuse(self, *, wait: int, by_share: bool) -> None:
        REFUSED.labels("share" if by_share else "capacity").inc()
        cause = "your requests fill your share of the server" if by_share else "the server is full"
        raise ApiError(f"{cause}: retry in {wait} s", code="rate_limit_exceeded", status=429, retry_after=wait)

    def _count(self, requests: int, candidates: int) -> None:
        now = self.clock()
        if requests > 0 and not self.requests:
            self.busy.append((now, math.inf))
        self.requests += requests
        self.candidates += candidates
        if not self.requests:
            self.busy.append((self.busy.pop()[0], now))
            self.empty.set()
        ADMITTED_TOKENS.set(self.total)
        IN_FLIGHT.inc(requests)
        CANDIDATES.inc(candidates)
