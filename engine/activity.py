"""When an engine was last seen to do something for anybody."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any


@dataclass(kw_only=True)
class Activity:
    """Looks at what vLLM's client knows of its requests: one that has ended, or has more tokens than at the last look,
    was worked for. A request that waits in the queue of a busy engine is so told from one that hangs."""

    client: Any
    tokens: dict[str, int] = field(default_factory=dict)
    """request -> what it had drawn at the last look"""
    at: float = -math.inf

    def __call__(self) -> float:
        """By `time.monotonic`, to within the time between two looks; -inf before any."""
        now = {request: count_drawn(state) for request, state in self._states().items()}
        if any(now.get(request, math.inf) > tokens for request, tokens in self.tokens.items()):
            self.at = monotonic()
        self.tokens = now
        return self.at

    def _states(self) -> Mapping[str, Any]:
        states: Mapping[str, Any] = getattr(getattr(self.client, "output_processor", None), "request_states", {})
        return states


def count_drawn(state: Any) -> int:
    """Tokens of one request so far; 0 of one for a reward model."""
    return 0 if state.detokenizer is None else int(state.detokenizer.num_output_tokens())
