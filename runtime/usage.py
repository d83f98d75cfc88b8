"""What one HTTP request has spent of the engine, and what it may spend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from trimtab.decoders.protocols import LimitReached


@dataclass(kw_only=True)
class Usage:
    """Tokens, shared by all that a request draws and has scored."""

    max_sampled_tokens: int | None = None
    deadline: float | None = None
    """On the event loop's clock, in seconds."""
    prompt: int = 0
    """Of its prompts, as the response's usage counts them."""
    visible: int = 0
    """That the client gets."""
    sampled: int = 0
    """Drawn, visible or not."""
    reference_tokens: int = 0
    """Of `sampled`, answers of the base that rewards compare with. They serve later requests too, so whether they had
    to be drawn may not show in what a budget leaves."""
    scored: int = 0
    """Read beside the prompts: whose log-prob or reward was computed, once per mixture and per reward, and of prompts
    under an instruction."""
    cancelled_calls: int = 0
    """Calls of the engine that ended before their answers did."""
    first_visible_at: float | None = None
    """When the first visible token came, on the event loop's clock."""
    limit: str | None = None
    """Of `decoders.protocols.LIMIT_REASONS`, what first ended an answer before its time."""

    @property
    def remaining(self) -> int | None:
        """Tokens that may yet be drawn; None: any number."""
        if self.max_sampled_tokens is None:
            return None
        return max(0, self.max_sampled_tokens + self.reference_tokens - self.sampled)

    @property
    def bounded(self) -> bool:
        return self.max_sampled_tokens is not None or self.deadline is not None

    @asynccontextmanager
    async def within_deadline(self) -> AsyncIterator[None]:
        """What is awaited inside is cancelled as the deadline passes; raises LimitReached then, and after it."""
        if self.deadline is not None and asyncio.get_running_loop().time() >= self.deadline:
            raise self.reach("deadline")
        try:
            async with asyncio.timeout_at(self.deadline) as time:
                yield
        except TimeoutError:
            if not time.expired():
                raise
            raise self.reach("deadline") from None

    def reach(self, reason: str) -> LimitReached:
        """The limit, recorded, as what to raise."""
        self.record_limit(reason)
        return LimitReached(reason)

    def record_visible(self, tokens: int) -> None:
        self.visible += tokens
        if self.first_visible_at is None and tokens:
            self.first_visible_at = asyncio.get_running_loop().time()

    def record_limit(self, reason: str) -> None:
        self.limit = self.limit or reason
