"""What a request can cost at the most, in tokens, before anything of it is done."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trimtab.decoders.protocols import BASE, Work, normalise_mixture
from trimtab.server.config import Config, LimitsConfig
from trimtab.server.errors import ApiError
from trimtab.server.request.alignment import AT
from trimtab.server.request.body import Json
from trimtab.server.request.messages import COMPLETIONS
from trimtab.server.wording import suggest

if TYPE_CHECKING:
    from trimtab.server.request.plan import Plan

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
        bounds: list[int] = [document[key] for key in LENGTHS if counts(document.get(key))]
        default = OPENAI_COMPLETION if path == COMPLETIONS and "max_tokens" not in document else self.default
        return min([*bounds[:1], self.context] if bounds or default is None else [default, self.context])


def reference_length(max_tokens: int) -> int:
    """Of the longest reference answer to a request whose answers have at most `max_tokens`: the power of two that is
    no less, so that requests of about one length compare with the same references."""
    return int(1 << (max_tokens - 1).bit_length())


def counts(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def work(plan: Plan, document: Json, path: str, longest: Longest) -> Work:
    """Of the whole request: `reward_tokens` over all its rewards, all with what transforms ask for."""
    max_tokens, count = longest.of(document, path), prompts(document.get("prompt"))
    n = document["n"] if counts(document.get("n")) else 1
    most = plan.strategy.work(max_tokens, n=n, include=plan.include).times(count)
    specs = [spec for spec in (plan.objective, *plan.others.values()) if spec is not None]
    rewards = len({leaf.reward for spec in specs for leaf in spec.leaves})
    drawn = most.sampled + (count * n * max_tokens if plan.degrade else 0)
    sampled = min(drawn, plan.max_sampled_tokens or drawn)
    share = sampled / drawn  # what a budget leaves of the drawing, it leaves of the reading
    length = min(reference_length(max_tokens), longest.context)
    references = count * length * max((spec.references for spec in specs), default=0)
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


def check_bounds(name: str, work: Work, config: Config, *, at: str) -> None:
    """Raises ApiError for a strategy whose work, but for its tokens, is more than the server allows a request.

    `at` is the field that a mixture nobody named comes from.
    """
    for key, mixture in work.mixtures.items():
        _check_mixture(mixture, config, at=f"{AT}.params.{key}" if key else at)
    max_logprobs = config.engine.get("max_logprobs", 20)  # of which vLLM shows no more; 20 is its default, -1 all
    for bound, count, limit, key in (
        ("candidates", work.candidates, config.max_candidates, "max_candidates"),
        ("draws", work.draws or work.candidates, config.max_draws, "max_draws"),
        ("top_logprobs", work.top_logprobs, max_logprobs, "engine.max_logprobs"),
    ):
        if count > limit >= 0:
            term = work.terms.get(bound, "")
            field = f"{AT}.params.{term}" if term else f"its {bound}"
            raise ApiError(
                f"strategy {name!r} is bounded by {key}, {limit}: {field} must be at most {limit} on this server; "
                f"got {count}",
                param=".".join([f"{AT}.params", *re.findall(r"[a-z_]+", term)[-1:]]),
                code="out_of_range",
            )


def _check_mixture(mixture: Mapping[str, float], config: Config, *, at: str) -> None:
    for member, weight in mixture.items():
        if member != BASE and member not in config.guides:
            raise ApiError(suggest("guide", member, config.guides.keys()), param=at)
        if not abs(weight) <= config.max_weight:
            message = f"the exponent of {member!r} must lie in [-{config.max_weight:g}, {config.max_weight:g}]"
            raise ApiError(f"{message}; got {weight:g}", param=at, code="out_of_range")
    try:
        normalise_mixture(mixture)
    except ValueError as error:
        raise ApiError(str(error), param=at) from None
