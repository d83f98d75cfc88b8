"""What a request can cost at the most, in tokens, before anything of it is done."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trimtab.decoders.protocols import BASE, Work, normalise_mixture
from trimtab.runtime.contexts import Context
from trimtab.server.config import Config, LimitsConfig
from trimtab.server.errors import ApiError
from trimtab.server.request.alignment import AT
from trimtab.server.wording import suggest

if TYPE_CHECKING:
    from trimtab.server.request.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much a request asks for, read from what vLLM has parsed of it."""

    prompts: int = 1
    n: int = 1
    """Answers to each."""
    max_tokens: int
    """Of the longest answer."""
    context: int
    """Tokens that the model reads at the most."""
    prompt_tokens: int = 0
    """Of all prompts together, at the most."""


def reference_length(max_tokens: int) -> int:
    """Of the longest reference answer to a request whose answers have at most `max_tokens`: the power of two that is
    no less, so that requests of about one length compare with the same references."""
    return int(1 << (max_tokens - 1).bit_length())


TURN_TOKENS = 64
"""What a chat template writes around an instruction, at the most: the marks of a turn of its own."""

Reads = Callable[[str, int, int], int]
"""(reward, tokens of the prompt, tokens of a response) -> tokens that the reward has read to score it, at the most. It
is linear: each token of the prompt adds as much as any other, and so does each of the response."""


def read_response(reward: str, prompt: int, response: int) -> int:
    """What a reward reads that reads nothing but the response."""
    return response


def work(plan: Plan, extent: Extent, reads: Reads = read_response) -> Work:
    """Of the whole request: `reward_tokens` over all its rewards, all with what transforms ask for."""
    most = plan.strategy.work(extent.max_tokens, n=extent.n, include=plan.include).times(extent.prompts)
    most = replace(most, sampled=plan.rows * most.sampled, scored=plan.rows * most.scored)
    specs = [spec for spec in (plan.objective, *plan.others.values()) if spec is not None]
    drawn = most.sampled + (extent.prompts * extent.n * extent.max_tokens if plan.degrade else 0)
    sampled = min(drawn, plan.max_sampled_tokens or drawn)
    share = sampled / drawn  # what a budget leaves of the drawing, it leaves of the reading
    prompt_length = -(-extent.prompt_tokens // extent.prompts)
    length = min(reference_length(extent.max_tokens), extent.context)
    references = extent.prompts * max((spec.references for spec in specs), default=0)
    instructed = min(prompt_length + most.instruction_bytes + TURN_TOKENS, extent.context)
    contexts = sum(
        min(prompt_length + len(one.text.encode()) + TURN_TOKENS, extent.context) for one in plan.instructions
    )
    rewards = {leaf.reward for spec in specs for leaf in spec.leaves}
    readings = math.ceil(share * (most.readings or -(-most.reward_tokens // extent.max_tokens)))
    read = sum(
        readings * reads(reward, prompt_length, 0)
        + (reads(reward, 0, math.ceil(most.reward_tokens * share)) - reads(reward, 0, 0))
        + references * reads(reward, prompt_length, length)
        for reward in rewards
    )
    return replace(
        most,
        sampled=sampled + references * length,
        scored=math.ceil(most.scored * share) + most.instructed * instructed + extent.prompts * contexts,
        reward_tokens=read,
        prompt=extent.prompt_tokens,
    )


def tokens(most: Work, limits: LimitsConfig) -> int:
    """What it counts against `limits.max_tokens`."""
    return most.sampled + math.ceil(limits.scored_weight * (most.prompt + most.scored + most.reward_tokens))


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


def check_bounds(name: str, work: Work, config: Config, contexts: Mapping[str, Context], *, at: str) -> None:
    """Raises ApiError for a strategy whose work, but for its tokens, is more than the server allows a request.

    `contexts` are guides that are prompts; `at` is the field that a mixture nobody named comes from.
    """
    for key, mixture in work.mixtures.items():
        _check_mixture(mixture, config, contexts, at=f"{AT}.params.{key}" if key else at)
        if work.instructed and (prompts := [member for member, w in mixture.items() if w and member in contexts]):
            message = f"strategy {name!r} puts an instruction into the prompt, whose place guide {prompts[0]!r} takes"
            raise ApiError(f"{message}: they cannot be combined", param=at, code="unsupported_pair")
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


def _check_mixture(mixture: Mapping[str, float], config: Config, contexts: Mapping[str, Context], *, at: str) -> None:
    for member, weight in mixture.items():
        if member != BASE and member not in config.guides and member not in contexts:
            raise ApiError(suggest("guide", member, config.guides.keys()), param=at)
        if not abs(weight) <= config.max_weight:
            message = f"the exponent of {member!r} must lie in [-{config.max_weight:g}, {config.max_weight:g}]"
            raise ApiError(f"{message}; got {weight:g}", param=at, code="out_of_range")
    try:
        named = normalise_mixture(mixture)
    except ValueError as error:
        raise ApiError(str(error), param=at) from None
    moved = [member for member, weight in named.items() if weight]
    if all(member in contexts for member in moved):
        message = f"guide {moved[0]!r} is what a prompt moves a model by, and neither the base nor a guide that is one"
        raise ApiError(f"{message} has a weight", param=at, code="unsupported_pair")
