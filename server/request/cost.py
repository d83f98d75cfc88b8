"""What a request can cost at the most, in tokens, before anything of it is done."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from trimtab.decoders.protocols import Work
from trimtab.server.config import LimitsConfig
from trimtab.server.errors import ApiError
from trimtab.server.request.alignment import AT, Plan
from trimtab.server.request.body import Json
from trimtab.server.request.messages import COMPLETIONS

REFERENCE_TOKENS = 256
"""Longest reference answer of a transform."""

LENGTHS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""Fields that bound an answer, the first that is given; vLLM refuses what is no number."""
OPENAI_COMPLETION = 16
"""What a completion without a bound gets, as in OpenAI's API."""


@dataclass(frozen=True, kw_only=True)
class Longest:
    """Bounds of an answer's length that the engine has."""

    context: int
    """The model's context."""
    default: int | None = None
    """What its generation config gives a request that names no bound."""

    def of(self, document: Json, path: str) -> int:
        """Tokens that one answer to the request can have."""
        given: list[int] = [document[key] for key in LENGTHS if counts(document.get(key))]
        default = OPENAI_COMPLETION if path == COMPLETIONS and "max_tokens" not in document else self.default
        return min([*given[:1], self.context] if given or default is None else [default, self.context])


def counts(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def work(plan: Plan, document: Json, path: str, longest: Longest) -> Work:
    """Of the whole request: `reward_tokens` over all its rewards, all with what transforms ask for."""
    max_tokens, asked = longest.of(document, path), prompts(document.get("prompt"))
    n = document["n"] if counts(document.get("n")) else 1
    most = plan.strategy.work(max_tokens, n=n, include=plan.include).times(asked)
    specs = [spec for spec in (plan.objective, *plan.others.values()) if spec is not None]
    rewards = len({leaf.reward for spec in specs for leaf in spec.leaves})
    drawn = most.sampled + (asked * n * max_tokens if plan.degrade else 0)
    sampled = min(drawn, plan.max_sampled_tokens or drawn)
    share = sampled / drawn  # what a budget leaves of the drawing, it leaves of the reading
    references = asked * REFERENCE_TOKENS * max((spec.references for spec in specs), default=0)
    return replace(
        most,
        sampled=sampled + references,
        scored=math.ceil(most.scored * share),
        reward_tokens=rewards * (math.ceil(most.reward_tokens * share) + references),
    )


def prompts(prompt: object) -> int:
    """How many a completion asks to be answered."""
    several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    return len(prompt) if isinstance(prompt, list) and several else 1


def tokens(most: Work, limits: LimitsConfig) -> int:
    """What it counts against `limits.max_tokens`."""
    return most.sampled + math.ceil(limits.scored_weight * (most.scored + most.reward_tokens))


def check(plan: Plan, most: Work, limits: LimitsConfig) -> None:
    """Raises ApiError for a request over a cap of its own."""
    if limits.max_sampled_tokens is not None and most.sampled > limits.max_sampled_tokens:
        raise ApiError(
            f"strategy {plan.name!r} can draw {most.sampled} tokens here, and limits.max_sampled_tokens is "
            f"{limits.max_sampled_tokens} on this server: lower max_tokens or {AT}.params, or set "
            f"{AT}.budget.max_sampled_tokens",
            param="max_tokens" if plan.is_plain else AT,
            code="out_of_range",
        )
