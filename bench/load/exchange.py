"""One request and its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from trimtab.bench.load.mix import Request


class Outcome(StrEnum):
    """Every request ends in exactly one."""

    OK = "ok"
    LIMITED = "cut"
    """Answered, but ended by a deadline or a budget, as `alignment.outcome` says."""
    DEGRADED = "degraded"
    """Answered by plain decoding, because a reward failed."""
    EXPECTED = "expected"
    """Refused with the status that its entry expects."""
    REFUSED = "429"
    ERROR = "error"
    """Another status than 200, a stream that ends with an error, or a body that is no answer."""
    UNEXPECTED = "unexpected"
    """Its entry expects an error status, and it was answered or got another one (429 apart)."""
    CONNECTION = "connection"
    """The connection failed before an answer began."""
    INCOMPLETE = "incomplete"
    """Still in flight at the end of the run, or an answer that broke off."""
    DISCONNECTED = "disconnected"
    """The client hung up on purpose."""


@dataclass(kw_only=True)
class Exchange:
    """Filled in while the answer arrives. Moments are seconds of `time.monotonic`."""

    request: Request
    intended: float
    """When it was due; it may have been sent later."""
    counted: bool = True
    """False in the warm-up."""
    sent: float | None = None
    ended: float | None = None
    """None while it is in flight."""
    first: float | None = None
    """When a stream's first visible text arrived."""
    status: int | None = None
    retry_after: str | None = None
    should_retry: str | None = None
    """The header x-should-retry, by which a server says whether another try can help."""
    finished: bool = False
    """Whether the whole answer arrived."""
    failure: str | None = None
    """Error message of the server or the network."""
    hung_up: bool = False
    usage: Mapping[str, Any] = field(default_factory=dict)
    alignment: Mapping[str, Any] = field(default_factory=dict)
    document: Mapping[str, Any] = field(default_factory=dict)
    """The whole answer, where its request has it kept and it is no stream."""

    @property
    def outcome(self) -> Outcome:
        if self.hung_up:
            return Outcome.DISCONNECTED
        if self.status is None and self.failure is not None:
            return Outcome.CONNECTION
        if self.status is None or self.ended is None or not self.finished:
            return Outcome.INCOMPLETE
        expect = self.request.entry.expect
        if self.status == expect != 200:
            return Outcome.EXPECTED
        if self.status == 429:
            return Outcome.REFUSED
        if expect != 200:
            return Outcome.UNEXPECTED
        if self.status != 200 or self.failure is not None:
            return Outcome.ERROR
        outcome = self.alignment.get("outcome", "ok")
        return Outcome.OK if outcome == "ok" else Outcome.DEGRADED if outcome == "degraded" else Outcome.LIMITED

    @property
    def latency(self) -> float | None:
        """Seconds from when it was due to its end."""
        return None if self.ended is None else self.ended - self.intended

    @property
    def service(self) -> float | None:
        """Seconds from sending to its end."""
        return None if self.ended is None or self.sent is None else self.ended - self.sent

    @property
    def until_visible(self) -> float | None:
        return None if self.first is None else self.first - self.intended

    @property
    def lateness(self) -> float | None:
        """Seconds that the generator sent it late."""
        return None if self.sent is None else self.sent - self.intended

    @property
    def visible_tokens(self) -> int | None:
        """None for an answer without usage."""
        return _count(self.usage, "completion_tokens")

    @property
    def sampled_tokens(self) -> int | None:
        """Drawn, visible or not; None for a server that does not report them."""
        return _count(self._work, "sampled_tokens")

    @property
    def scored_tokens(self) -> int | None:
        return _count(self._work, "scored_tokens")

    @property
    def total_tokens(self) -> int | None:
        """Sampled and scored; the visible ones if the server does not report these."""
        if self.sampled_tokens is None:
            return self.visible_tokens
        return self.sampled_tokens + (self.scored_tokens or 0)

    @property
    def _work(self) -> Mapping[str, Any]:
        """The report of what was drawn and scored: of the alignment, or else of the usage."""
        for counts in (self.alignment, self.usage.get("completion_tokens_details")):
            if isinstance(counts, Mapping) and _count(counts, "sampled_tokens") is not None:
                return counts
        return {}


def _count(counts: Mapping[str, Any], name: str) -> int | None:
    value = counts.get(name)
    return value if type(value) is int else None
