"""Beginnings of answers that grow block by block and are scored as they stand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from trimtab.decoders.protocols import LIMIT_REASONS, Engine, Mixture, Reward, Sampling, Tokens, Work
from trimtab.decoders.registry import NamesReward
from trimtab.decoders.shared.candidates import first, stopped

Block = Annotated[int, Field(ge=1, description="tokens of a block, at most")]
PrefixReward = Annotated[
    Any,
    NamesReward(),
    Field(description="what beginnings are scored by, written as `reward` is; the reward itself if none"),
]
Step = Annotated[str, Field(description="a text that ends a block too, as a step of a solution does; empty for none")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Beginning:
    tokens: tuple[int, ...] = ()
    finish: str | None = None
    """How it has ended; None: it goes on."""
    value: float | None = None
    """Its reward; None where it was not scored."""
    parent: int = 0
    """Which beginning it grew from."""

    @property
    def ended(self) -> bool:
        """Whether it is a whole answer."""
        return self.finish is not None and self.finish not in LIMIT_REASONS


async def grown(
    prompt: Tokens,
    parents: Sequence[Beginning],
    sampling: Sampling,
    engine: Engine,
    reward: Reward,
    *,
    n: int,
    block: int,
    step: str,
    guides: Mixture,
    seeds: Sequence[int | None],
) -> list[Beginning]:
    """n children of each parent that goes on, a block longer, and each other parent once, as it is; all scored.

    Of a reward of two columns the first is for whole answers and the second for beginnings. Where a budget or deadline
    cut some, those are scored only if nothing else is in hand. `seeds[j]` is of the j-th parent's children.
    """

    async def children(j: int, parent: Beginning) -> list[Beginning]:
        if parent.finish is not None:
            return [replace(parent, parent=j)]
        kept = parent.tokens
        segment = replace(
            sampling, max_tokens=min(block, sampling.max_tokens - len(kept)), step=step, stream=False, seed=seeds[j]
        )
        tokens: dict[int, tuple[int, ...]] = {}
        finish: dict[int, str] = {}
        async with aclosing(engine.generate([*prompt, *kept], segment, n=n, guides=guides)) as chunks:
            async for chunk in chunks:
                tokens[chunk.index] = tokens.get(chunk.index, kept) + chunk.tokens
                if chunk.finish is not None:
                    finish[chunk.index] = chunk.finish
        return [child(j, len(kept), tokens[i], finish[i], limit=segment.max_tokens) for i in sorted(finish)]

    def child(j: int, kept: int, tokens: tuple[int, ...], finish: str, *, limit: int) -> Beginning:
        if (end := stopped(tokens, kept, sampling.stop, engine)) is not None:
            return Beginning(parent=j, tokens=tokens[:end], finish="stop")
        if len(tokens) >= sampling.max_tokens:
            finish = "length" if finish == "step" else finish
        elif finish == "step" or (finish == "length" and len(tokens) == kept + limit):
            return Beginning(parent=j, tokens=tokens)
        return Beginning(parent=j, tokens=tokens, finish=finish)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(children(j, parent)) for j, parent in enumerate(parents)]
    except ExceptionGroup as errors:
        raise first(errors) from None
    found = [one for task in tasks for one in task.result()]
    asked = [i for i, one in enumerate(found) if one.value is None and one.tokens and one.finish not in LIMIT_REASONS]
    if not asked and all(one.value is None for one in [*found, *parents]):
        asked = [i for i, one in enumerate(found) if one.tokens]
    if asked:
        rows = await reward(prompt, [found[i].tokens for i in asked])
        for i, row in zip(asked, rows, strict=True):
            if not 1 <= len(row) <= 2:
                raise ValueError(f"one reward is needed to choose by; {len(row)} given")
            found[i] = replace(found[i], value=row[0] if found[i].ended else row[-1])
    return found


def growing(width: int, max_tokens: int, block: int, step: str, rounds: int | None = None, *, guides: Mixture) -> Work:
    """What `grown` can cost that grows `width` beginnings a block a round; a step may end each of them at a token."""
    block = min(block, max_tokens)
    needed = max_tokens if step else -(-max_tokens // block)
    rounds = needed if rounds is None else min(rounds, needed)
    return Work(
        candidates=width,
        sampled=width * (block * rounds if step else min(block * rounds, max_tokens)),
        reward_tokens=width * min(block * rounds * (rounds + 1) // 2, max_tokens * rounds),
        mixtures={"": guides},
        terms={"candidates": "n"},
    )


def cut(beginnings: Iterable[Beginning]) -> str | None:
    """What ended one of them before its time."""
    return next((one.finish for one in beginnings if one.finish in LIMIT_REASONS), None)


def ranked(beginnings: Iterable[Beginning]) -> list[Beginning]:
    """Best first: whole answers, then by value; those that were not scored last."""
    return sorted(beginnings, key=lambda one: (one.value is None, not one.ended, -(one.value or 0.0)))


def answered(ranking: Sequence[Beginning], n: int) -> list[Beginning]:
    """n answers, each of other tokens as long as there are such."""
    first_of: dict[tuple[int, ...], Beginning] = {}
    for one in ranking:
        first_of.setdefault(one.tokens, one)
    distinct = list(first_of.values())
    return [distinct[i] if i < len(distinct) else ranking[0] for i in range(n)]


def shown(i: int, one: Beginning) -> dict[str, Any]:
    """As `return: ["candidates"]` has it; the server puts text in the place of tokens."""
    return {"index": i, "tokens": one.tokens, "finish_reason": one.finish, "value": one.value}
