"""Fair shares of one engine, by tokens: start-time fair queueing over callers, in the engine's own priority queue.

    S = max(v, F_u),    F_u <- S + m                                                                                (1)
    v <- max(v, S) as a call's first token comes,    F_u <- F_u - (m - drawn) as it ends                            (2)

A call of caller u that may draw m tokens waits in the engine with priority S, smallest first (Goyal et al., 1996; by
tokens and for language models, arXiv 2401.00588). A caller that was idle begins at v, where the queue is being served,
and neither pays for having been busy alone nor saves up.

A caller has two accounts: its plain requests do not wait behind its own searches. What they draw is charged to the
searches' account as well, so that two accounts are no second share.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

MAX_ACCOUNTS = 1024
"""Beyond it, accounts that have been served are dropped: they say nothing any more."""


@dataclass(kw_only=True)
class Shares:
    """The virtual time v, and per account the time F at which all its calls will have been served."""

    now: int = 0
    finish: dict[tuple[str, bool], int] = field(default_factory=dict)

    def enqueue(self, caller: str, *, search: bool, tokens: int) -> int:
        """S of a call."""
        start = max(self.now, self.finish.get((caller, search), 0))  # (1)
        for account in {(caller, search), (caller, True)}:
            self.finish[account] = max(self.now, self.finish.get(account, 0)) + tokens
        if len(self.finish) > MAX_ACCOUNTS:
            self.finish = {account: finish for account, finish in self.finish.items() if finish > self.now}
        return start

    def advance(self, start: int) -> None:
        self.now = max(self.now, start)  # (2)

    def refund(self, caller: str, *, search: bool, tokens: int) -> None:
        """Tokens of a call that has ended without drawing them."""
        for account in {(caller, search), (caller, True)}:
            if account in self.finish:
                self.finish[account] -= tokens


@dataclass(frozen=True, kw_only=True)
class RequestShare:
    """Whose share of the engine a request's calls take."""

    shares: Shares | None = None
    """None where the engine's own scheduling is left alone."""
    caller: str = ""
    search: bool = False

    @contextmanager
    def schedule(self, tokens: int) -> Iterator[ScheduledCall]:
        """A call that may draw so many tokens: charged while it runs, and refunded what it has not drawn."""
        call = ScheduledCall(shares=self.shares)
        if self.shares is not None:
            call.priority = self.shares.enqueue(self.caller, search=self.search, tokens=tokens)
        try:
            yield call
        finally:
            if self.shares is not None:
                self.shares.refund(self.caller, search=self.search, tokens=tokens - call.drawn)


@dataclass(kw_only=True)
class ScheduledCall:
    """One call of the engine in a request's share."""

    shares: Shares | None
    priority: int | None = None
    """S; None where the engine's own scheduling is left alone."""
    drawn: int = 0

    def record(self, drawn: int) -> None:
        """Tokens that it has drawn so far: the queue has come to it."""
        self.drawn = drawn
        if self.shares is not None and self.priority is not None:
            self.shares.advance(self.priority)
