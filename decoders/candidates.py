"""What every search shares: drawing candidates, having them scored, ranking and showing them.

Shapes: N candidates.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from decoders.protocols import BASE, CUT, Chunk, Engine, Exhausted, Mixture, Reward, Sampling, Tokens

Pool = Annotated[int, Field(ge=1, le=4096, description="candidates drawn")]
Guides = Annotated[
    Mixture, Field(description="exponent per guide that the candidates are drawn with; none is the base")
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """An answer that a search may choose."""

    index: int
    """Its place in the pool, which breaks ties."""
    pieces: tuple[Chunk, ...]
    """As the engine gave them, the last one with `finish`."""
    value: float | None = None
    """Its reward; None where it was not scored."""

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for piece in self.pieces for token in piece.tokens)

    @property
    def finish(self) -> str:
        return self.pieces[-1].finish or ""

    @property
    def whole(self) -> bool:
        """Whether it ended by itself, at its end of sequence or at `max_tokens`."""
        return self.finish not in CUT

    def told(self) -> dict[str, Any]:
        """As `return: ["candidates"]` shows it; the server puts text in the place of tokens."""
        return {"index": self.index, "tokens": self.tokens, "finish_reason": self.finish, "value": self.value}


async def draw(
    prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward | None, *, n: int, guides: Mixture
) -> list[Candidate]:
    """[N] candidates in order of index, over the base with `guides`, each scored while the others are still drawn.

    Whole candidates are scored; those that a budget or deadline cut are scored only where none is whole, and one
    without a token never. Without a reward none is. Raises Exhausted where there is nothing to choose from.
    """
    pieces: list[list[Chunk]] = [[] for _ in range(n)]
    values: dict[int, asyncio.Task[float]] = {}
    try:
        async with asyncio.TaskGroup() as group:

            def score(index: int) -> None:
                tokens = [token for piece in pieces[index] for token in piece.tokens]
                if reward is not None and tokens:
                    values[index] = group.create_task(value(reward, prompt, tokens))

            mixture = {BASE: 1.0, **guides}
            async with aclosing(engine.generate(prompt, replace(sampling, stream=False), n=n, guides=mixture)) as drawn:
                async for chunk in drawn:
                    pieces[chunk.index].append(chunk)
                    if chunk.finish is not None and chunk.finish not in CUT:
                        score(chunk.index)
            cut = [i for i in range(n) if pieces[i][-1].finish in CUT]
            if len(cut) == n:
                for i in cut:
                    score(i)
    except ExceptionGroup as errors:
        raise first(errors) from None
    pool = [
        Candidate(index=i, pieces=tuple(p), value=values[i].result() if i in values else None)
        for i, p in enumerate(pieces)
    ]
    if not any(candidate.tokens for candidate in pool):
        raise Exhausted(pool[0].finish)
    return pool


async def value(reward: Reward, prompt: Tokens, completion: Tokens) -> float:
    """The one score of one completion."""
    [[score]] = await reward(prompt, [completion])
    return score


def first(errors: ExceptionGroup[Exception]) -> Exception:
    """Of what went wrong side by side, the first: the rest was cancelled because of it."""
    inner = errors.exceptions[0]
    return first(inner) if isinstance(inner, ExceptionGroup) else inner


def ranked(pool: Iterable[Candidate]) -> list[Candidate]:
    """Best first: by value, then by place; those without a value last, whole ones before cut ones."""
    return sorted(pool, key=lambda c: (c.value is None, -(c.value or 0.0), not c.whole, c.index))


async def shown(
    chosen: Sequence[Candidate], pool: Sequence[Candidate], want: frozenset[str], reports: Sequence[Mapping[str, Any]]
) -> AsyncGenerator[Chunk, None]:
    """The chosen candidates as a strategy's answers, with a report each; the pool, if asked for, with the first."""
    for i, (candidate, report) in enumerate(zip(chosen, reports, strict=True)):
        told = dict(report)
        if "candidates" in want and i == 0:
            told["candidates"] = [c.told() for c in pool]
        for piece in candidate.pieces:
            last = piece is candidate.pieces[-1]
            yield replace(piece, index=i, report=told if last else {})
