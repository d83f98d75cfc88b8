"""Shares of the engine: who waits for whom, on an engine that serves a fixed number of tokens at a time."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from trimtab.runtime.shares import MAX_ACCOUNTS, Shares


@dataclass
class Queue:
    """vLLM's queue by priority, then by arrival; one call at a time."""

    shares: Shares = field(default_factory=Shares)
    waiting: list[tuple[int, int, str, bool, int]] = field(default_factory=list)
    arrivals: Any = field(default_factory=count)
    got: Counter[str] = field(default_factory=Counter)

    def send(self, caller: str, tokens: int, *, search: bool = True) -> None:
        start = self.shares.enqueue(caller, search=search, tokens=tokens)
        heapq.heappush(self.waiting, (start, next(self.arrivals), caller, search, tokens))

    def serve(self, *, drawn: float = 1.0) -> str:
        start, _, caller, search, tokens = heapq.heappop(self.waiting)
        self.shares.advance(start)
        self.shares.refund(caller, search=search, tokens=tokens - round(tokens * drawn))
        self.got[caller] += round(tokens * drawn)
        return caller


def test_a_crowd_of_calls_gets_no_more_than_a_single_caller() -> None:
    """One sends 64 calls at once and as many again as they end; the other one at a time, of a tenth of the tokens."""
    queue = Queue()
    for _ in range(64):
        queue.send("many", 100)
    queue.send("few", 10)
    for _ in range(4000):
        caller = queue.serve()
        queue.send(caller, 100 if caller == "many" else 10)
    assert queue.got["few"] / queue.got["many"] == pytest.approx(1, abs=0.02)


def test_what_is_not_drawn_is_not_charged() -> None:
    """Answers that end after a tenth of what they might have drawn cost a tenth."""
    queue = Queue()
    for caller in ("short", "long"):
        queue.send(caller, 1000)
    for _ in range(2000):
        caller = queue.serve(drawn=0.1 if queue.waiting[0][2] == "short" else 1.0)
        queue.send(caller, 1000)
    assert queue.got["short"] / queue.got["long"] == pytest.approx(1, abs=0.02)


def test_nobody_saves_up_by_being_idle() -> None:
    queue = Queue()
    queue.send("early", 50)
    for _ in range(100):
        queue.send(queue.serve(), 50)
    before = Counter(queue.got)
    queue.send("late", 50)
    for _ in range(1000):
        queue.send(queue.serve(), 50)
    gained = queue.got - before
    assert gained["late"] / gained["early"] == pytest.approx(1, abs=0.02)


def test_a_newcomer_is_served_next() -> None:
    queue = Queue()
    for _ in range(64):
        queue.send("searcher", 100)
    queue.serve()
    queue.send("newcomer", 100)
    assert [queue.serve() for _ in range(2)].count("newcomer") == 1


def test_plain_requests_do_not_wait_behind_their_caller_s_searches() -> None:
    queue = Queue()
    for _ in range(64):
        queue.send("one", 100, search=True)
    queue.serve()
    queue.send("one", 100, search=False)
    served = [heapq.heappop(queue.waiting)[3] for _ in range(2)]
    assert False in served


def test_two_accounts_are_no_second_share() -> None:
    """In the long run, a caller with plain requests and searches gets as many tokens as one with searches alone."""
    queue = Queue()
    for _ in range(8):
        queue.send("both", 50, search=True)
        queue.send("both", 50, search=False)
        queue.send("one", 50, search=True)
    for _ in range(60_000):
        _, _, _, search, _ = queue.waiting[0]
        queue.send(queue.serve(), 50, search=search)
    assert queue.got["both"] / queue.got["one"] == pytest.approx(1, abs=0.03)


def test_callers_that_have_been_served_are_forgotten() -> None:
    shares = Shares()
    for i in range(10 * MAX_ACCOUNTS):
        start = shares.enqueue(f"caller {i}", search=True, tokens=1)
        shares.refund(f"caller {i}", search=True, tokens=1)
        shares.advance(start)
    assert len(shares.finish) <= MAX_ACCOUNTS + 1
