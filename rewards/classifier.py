"""A reward model with a head at the last token: r(x, y) in R^K, one number for each label of the head.

The response stands as the assistant's whole turn in the form that the model was trained on, and the head's raw output
is the score: no sigmoid, no softmax (a logit orders answers as its sigmoid does, and loses nothing at the ends). Of a
value head, which foretells the score from a beginning (controlled decoding, arXiv 2310.17022), the turn stays open.

Cost: one pass of the reward model over conversation and response; where its engine caches prefixes, the conversation
is read once, and a response that grows costs what is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from trimtab.rewards.model_input import CHAT, Format, Reading, Truncate
from trimtab.rewards.protocols import Pooler, Question, Response


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """Every label of a sequence-classification head, or its one score."""

    name: str
    pooler: Pooler
    format: Format = CHAT
    truncate: Truncate = "error"
    turn: Annotated[
        Literal["closed", "open"], Field(description="how the response is read: open for a value head of beginnings")
    ] = "closed"

    def __post_init__(self) -> None:
        _ = self.reading  # refuses a format that the model cannot have

    @cached_property
    def reading(self) -> Reading:
        return Reading(
            name=self.name,
            tokenizer=self.pooler.tokenizer,
            limit=self.pooler.max_tokens,
            format=self.format,
            truncate=self.truncate,
        )

    @property
    def labels(self) -> tuple[str, ...]:
        return self.pooler.labels if len(self.pooler.labels) > 1 else ("score",)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    async def __call__(self, question: Question, responses: Sequence[Response]) -> list[list[float]]:
        """[N, K]; raises ValueError for a conversation that the model cannot read."""
        read = self.reading.closed if self.turn == "closed" else self.reading.opened
        return await self.pooler.score([read(question, response.text) for response in responses])
