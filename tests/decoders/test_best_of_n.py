"""Best of N against its exact law, and the bound on its divergence."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.contracts import Specimen, run
from tests.decoders.conftest import divergence, surprise
from trimtab.decoders.best_of_n import BestOfN
from trimtab.decoders.protocols import BASE, Engine
from trimtab.decoders.report import Report
from trimtab.runtime.metered import Metered
from trimtab.runtime.toy_engine import Prefix, ToyModel
from trimtab.runtime.usage import Usage


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


async def report_of(strategy: BestOfN, specimen: Specimen, engine: Engine | None = None) -> list[Report]:
    generation = strategy(
        specimen.prompts[0], specimen.sampling, engine or specimen.engine, specimen.reward, n=2, include=frozenset()
    )
    return [chunk.report async for chunk in generation if chunk.finish]


@pytest.mark.parametrize("n", [2, 16])
async def test_the_report_has_the_bound_of_the_best_alone(specimen: Specimen, n: int) -> None:
    """The integral over u in [0, 1] of log(n u^(n-1)) n u^(n-1): the KL of the largest of n uniform draws."""
    u = (np.arange(200_000) + 0.5) / 200_000
    density = n * u ** (n - 1)
    first, second = await report_of(BestOfN(n=n), specimen)
    assert first["kl_bound"] == pytest.approx(float(np.mean(density * np.log(density))), abs=1e-6)
    assert "kl_bound" not in second


async def test_no_bound_where_candidates_are_not_independent(specimen: Specimen) -> None:
    first, _ = await report_of(BestOfN(n=4, diverse={"groups": 2, "penalty": 0.5}), specimen)
    assert "kl_bound" not in first


async def test_no_bound_where_a_budget_cut_candidates(specimen: Specimen) -> None:
    metered = Metered(specimen.engine, Usage(max_sampled_tokens=4))
    first, *_ = await report_of(BestOfN(n=4), specimen, metered)
    assert "kl_bound" not in first


@pytest.mark.parametrize("guides", [{BASE: 1.0}, {"arm": 1.0}], ids=["base", "guided"])
async def test_answers_follow_the_law(
    toy: ToyModel, reward: dict[Prefix, float], specimen: Specimen, guides: dict[str, float]
) -> None:
    drawn = [(await run(BestOfN(n=4, guides=guides), specimen, specimen.prompts[0], seed=s))[0] for s in range(2000)]
    pi = dict(toy.sequences(toy.next({BASE: 1, **guides})))
    assert abs(surprise(drawn, law(pi, reward, 4))) < 5
    assert surprise(drawn, law(pi, reward, 3)) > 5
