from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from trimtab.bench.quality.best_of_n import divergence
from trimtab.bench.quality.pool import best_of


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_the_mean_over_subsets_is_that_of_all_of_them(n: int) -> None:
    rng = np.random.default_rng(0)
    values, gold = rng.integers(0, 4, 7).astype(float), rng.normal(size=7)  # with ties
    subsets = [gold[max(s, key=lambda i: (values[i], -i))] for s in combinations(range(7), n)]
    assert best_of(values, gold, n) == pytest.approx(float(np.mean(subsets)))


def test_one_of_one_is_the_base() -> None:
    assert divergence(1) == 0
