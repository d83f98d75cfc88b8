"""Beginnings of answers that grow block by block and are scored as they stand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from trimtab.decoders.protocols import (
    LIMIT_REASONS,
    UNFINISHED,
    Engine,
    LimitReached,
    Mixture,
    Reward,
    Sampling,
    Tokens,
    Work,
)
from trimtab.decoders.registry import NamesReward
from trimtab.decoders.report import SearchProgress
from trimtab.decoders.shared.candidates import find_unread, stop_position
from trimtab.decoders.shared.gather import gather_or_cancel

Block = Annotated[int, Field(ge=1, le=1_000_000, description="tokens of a block, at most")]
PrefixReward = Annotated[
    Any,
    NamesReward(),
    Field(description="what beginnings are scored by, written as `reward` is; the reward itself if none"),
]
Step = Annotated[
    str,
    Field(max_length=1000, description="a text that ends a block too, as a step of a solution does; empty for none"),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartialAnswer:
    tokens: tuple[int, ...] = ()
    finish: str | None = None
    """How it has ended; None: it goes on."""
    value: float | None = None
    """Its reward; None where it was not scored."""
    parent: int = 0
    """Which beginning it grew from."""

    @property
    def unfinished(self) -> bool:
        """Whether it has not ended by itself."""
        return self.finish is None or self.finish in UNFINISHED

    @property
    def ended(self) -> bool:
        """Whether it is a whole answer."""
        return self.finish is not None and self.finish not in LIMIT_REASONS


async def expand(
    prompt: Tokens,
    parents: Sequence[PartialAnswer],
    sampling: Sampling,
    engine: Engine,
    reward: Reward,
    *,
    n: int,
    block: int,
    step: str,
    guides: Mixture,
    seeds: Sequence[int | None],
) -> tuple[list[PartialAnswer], str | None]:
    """n children of each parent that goes on, a block longer, and each other parent once, as it is; all scored.

    With them comes which of `LIMIT_REASONS` ended the work before its time, if one did. Those that it cut are scored
    only if nothing else is in hand, and where it came while the reward was awaited, no child has a value. Of a reward
    of two columns the first is for whole answers and the second for beginnings. `seeds[j]` is of the j-th parent's
    children.
    """

    async def children(j: int, parent: PartialAnswer) -> list[PartialAnswer]:
        if parent.finish is not None:
            return [replace(parent, parent=j)]
        prefix = parent.tokens
        limit = min(block, sampling.max_tokens - len(prefix))
        segment = replace(sampling, max_tokens=limit, step=step, stream=False, seed=seeds[j], begun=len(prefix))
        tokens: dict[int, tuple[int, ...]] = {}
        finish: dict[int, str] = {}
        async with aclosing(engine.generate([*prompt, *prefix], segment, n=n, guides=guides)) as chunks:
            async for chunk in chunks:
                tokens[chunk.index] = tokens.get(chunk.index, prefix) + chunk.tokens
                if chunk.finish is not None:
                    finish[chunk.index] = chunk.finish
        return [child(j, len(prefix), tokens[i], finish[i], limit=segment.max_tokens) for i in sorted(finish)]

    def child(j: int, prefix: int, tokens: tuple[int, ...], finish: str, *, limit: int) -> PartialAnswer:
        if (end := stop_position(tokens, prefix, sampling.stop, engine)) is not None:
            return PartialAnswer(parent=j, tokens=tokens[:end], finish="stop")
        if len(tokens) >= sampling.max_tokens:
            finish = "length" if finish == "step" else finish
        elif finish == "step" or (finish == "length" and len(tokens) == prefix + limit):
            return PartialAnswer(parent=j, tokens=tokens)
        return PartialAnswer(parent=j, tokens=tokens, finish=finish)

    families = await gather_or_cancel(children(j, parent) for j, parent in enumerate(parents))
    partials = [one for family in families for one in family]
    limit = next((one.finish for one in partials if one.finish in LIMIT_REASONS), None)
    unscored = [
        i for i, one in enumerate(partials) if one.value is None and one.tokens and one.finish not in LIMIT_REASONS
    ]
    if not unscored and all(one.value is None for one in [*partials, *parents]):
        unscored = [i for i, one in enumerate(partials) if one.tokens]
    if unscored:
        try:
            scored = await score_beginnings(prompt, [partials[i] for i in unscored], reward)
        except LimitReached as reached:
            return partials, str(reached)
        for i, one in zip(unscored, scored, strict=True):
            partials[i] = one
    return partials, limit


async def score_beginnings(prompt: Tokens, beginnings: Sequence[PartialAnswer], reward: Reward) -> list[PartialAnswer]:
    """All of them with their values: of a reward of two columns the second is for those that are no whole answers."""
    rows = await reward(prompt, [one.tokens for one in beginnings])
    for row in rows:
        if not 1 <= len(row) <= 2:
            raise ValueError(f"one reward is needed to choose by; {len(row)} given")
    return [replace(one, value=row[0] if one.ended else row[-1]) for one, row in zip(beginnings, rows, strict=True)]


def expansion_cost(
    width: int, max_tokens: int, block: int, step: str, rounds: int | None = None, *, guides: Mixture
) -> Work:
    """What `expand` can cost that grows `width` beginnings a block a round; a step may end each of them at a token."""
    block = min(block, max_tokens)
    needed = max_tokens if step else -(-max_tokens // block)
    rounds = needed if rounds is None else min(rounds, needed)
    return Work(
        candidates=width,
        sampled=width * (block * rounds if step else min(block * rounds, max_tokens)),
        reward_tokens=width * min(block * rounds * (rounds + 1) // 2, max_tokens * rounds),
        readings=width * rounds,
        mixtures={"": guides},
        terms={"candidates": "n"},
    )


def drop_unread(beginnings: Sequence[PartialAnswer], reward: Reward) -> list[PartialAnswer]:
    """All of them, without a value where it counts for nothing: `find_unread`."""
    unread = find_unread([one.finish for one in beginnings], reward)
    return [replace(one, value=None) if drop else one for one, drop in zip(beginnings, unread, strict=True)]


def rank(beginnings: Iterable[PartialAnswer]) -> list[PartialAnswer]:
    """Best first: whole answers, then by value; of each kind those that were not scored last, and of equals those that
    did not end by themselves."""
    return sorted(beginnings, key=_place)


def _place(one: PartialAnswer) -> tuple[bool, bool, float, bool]:
    return not one.ended, one.value is None, -(one.value or 0.0), one.unfinished


def report_growth(
    engine: Engine, beginnings: Sequence[PartialAnswer], reward: Reward, *, longest: int, max_tokens: int
) -> int:
    """Reports how far these have grown, those that have ended among them; `longest` is the length of the longest that
    was reported. Returns it as it is now."""
    longest = max([longest, *(len(one.tokens) for one in beginnings)])
    scored = [one for one in drop_unread(beginnings, reward) if one.value is not None]
    best = min(scored, key=_place, default=PartialAnswer())
    tokens = best.tokens if scored else None
    engine.report_progress(SearchProgress(stage="grow", done=longest, of=max_tokens, best=tokens, value=best.value))
    return longest


def take_distinct(ranking: Sequence[PartialAnswer], n: int) -> list[PartialAnswer]:
    """n answers, each of other tokens as long as there are such."""
    first_of: dict[tuple[int, ...], PartialAnswer] = {}
    for one in ranking:
        first_of.setdefault(one.tokens, one)
    distinct = list(first_of.values())
    return [distinct[i] if i < len(distinct) else ranking[0] for i in range(n)]


def describe(i: int, one: PartialAnswer) -> dict[str, Any]:
    """As `return: ["candidates"]` has it; the server puts text in the place of tokens."""
    return {"index": i, "tokens": one.tokens, "finish_reason": one.finish, "value": one.value}
