"""A process reward: a head scores every token, v_t; the scores where steps end become one number.

    r(x, y) = agg_{t in E} f(v_t)                                                                                    (1)

E: the last token of each step; without steps, every token of the response. f: the identity, a sigmoid, or a softmax
over the head's labels. agg: the minimum, the product, the last, or the mean; "Let's Verify Step by Step" (arXiv
2305.20050) takes the product of the steps' probabilities of being right.

A separator divides the response into steps. In the input `mark` follows each step, the last one too, as process reward
models are trained (Skywork-o1-Open-PRM: the separator itself; Qwen2.5-Math-PRM: <extra_0> in its place), and E are the
last tokens of the marks. The head is causal, so the input ends with the response. Without steps, the score of an empty
response is that of the token before it.

Cost: one pass of the model over conversation and response.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from trimtab.rewards.conversation import spell_out_response
from trimtab.rewards.model_input import CHAT, Format, InputEncoder, Truncate
from trimtab.rewards.protocols import Pooler, Question, Response, RewardError
from trimtab.rewards.transforms import sigmoid

Aggregate = Literal["min", "product", "last", "mean"]
Activation = Literal["none", "sigmoid", "softmax"]

AGGREGATES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "product": math.prod,
    "last": lambda values: values[-1],
    "mean": lambda values: math.fsum(values) / len(values),
}


@dataclass(frozen=True, kw_only=True)
class Process:
    """Scores of a response's steps, or of its tokens, as one."""

    name: str
    pooler: Pooler
    aggregate: Annotated[Aggregate, Field(description="how the scores of the steps become one")] = "min"
    activation: Annotated[Activation, Field(description="what each score goes through before")] = "none"
    step: Annotated[
        str | None, Field(description="what stands between steps; without it every token of the response is one")
    ] = None
    mark: Annotated[
        str | None, Field(description="what is put behind each step in its place: a special token or a text")
    ] = None
    label: Annotated[
        str | int | None, Field(description="which of the head's labels, by name or place; needed where it has several")
    ] = None
    format: Format = CHAT
    truncate: Truncate = "error"

    def __post_init__(self) -> None:
        _ = self.encoder, self._label_index  # each refuses what the model cannot have
        if self.aggregate not in AGGREGATES:
            raise ValueError(f"{self.name}: no aggregate {self.aggregate!r}; valid: {', '.join(sorted(AGGREGATES))}")
        if self.aggregate == "product" and self.activation == "none":
            raise ValueError(f"{self.name}: a product needs probabilities; valid: activation sigmoid or softmax")
        if self.activation not in ("none", "sigmoid", "softmax"):
            raise ValueError(f"{self.name}: no activation {self.activation!r}; valid: none, sigmoid, softmax")
        if self.activation == "softmax" and len(self.pooler.labels) == 1:
            raise ValueError(f"{self.name}: a softmax over one label is always 1; valid: none, sigmoid")
        if self.step == "" or self.mark == "":
            raise ValueError(f"{self.name}: step and mark cannot be empty")
        if self.mark is not None and self.step is None:
            raise ValueError(f"{self.name}: mark={self.mark!r} stands behind steps; say in `step` what is between them")

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
        return ("score",)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    async def __call__(self, question: Question, responses: Sequence[Response]) -> list[list[float]]:
        """[N, 1]; raises ValueError for a conversation that the model cannot read."""
        before, _ = self.encoder.encode_context(question)
        encoded = [self._encode_steps(spell_out_response(response)) for response in responses]
        inputs = [self.encoder.truncate([*before, *tokens], suffix=len(tokens) + 1) for tokens, _ in encoded]
        scores = await self.pooler.score_tokens(inputs)
        if [len(rows) for rows in scores] != [len(tokens) for tokens in inputs]:
            raise RewardError(f"{self.name}: the model did not score every token")
        return [
            [self._value(rows[len(rows) - len(tokens) - 1 :], ends)]
            for rows, (tokens, ends) in zip(scores, encoded, strict=True)
        ]

    def _encode_steps(self, text: str) -> tuple[list[int], list[int]]:
        """The response's tokens, and how many of them have been read at each of E; 0 is before the first."""
        if self.step is None:
            tokens = self.encoder.encode_verbatim(text)
            return tokens, list(range(1, len(tokens) + 1)) or [0]
        tokens, ends = [], []
        for piece in text.removesuffix(self.step).split(self.step):
            tokens += [*self.encoder.encode_verbatim(piece), *self._mark]
            ends.append(len(tokens))
        return tokens, ends

    def _value(self, rows: Sequence[Sequence[float]], ends: Sequence[int]) -> float:
        """(1) for the rows [1 + T, K] from the token before the response on."""
        return AGGREGATES[self.aggregate]([self._activate(rows[end]) for end in ends])  # (1)

    def _activate(self, logits: Sequence[float]) -> float:
        logit = logits[self._label_index]
        if self.activation == "none":
            return logit
        if self.activation == "sigmoid":
            return sigmoid(logit)
        most = max(logits)
        return math.exp(logit - most) / math.fsum(math.exp(z - most) for z in logits)

    @cached_property
    def _mark(self) -> list[int]:
        """From the configuration, so a special token spelt out in it does become one."""
        ids: list[int] = self.pooler.tokenizer(self.mark or self.step, add_special_tokens=False)["input_ids"]
        return ids

    @cached_property
    def _label_index(self) -> int:
        names = self.pooler.labels
        if self.label is None and len(names) == 1:
            return 0
        if isinstance(self.label, int) and 0 <= self.label < len(names):
            return self.label
        if self.label in names:
            return names.index(str(self.label))
        valid = ", ".join(names)
        raise ValueError(f"{self.name}: label={self.label!r}, and the head's labels are {valid}; valid: one of them")
