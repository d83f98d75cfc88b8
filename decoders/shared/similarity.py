"""How alike two answers are: an F1 over multisets of words or tokens, c_i(v) being how often v occurs in y_i:

    u(y_i, y_j) = 2 sum_v min(c_i(v), c_j(v)) / (|y_i| + |y_j|),    |y_i| = sum_v c_i(v)                             (1)

Over words it is ROUGE-1. Shapes: N answers.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

COLUMNS = 4096
"""Of the table of occurrences, looked at at a time."""


def split_words(text: str) -> list[str]:
    """Of ASCII text the same as `rouge_score`'s tokenizer without stemming gives."""
    return re.findall(r"[^\W_]+", text.lower())


def f1(bags: Sequence[Sequence[Hashable]]) -> NDArray[np.float64]:
    """[N, N] u of each pair; 0 for two empty ones. The diagonal means nothing."""
    sizes = np.array([len(bag) for bag in bags])
    return np.asarray(2 * overlaps(bags) / np.maximum(sizes[:, None] + sizes[None, :], 1))  # (1)


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
