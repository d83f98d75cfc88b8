"""Fair shares of one engine, by tokens: start-time fair queueing over callers, in vLLM's own priority queue.

    S = max(v, F_u),    F_u <- S + m                                                                                (1)
    v <- max(v, S) as a call's first token comes,    F_u <- F_u - (m - drawn) as it ends                            (2)

A call of caller u that may draw m tokens waits in the engine with priority S, smallest first (Goyal et al., 1996; by
tokens and for language models, arXiv 2401.00588). A caller that was idle begins at v, where the queue is being served,
and neither pays for having been busy alone nor saves up.

A caller has two accounts: its plain requests do not wait behind its own searches. What they draw is charged to the
searches' account as well, so that two accounts are no second share.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

KEPT = 1024
"""Accounts beyond which those that tell nothing any more are forgotten."""


@dataclass(kw_only=True)
class Shares:
    """The virtual time v, and per account the time F at which what it has sent will have been served."""

    now: int = 0
    finish: dict[tuple[str, bool], int] = field(default_factory=dict)

    def sent(self, caller: str, *, search: bool, tokens: int) -> int:
        """S of a call."""
        start = max(self.now, self.finish.get((caller, search), 0))  # (1)
        for account in {(caller, search), (caller, True)}:
            self.finish[account] = max(self.now, self.finish.get(account, 0)) + tokens
        if len(self.finish) > KEPT:
            self.finish = {account: finish for account, finish in self.finish.items() if finish > self.now}
        return start

    def served(self, start: int) -> None:
        self.now = max(self.now, start)  # (2)

    def returned(self, caller: str, *, search: bool, tokens: int) -> None:
        """Tokens of a call that has ended without drawing them."""
        for account in {(caller, search), (caller, True)}:
            if account in self.finish:
                self.finish[account] -= tokens


@dataclass(kw_only=True)
class Turn:
    """One HTTP request at the engine: whose calls they are, and what came of them."""

    shares: Shares | None = None
    """None where vLLM's own scheduling is left alone."""
    caller: str = ""
    search: bool = False
    prompt: int = 0
    """Tokens of its prompts, as the answer's usage tells them."""
    visible: int = 0
    """Tokens that the client was given."""
    first: float | None = None
    """When the first of them came, on the loop's clock."""
    cancelled: int = 0
    """Calls that ended before their answers did."""

    def show(self, tokens: int) -> None:
        self.visible += tokens
        if self.first is None and tokens:
            self.first = asyncio.get_running_loop().time()

    async def through(
        self,
        generate: Callable[..., AsyncGenerator[RequestOutput, None]],
        params: SamplingParams,
        *,
        shown: bool = False,
        **context: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """A call's outputs, in its turn; `generate` is given a priority where shares are kept.

        `shown`: whether the client sees them as they are.
        """
        most = params.n * (params.max_tokens or 1)
        start = None
        if self.shares is not None:
            start = self.shares.sent(self.caller, search=self.search, tokens=most)
            context["priority"] = start
        ended = False
        drawn: dict[int, int] = {}
        pieces = params.output_kind == RequestOutputKind.DELTA
        try:
            async with aclosing(generate(**context)) as outputs:
                async for output in outputs:
                    if start is not None and self.shares is not None:
                        self.shares.served(start)
                    for piece in output.outputs:
                        before = drawn.get(piece.index, 0) if pieces else 0
                        drawn[piece.index] = before + len(piece.token_ids)
                        if shown:
                            self.show(len(piece.token_ids))
                    ended = output.finished
                    yield output
        finally:
            self.cancelled += not ended
            if self.shares is not None:
                left = most - sum(drawn.values())
                self.shares.returned(self.caller, search=self.search, tokens=left)


turn: ContextVar[Turn | None] = ContextVar("turn", default=None)
