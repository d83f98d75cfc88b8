"""The log-ratio of two language models as a reward: CDR (Dr.SoW), arXiv 2411.02481, and DPO's implicit reward.

    r(x, y) = beta sum_t (log pi_s(y_t | x_s, y_<t) - log pi_w(y_t | x, y_<t)),    t = 1 .. T                       (1)

pi_s  strong: a guide, say the aligned twin of the base, or a mixture
pi_w  weak: by default the base
x_s   x, or x with `instruction` as its system message, which adapts the reward to a domain
beta  that of DPO, if pi_s was trained by it and r is to have the units of its reward

The sum starts at the first token of the response; the authors' code starts at the last of the prompt. With beta 1 and
neither instruction nor normalisation, pi_w exp(r) is pi_s itself: a sampler that tilts the weak model by r
draws from the strong one. `length_normalised` is (1) / T.
Cost: each response is scored once per model. A response without tokens scores 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from pydantic import Field

from trimtab.decoders.protocols import BASE, Mixture, Tokens
from trimtab.rewards.protocols import Host, Question, Record, Response
from trimtab.rewards.turns import gather_in_turn

FRAME = 64
"""Tokens that a chat template puts around a message, at the most."""

Member = Annotated[str | Mapping[str, float], Field(description="a guide, the base, or a mixture {member: exponent}")]


@dataclass(frozen=True, kw_only=True)
class LogRatio:
    """How much likelier the strong model finds the answer than the weak one."""

    host: Host
    strong: Member
    weak: Member = BASE
    beta: Annotated[float, Field(gt=0, description="scale")] = 1.0
    length_normalised: Annotated[bool, Field(description="the mean over tokens, not the sum")] = False
    instruction: Annotated[str | None, Field(min_length=1, description="system message of the strong side alone")] = (
        None
    )

    def __post_init__(self) -> None:
        for name, side in (("strong", self.strong), ("weak", self.weak)):
            if not side:
                raise ValueError(f"{name} must name a member or be a mixture of some; got {side!r}")
        if self.instruction is None and as_mixture(self.strong) == as_mixture(self.weak):
            raise ValueError(
                f"strong and weak must differ where no instruction sets them apart; both are {self.weak!r}"
            )

    @property
    def members(self) -> frozenset[str]:
        """The members that the engine must have."""
        return frozenset({*as_mixture(self.strong), *as_mixture(self.weak)})

    @property
    def labels(self) -> tuple[str, ...]:
        return ("score",)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def reads(self, prompt: int, response: int) -> int:
        """Both models read prompt and response; an instruction's prompt is longer by as many tokens as it has bytes."""
        added = 0 if self.instruction is None else len(self.instruction.encode()) + FRAME
        return 2 * (prompt + response) + added

    async def __call__(self, question: Question, responses: Sequence[Response]) -> list[list[float]]:
        strong_prompt = question.prompt
        if self.instruction is not None:
            strong_prompt = await question.instruct(self.instruction)
        scores = await gather_in_turn(
            question.turns,
            (
                partial(self._logprob, side, prompt, response.tokens, question.record)
                for response in responses
                for side, prompt in ((self.strong, strong_prompt), (self.weak, question.prompt))
            ),
        )
        rows = zip(scores[::2], scores[1::2], responses, strict=True)
        return [[self.beta * (s - w) / (self._length(response) or 1)] for s, w, response in rows]  # (1)

    def _length(self, response: Response) -> int:
        return len(response.tokens) if self.length_normalised else 1

    async def _logprob(self, side: str | Mixture, prompt: Tokens, completion: Tokens, record: Record) -> float:
        if not completion:
            return 0.0
        record(len(prompt) + len(completion))
        return math.fsum(await self.host.engine.score(prompt, completion, guides=as_mixture(side)))


def as_mixture(side: str | Mixture) -> Mixture:
    """A side's mixture with the base's exponent in it: 0 unless it is named."""
    return {BASE: 0.0, **({side: 1.0} if isinstance(side, str) else side)}
