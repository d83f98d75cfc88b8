"""Soft best of N against its exact law, which tends to the tilted one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.contracts import Specimen, run
from tests.decoders.conftest import Script, divergence, surprise, tilted, told, total_variation, worth
from trimtab.decoders.protocols import BASE
from trimtab.decoders.soft_best_of_n import SoftBestOfN
from trimtab.runtime.toy_engine import Prefix, ToyModel


def law(base: dict[Prefix, float], reward: dict[Prefix, float], n: int, lambda_: float) -> dict[Prefix, float]:
    """n pi(y) w(y) E[1 / (w(y) + S)], S the sum of n - 1 weights, by 1 / x = integral of exp(-t x), with t = exp(s)."""
    p = np.array(list(base.values()))
    w = np.exp(np.array([reward[y] for y in base]) / lambda_)
    s = np.linspace(-40, 20, 12_001)
    t = np.exp(s)[:, None]
    others = (np.exp(-t * w) @ p) ** (n - 1)
    masses = n * p * np.trapezoid(np.exp(-t * w) * w * t * others[:, None], s, axis=0)
    assert masses.sum() == pytest.approx(1, abs=1e-9)
    return dict(zip(base, masses.tolist(), strict=True))


@pytest.mark.parametrize(
    ("n", "scaled_kl", "distance"),
    [(1, 0.81, 0.389), (2, 0.72, 0.329), (4, 0.82, 0.264), (16, 1.03, 0.137), (64, 0.69, 0.054)],
)
def test_the_law_tends_to_the_tilted_one(
    toy: ToyModel, reward: dict[Prefix, float], n: int, scaled_kl: float, distance: float
) -> None:
    base = dict(toy.sequences(toy.next({BASE: 1})))
    target = tilted(base, reward, 0.5)
    soft = law(base, reward, n, 0.5)
    assert n * divergence(soft, target) == pytest.approx(scaled_kl, abs=0.01)
    assert total_variation(soft, target) == pytest.approx(distance, abs=0.001)


async def test_answers_follow_the_law(toy: ToyModel, reward: dict[Prefix, float], specimen: Specimen) -> None:
    strategy = SoftBestOfN(n=6, lambda_=0.5)
    drawn = [(await run(strategy, specimen, specimen.prompts[0], seed=s))[0] for s in range(1000)]
    base = dict(toy.sequences(toy.next({BASE: 1})))
    assert abs(surprise(drawn, law(base, reward, 6, 0.5))) < 5
    assert surprise(drawn, law(base, reward, 2, 0.5)) > 5


async def test_answers_are_draws_without_replacement() -> None:
    values = {"a": 0.0, "b": 1.0, "c": 2.0}
    weight = {text: np.exp(r) for text, r in values.items()}
    total = sum(weight.values())
    expected = {(x, y): weight[x] / total * weight[y] / (total - weight[x]) for x in values for y in values if x != y}
    strategy, engine, reward, runs = SoftBestOfN(n=3, lambda_=1.0), Script(list(values)), worth(values), 1000
    pairs = []
    for seed in range(runs):
        (first, _), (second, _) = await told(strategy, engine, reward, n=2, seed=seed)
        pairs.append((first, second))
    chi2 = sum((pairs.count(pair) - runs * p) ** 2 / (runs * p) for pair, p in expected.items())
    assert (chi2 - 5) / np.sqrt(2 * 5) < 5


async def test_the_effective_sample_size() -> None:
    engine = Script(["a", "b", "c", "d"])
    for values, size in (([1.0] * 4, 4.0), ([0.0, 0.0, 0.0, 1e9], 1.0)):
        [(_, report)] = await told(SoftBestOfN(n=4, lambda_=1.0), engine, worth(dict(zip("abcd", values, strict=True))))
        assert report["effective_sample_size"] == pytest.approx(size)


async def test_a_low_temperature_is_best_of_n_and_does_not_overflow() -> None:
    values = {"a": -1e300, "b": 1e300, "c": 0.0}
    for seed in range(20):
        [(text, _)] = await told(SoftBestOfN(n=3, lambda_=1e-300), Script(list(values)), worth(values), seed=seed)
        assert text == "b"


async def test_without_a_seed_draws_differ() -> None:
    strategy, engine, reward = SoftBestOfN(n=4, lambda_=1.0), Script(list("abcd")), worth(dict.fromkeys("abcd", 0.0))
    seeded = {(await told(strategy, engine, reward, seed=-3))[0][0] for _ in range(20)}
    unseeded = {(await told(strategy, engine, reward, seed=None))[0][0] for _ in range(60)}
    assert len(seeded) == 1
    assert len(unseeded) > 1
