"""Whether an engine still works: its core answers a call between two of its steps, or has not for too long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic

from vllm.v1.engine.exceptions import EngineDeadError

PERIOD_S = 2.0
"""Between an answer and the next call."""

log = logging.getLogger("trimtab")


@dataclass(kw_only=True)
class Heartbeat:
    """One call of an engine after another; it answers none while it is stopped or a step of it hangs."""

    name: str
    """The engine's, for the log."""
    call: Callable[[], Awaitable[object]]
    timeout_s: Callable[[], float]
    """How long an engine may take to answer, as the configuration has it now: longer than its longest step."""
    waiting_since: float | None = field(default=None, init=False)
    """When the call that waits for its answer was made; None: none waits."""

    @property
    def stalled(self) -> bool:
        return self.waiting_since is not None and monotonic() - self.waiting_since > self.timeout_s()

    async def run(self) -> None:
        """Until it is cancelled, or the engine has died."""
        with suppress(EngineDeadError):
            while True:
                self.waiting_since = monotonic()
                try:
                    await self._wait_for_answer()
                finally:
                    self.waiting_since = None
                await asyncio.sleep(PERIOD_S)

    async def _wait_for_answer(self) -> None:
        answer = asyncio.ensure_future(self.call())
        try:
            done, _ = await asyncio.wait({answer}, timeout=self.timeout_s())
            if not done:
                log.error("the engine of %s has not answered for %g s: /health is red", self.name, self.timeout_s())
                await answer
                log.info("the engine of %s answers again", self.name)
            answer.result()
        finally:
            answer.cancel()
