"""A reward model with a head at the last token: r(x, y) in R^K, one number for each label of the head.

The response is the assistant's whole turn in the format that the model was trained on. The head's raw output is the
score: no sigmoid, no softmax (a logit orders answers as its sigmoid does, and does not saturate). A value head predicts
the score of a whole answer from its prefix (controlled decoding, arXiv 2310.17022); for it the turn stays open.

Cost: one pass of the reward model over conversation and response. With prefix caching the conversation is computed
once, and a longer prefix of a response costs its new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from trimtab.rewards.conversation import spell_out_response
from trimtab.rewards.model_input import CHAT, Format, InputEncoder, Truncate
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
        _ = self.encoder  # refuses a format that the model cannot have

    @cached_property
    def encoder(self) -> InputEncoder:
        return InputEncoder(
            name=self.name,
            tokenizer=self.pooler.tokenizer,
            limit=self.pooler.max_tokens,
            format=self.format,
            truncation=self.truncate,
        )

    @property
    def labels(self) -> tuple[str, ...]:
        return self.pooler.labels if len(self.pooler.labels) > 1 else ("score",)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    async def __call__(self, question: Question, responses: Sequence[Response]) -> list[list[float]]:
        """[N, K]; raises ValueError for a conversation that the model cannot read."""
        if self.turn == "closed":
            return await self.pooler.score([self.encoder.encode_whole(question, response) for response in responses])
        texts = [spell_out_response(response) for response in responses]
        return await self.pooler.score([self.encoder.encode_prefix(question, text) for text in texts])
