"""Statistical rejection sampling against its exact law, which tends to the tilted one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.contracts import Specimen, run
from tests.decoders.conftest import Script, surprise, tilted, told, total_variation, worth
from trimtab.decoders.protocols import BASE
from trimtab.decoders.rejection import RejectionSampling, acceptances
from trimtab.decoders.shared.candidates import make_generator
from trimtab.runtime.toy_engine import Prefix, ToyModel


def law(base: dict[Prefix, float], reward: dict[Prefix, float], n: int, beta: float) -> dict[Prefix, float]:
    """Of the first acceptance: with maximum m = max r, less with m as the bound but all rewards below it."""
    p, r = np.array(list(base.values())), np.array([reward[y] for y in base])
    masses = np.zeros(len(p))
    for m in np.unique(r):
        chance = np.exp(np.minimum(r - m, 0) / beta)
        for sign, within in ((1, r <= m), (-1, r < m)):
            rejected, inside = (p * (1 - chance))[within].sum(), p[within].sum()
            first = sum(rejected**i * inside ** (n - 1 - i) for i in range(n))
            masses += sign * np.where(within, p * chance * first, 0)
    assert masses.sum() == pytest.approx(1, abs=1e-9)
    return dict(zip(base, masses.tolist(), strict=True))


@pytest.mark.parametrize(("n", "distance"), [(1, 0.3885), (4, 0.2445), (16, 0.1083), (64, 0.0219)])
def test_the_first_acceptance_tends_to_the_tilted_law(
    toy: ToyModel, reward: dict[Prefix, float], n: int, distance: float
) -> None:
    base = dict(toy.sequences(toy.next({BASE: 1})))
    assert total_variation(law(base, reward, n, 0.5), tilted(base, reward, 0.5)) == pytest.approx(distance, abs=0.0005)


async def test_answers_follow_the_law(toy: ToyModel, reward: dict[Prefix, float], specimen: Specimen) -> None:
    strategy = RejectionSampling(n=6, beta=0.5)
    drawn = [(await run(strategy, specimen, specimen.prompts[0], seed=s))[0] for s in range(2000)]
    base = dict(toy.sequences(toy.next({BASE: 1})))
    assert abs(surprise(drawn, law(base, reward, 6, 0.5))) < 5
    assert surprise(drawn, law(base, reward, 2, 0.5)) > 5


def test_merging_equal_candidates_would_bias_it(toy: ToyModel, reward: dict[Prefix, float]) -> None:
    """At N = 64, with and without the reference's dictionary."""
    base = dict(toy.sequences(toy.next({BASE: 1})))
    ys, runs, random = list(base), 5000, np.random.Generator(np.random.Philox(1))
    p, r = np.array(list(base.values())), [reward[y] for y in base]
    counts = {"kept": np.zeros(len(ys)), "merged": np.zeros(len(ys))}
    for seed in range(runs):
        kept = random.choice(len(ys), 64, p=p).tolist()
        for name, pool in (("kept", kept), ("merged", list(dict.fromkeys(kept)))):
            place, _ = next(acceptances([r[i] for i in pool], 0.5, make_generator(seed, 0)))
            counts[name][pool[place]] += 1
    target = np.array(list(tilted(base, reward, 0.5).values()))
    distance = {name: 0.5 * np.abs(count / runs - target).sum() for name, count in counts.items()}
    assert distance["merged"] == pytest.approx(0.204, abs=0.03)
    assert distance["kept"] < 0.06  # 0.022 exactly, and the noise of 5000 runs


@pytest.mark.parametrize("beta", [1e-3, 0.5, 1e3])
def test_acceptances_against_the_paper_s_loop(beta: float) -> None:
    for seed in range(50):
        rewards = make_generator(seed, 1).normal(size=12).round(1).tolist()
        u, left, expected, looked = make_generator(seed, 2), dict(enumerate(rewards)), [], 0
        while left:
            top = max(left.values())
            for i, r in list(left.items()):
                looked += 1
                if u.random() < np.exp((r - top) / beta):
                    expected.append((i, looked))
                    del left[i]
        assert list(acceptances(rewards, beta, make_generator(seed, 2))) == expected
        assert sorted(i for i, _ in expected) == list(range(12))


async def test_n_acceptances_and_their_rate() -> None:
    values = {text: float(i) for i, text in enumerate("abcdefgh")}
    answers = await told(RejectionSampling(n=8, beta=1.0), Script(list(values)), worth(values), n=3, seed=4)
    looked = [report["proposals"] for _, report in answers]
    assert looked == sorted(looked)
    assert [report["acceptance_rate"] for _, report in answers] == [(k + 1) / p for k, p in enumerate(looked)]


async def test_the_limits_of_beta() -> None:
    values = {"a": 0.0, "b": 2.0, "c": 2.0, "d": 1.0}
    engine, reward = Script(list(values)), worth(values)
    best = await told(RejectionSampling(n=4, beta=1e-9), engine, reward, n=4)
    assert [text for text, _ in best] == ["b", "c", "d", "a"]
    drawn = await told(RejectionSampling(n=4, beta=1e9), engine, reward, n=4)
    assert [text for text, _ in drawn] == ["a", "b", "c", "d"]
