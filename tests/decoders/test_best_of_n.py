"""Best of N against its exact law, and the bound on its divergence."""

from __future__ import annotations

import math

import pytest

from tests.contracts import Specimen, run
from tests.decoders.conftest import divergence, surprise
from trimtab.decoders.best_of_n import BestOfN
from trimtab.decoders.protocols import BASE
from trimtab.runtime.toy_engine import Prefix, ToyModel


def law(base: dict[Prefix, float], reward: dict[Prefix, float], n: int) -> dict[Prefix, float]:
    """F(r)^n - F(r-)^n, for rewards without ties."""
    below, masses = 0.0, {}
    for y in sorted(base, key=reward.__getitem__):
        masses[y] = (below + base[y]) ** n - below**n
        below += base[y]
    return {y: masses[y] for y in base}


@pytest.mark.parametrize(("n", "kl"), [(1, 0), (2, 0.188), (4, 0.613), (16, 1.802), (64, 3.154)])
def test_divergence_and_its_bound(toy: ToyModel, reward: dict[Prefix, float], n: int, kl: float) -> None:
    base = dict(toy.sequences(toy.next({BASE: 1})))
    assert len(set(reward.values())) == len(base), "the law needs rewards without ties"
    assert divergence(law(base, reward, n), base) == pytest.approx(kl, abs=0.0005)
    assert divergence(law(base, reward, n), base) <= math.log(n) - (n - 1) / n + 1e-12


@pytest.mark.parametrize("guides", [{BASE: 1.0}, {"arm": 1.0}], ids=["base", "guided"])
async def test_answers_follow_the_law(
    toy: ToyModel, reward: dict[Prefix, float], specimen: Specimen, guides: dict[str, float]
) -> None:
    drawn = [(await run(BestOfN(n=4, guides=guides), specimen, specimen.prompts[0], seed=s))[0] for s in range(2000)]
    pi = dict(toy.sequences(toy.next({BASE: 1, **guides})))
    assert abs(surprise(drawn, law(pi, reward, 4))) < 5
    assert surprise(drawn, law(pi, reward, 3)) > 5
