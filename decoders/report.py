"""What a strategy may say of an answer, and of its search. A key means the same under every strategy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict


def drop_nonfinite(value: Any) -> Any:
    """A report or a part of it, with None for every number that is not finite: JSON has none."""
    if isinstance(value, Mapping):
        return {key: inner if key == "tokens" else drop_nonfinite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [drop_nonfinite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Report(TypedDict, total=False):
    """What a strategy tells the client of one answer, beside its tokens. It tells what it has; keys mean the same
    under every strategy. What has no key here goes into `figures`."""

    value: float | None
    """The answer's reward; None where it was not scored."""
    kl_exact: float
    """sum_t KL(law of y_t given y_<t || the frozen base's), in nats: each term exact, along this answer. Its mean over
    answers is the KL of the answers' law."""
    kl_estimate: float
    """An estimate of the KL of the answers' law from pi's, in nats; pi is the base or, with guides, their mixture."""
    kl_bound: float
    """The KL of the answers' law from pi's is at most this, in nats."""
    unfinished: int
    """Candidates that did not end by themselves, cut at `max_tokens` or by a budget or deadline; with the first
    answer only."""
    warnings: list[str]
    """Where the answer is not what its strategy promises, in words for the client."""
    degraded: bool
    """Of a request with several prompts: whether the base answered this one plainly, its reward having failed."""
    candidates: list[dict[str, Any]]
    """The pool, each with `index`, `tokens`, `finish_reason`, `value`; with the first answer only."""
    trace: Any
    """The decisions behind the answer, in the strategy's own form."""
    figures: Mapping[str, Any]
    """Figures of this strategy alone, by name."""

    candidate: int
    """Which of the pool it is."""
    alone: bool
    """Whether it was drawn by itself, for want of one drawn together with others."""
    acceptance_rate: float
    """Share of proposals that were accepted."""
    effective_sample_size: float
    expected_utility: float
    """MBR: the weighted mean of the answer's similarity to the candidates, itself included."""
    proposals: int
    """Rejection sampling: candidates looked at until this one was accepted."""
    extracted: int
    """Votes: candidates in which an answer was found."""
    answer: str
    """Votes: the answer found in it."""
    share: float
    """Votes: of those that give this answer."""
    votes: float
    decisions: Any
    """Token by token: how many were taken; speculative rejection: what was kept at each length."""
    blocks: int
    """Blocks drawn one after the other."""
    rounds: int
    """Beam search: comparisons."""
    resampled: int
    """Particles: times that ancestors were drawn."""
    distinct: int
    """Particles: different answers among them."""
    log_normaliser: float
    """Particles: log of the estimate of E exp(r / beta)."""
    chains: int
    steps: int
    """Chains: steps over all of them."""
    accepted_length: dict[str, float] | None
    """Chains: tokens of what was accepted: mean and quantiles."""
    length: dict[str, float]
    r_hat: float | None
    """Chains: split R-hat of the rewards; None where nothing varies."""
    preference_prompt: str
    """The text that told the model a direction."""
    direction: dict[str, float]
    """RPS: the direction it was drawn under, by objective."""
    degrees_from_target: float


Stage = Literal["draw", "score", "grow", "step"]
"""What a search is at, and what it counts there:

"draw"  answers drawn, or beginnings that will grow
"score"  answers scored, of those that will be
"grow"  tokens of the longest answer, of those that grow side by side
"step"  states visited, over all chains
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchProgress:
    """How far a search is. Within a stage `done` never falls."""

    stage: Stage
    done: int
    of: int
    """`done` is never more; the search may end at less."""
    best: tuple[int, ...] | None = None
    """The tokens of the answer, or beginning of one, that the reward prefers so far; None: nothing has a reward yet. A
    strategy that draws or votes may answer with another."""
    value: float | None = None
    """The reward of `best`."""
