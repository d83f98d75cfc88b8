"""Rewards that are computed from the texts alone: no model, no network."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence

from trimtab.rewards.protocols import Question, Response


class Textual(ABC):
    """A `Scorer` of one column, computed in a thread so that a long text does not hold up other requests."""

    @property
    def labels(self) -> tuple[str, ...]:
        return ("score",)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @abstractmethod
    def score(self, question: Question, response: Response) -> float: ...

    async def __call__(self, question: Question, responses: Sequence[Response]) -> list[list[float]]:
        def rows() -> list[list[float]]:
            return [[self.score(question, response)] for response in responses]

        return await asyncio.to_thread(rows)
