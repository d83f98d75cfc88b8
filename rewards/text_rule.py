"""The base of rewards that are computed from texts alone, without a model or the network."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from trimtab.rewards.protocols import Question, Response
from trimtab.rewards.turns import restart_clock


class TextRule(ABC):
    """A `Scorer` with one column, computed in a thread so that a long text does not block the event loop.

    Of the question it reads what the request gives to compare with, and not the conversation.
    """

    reads_conversation: ClassVar[bool] = False

    @property
    def labels(self) -> tuple[str, ...]:
        return ("score",)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @abstractmethod
    def score(self, question: Question, response: Response) -> float: ...

    async def __call__(self, question: Question, responses: Sequence[Response]) -> list[list[float]]:
        def score_all() -> list[list[float]]:
            restart_clock()  # before, it waited for a thread
            return [[self.score(question, response)] for response in responses]

        return await asyncio.to_thread(score_all)
