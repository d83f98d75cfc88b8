"""Minimum Bayes risk: draw N answers, return the one most like the others.

    y* = argmax_i sum_{j != i} w_j u(y_i, y_j),    y_1 … y_N ~ pi                                                    (1)

pi is the base or, with `guides`, their mixture. w_j = 1 / (N - 1), or exp(r_j / beta) / sum_k exp(r_k / beta) with
`weighting` softmax: then the expectation of u is one under the tilted pi*(y) ~ pi(y) exp(r(x, y) / beta) (QAlign,
arXiv 2504.03790). The utility is an F1 over multisets, with c_i(v) how often v occurs in y_i and |y_i| = sum_v c_i(v):

    u(y_i, y_j) = 2 sum_v min(c_i(v), c_j(v)) / (|y_i| + |y_j|)                                                      (2)

v are the words of the text (`rouge1`: ROUGE-1, whose words are lower-cased runs of letters and digits, here of any
script) or token ids (`token_f1`).

Ties go to the answer drawn first; `n` answers are the n best. Best so far: (1) over the answers that have ended.
Cost: N answers drawn, N scored where weighted, N^2 / 2 utilities.
Neutral value: N = 1 is plain sampling, token for token.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Hashable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from decoders.candidates import (
    Beta,
    Guides,
    Spread,
    check_answers,
    draw,
    ended,
    filled,
    scored,
    shown,
    softmax,
)
from decoders.protocols import Chunk, Engine, Reward, Sampling, Tokens

COLUMNS = 4096
"""Of the table of occurrences, looked at at a time."""


@dataclass(frozen=True, kw_only=True)
class MinimumBayesRisk:
    """The one of n candidates that is most like the others."""

    n: Annotated[int, Field(ge=1, le=1024, description="candidates drawn")] = 16
    utility: Annotated[
        Literal["rouge1", "token_f1"], Field(description="likeness of two candidates: F1 of their words or of tokens")
    ] = "rouge1"
    weighting: Annotated[
        Literal["uniform", "softmax"], Field(description="what likeness to a candidate counts: 1 or exp(reward / beta)")
    ] = "uniform"
    beta: Beta = 1.0
    guides: Guides = field(default_factory=dict)
    diverse: Spread = None

    async def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, want: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        check_answers(n, self.n)
        asked = None if self.weighting == "uniform" else reward
        pool = await draw(prompt, sampling, engine, asked, n=self.n, guides=self.guides, diverse=self.diverse)
        candidates, rewards = (ended(pool), []) if asked is None else scored(pool)
        texts = [engine.text(c.tokens) if self.utility == "rouge1" else "" for c in candidates]
        weights = softmax(rewards, self.beta) if rewards else np.full(len(candidates), 1 / max(len(candidates) - 1, 1))

        def expected() -> list[float]:
            bags: list[Sequence[Hashable]] = [
                words(text) if self.utility == "rouge1" else c.tokens for c, text in zip(candidates, texts, strict=True)
            ]
            likeness = f1(bags)
            np.fill_diagonal(likeness, 0)
            # Rounded, for equal candidates tie whatever order their terms are added in.
            return [float(u) for u in np.round(likeness @ weights, 12)]  # (1)

        utilities = await asyncio.to_thread(expected)
        order = sorted(range(len(candidates)), key=lambda i: -utilities[i])
        chosen = filled([candidates[i] for i in order], pool, n)
        told = {candidates[i].index: {"expected_utility": utilities[i]} for i in order}
        reports = [{"value": c.value, "candidate": c.index, **told.get(c.index, {})} for c in chosen]
        async with aclosing(shown(chosen, pool, want, reports)) as chunks:
            async for chunk in chunks:
                yield chunk


def words(text: str) -> list[str]:
    """Of ASCII text the same as `rouge_score`'s tokenizer without stemming gives."""
    return re.findall(r"[^\W_]+", text.lower())


def f1(bags: Sequence[Sequence[Hashable]]) -> NDArray[np.float64]:
    """[N, N] u of each pair; 0 for two empty ones. The diagonal means nothing."""
    sizes = np.array([len(bag) for bag in bags])
    return np.asarray(2 * overlaps(bags) / np.maximum(sizes[:, None] + sizes[None, :], 1))  # (2)


def overlaps(bags: Sequence[Sequence[Hashable]]) -> NDArray[np.float64]:
    """[N, N] sum_v min(c_i(v), c_j(v)) off the diagonal, as inner products of rows of a table of 0 and 1.

    The table has a column per pair (v, k), with 1 where v occurs more than k times. Columns of a single 1 are left out.
    """
    ids: dict[Hashable, int] = {}
    v = np.array([ids.setdefault(item, len(ids)) for bag in bags for item in bag], dtype=np.int64)
    row = np.repeat(np.arange(len(bags)), [len(bag) for bag in bags])
    order = np.lexsort((v, row))
    v, row, place = v[order], row[order], np.arange(len(v))
    begins = np.diff(v, prepend=-1) | np.diff(row, prepend=-1)  # non-zero where another item or another bag begins
    k = place - np.maximum.accumulate(np.where(begins, place, 0))
    _, column, ones = np.unique(v * (len(v) + 1) + k, return_inverse=True, return_counts=True)
    shared = np.cumsum(ones > 1) - 1  # column -> its place among those that are not left out
    row, column = row[ones[column] > 1], shared[column[ones[column] > 1]]
    total = np.zeros((len(bags), len(bags)))
    for start in range(0, int(shared[-1:].sum()) + 1, COLUMNS):
        within = (start <= column) & (column < start + COLUMNS)
        table = np.zeros((len(bags), COLUMNS), dtype=np.float32)
        table[row[within], column[within] - start] = 1
        total += table @ table.T
    return total
