"""Guided decoding against exact enumeration: the [N] figures of GenARM's and DeRa's rows, and the papers' mixtures."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.contracts import Specimen, answers
from tests.decoders.conftest import START, tilted, total_variation
from trimtab.decoders.guided import Guided, contrastive, dera, genarm, mod, proxy_tuning
from trimtab.decoders.protocols import BASE, Sampling, no_reward
from trimtab.runtime.toy_engine import Prefix, ToyModel


def law(toy: ToyModel, strategy: Guided) -> dict[Prefix, float]:
    return dict(toy.sequences(toy.next(strategy.mixture, strategy.plausibility)))


def arm_reward(toy: ToyModel, y: Prefix) -> float:
    return sum(math.log(toy.tables["arm"][y[:t]][z]) for t, z in enumerate(y))


def mean_length(p: dict[Prefix, float]) -> float:
    return sum(len(y) * mass for y, mass in p.items())


def normaliser(toy: ToyModel, y: Prefix, alpha: float) -> float:
    """prod_t Z_t along y."""
    steps = (toy.tables["base"][y[:t]] @ toy.tables["arm"][y[:t]] ** alpha for t in range(len(y)))
    return math.prod(map(float, steps))


def test_the_toy_is_the_published_one(toy: ToyModel) -> None:
    base = law(toy, Guided(guides={}))
    assert len(base) == 63
    assert sum(base.values()) == pytest.approx(1, abs=1e-12)
    assert mean_length(base) == pytest.approx(2.68, abs=0.005)


@pytest.mark.parametrize(("alpha", "distance"), [(0.25, 0.17), (0.5, 0.27), (1, 0.38), (2, 0.45)])
def test_genarm_is_not_the_global_tilt_but_its_normalisers_correct_it(
    toy: ToyModel, alpha: float, distance: float
) -> None:
    base = law(toy, Guided(guides={}))
    target = tilted(base, {y: arm_reward(toy, y) for y in base}, 1 / alpha)
    drawn = law(toy, genarm(guides={"arm": 1}, alpha=alpha))
    assert total_variation(drawn, target) == pytest.approx(distance, abs=0.005)

    mass = {y: p * normaliser(toy, y, alpha) for y, p in drawn.items()}
    corrected = {y: m / sum(mass.values()) for y, m in mass.items()}
    assert total_variation(corrected, target) < 1e-14


def test_genarm_spreads_its_weights_and_favours_short_answers_less_than_the_tilt(toy: ToyModel) -> None:
    drawn = {alpha: law(toy, genarm(guides={"arm": 1}, alpha=alpha)) for alpha in (0.25, 1, 2)}
    ess = {
        alpha: sum(p * normaliser(toy, y, alpha) for y, p in d.items()) ** 2
        / sum(p * normaliser(toy, y, alpha) ** 2 for y, p in d.items())
        for alpha, d in drawn.items()
    }
    assert (ess[0.25], ess[2]) == pytest.approx((0.86, 0.53), abs=0.005)
    target = tilted(law(toy, Guided(guides={})), {y: arm_reward(toy, y) for y in drawn[1]}, 1)
    assert (mean_length(target), mean_length(drawn[1])) == pytest.approx((1.33, 2.17), abs=0.005)


def soft_optimum(toy: ToyModel, reward: dict[Prefix, float], beta: float) -> dict[Prefix, np.ndarray]:
    """pi*'s own next-token table."""
    target = tilted(law(toy, Guided(guides={})), reward, beta)

    def mass(prefix: Prefix) -> float:
        return sum(p for y, p in target.items() if y[: len(prefix)] == prefix)

    return {s: np.array([mass((*s, z)) for z in toy.vocab]) / mass(s) for s in toy.tables["base"]}


@pytest.mark.parametrize(("lam", "distance"), [(0, 0), (0.5, 0.072), (1, 0), (2, 0.29), (4, 0.44)])
def test_dera_between_and_beyond_its_endpoints(
    toy: ToyModel, reward: dict[Prefix, float], lam: float, distance: float
) -> None:
    both = replace(toy, tables={**toy.tables, "aligned": soft_optimum(toy, reward, beta=0.5)})
    drawn = law(both, dera(aligned="aligned", lambda_=lam))
    base = law(toy, Guided(guides={}))
    target = tilted(base, reward, 0.5 / lam) if lam else base
    assert total_variation(drawn, target) == pytest.approx(distance, abs=0.005 if distance else 1e-12)


@pytest.mark.parametrize("alpha", [0.25, 1, 2])
def test_the_right_reward_model_makes_local_decoding_exact(
    toy: ToyModel, reward: dict[Prefix, float], alpha: float
) -> None:
    """GenARM's expressiveness theorem: pi_r proportional to (pi* / pi_base)^(1/alpha) at each prefix."""
    best = soft_optimum(toy, reward, beta=0.5)
    ratio = {s: (best[s] / p) ** (1 / alpha) for s, p in toy.tables["base"].items()}
    model = replace(toy, tables={**toy.tables, "arm": {s: r / r.sum() for s, r in ratio.items()}})
    drawn = law(model, genarm(guides={"arm": 1}, alpha=alpha))
    assert total_variation(drawn, tilted(law(toy, Guided(guides={})), reward, 0.5)) < 1e-14


def test_the_papers_mixtures() -> None:
    assert genarm(guides={"a": 1, "b": 0.5}, alpha=2).mixture == {BASE: 1, "a": 2, "b": 1}
    assert dera(aligned="a", lambda_=0.25).mixture == {BASE: 0.75, "a": 0.25}
    assert mod(guides={"a": 0.3, "b": 0.7}).mixture == {BASE: 0, "a": 0.3, "b": 0.7}
    assert proxy_tuning(expert="a", antiexpert="b", alpha=0.5).mixture == {BASE: 1, "a": 0.5, "b": -0.5}
    assert contrastive(amateur="a").mixture == {BASE: 1, "a": -1}
    assert contrastive(amateur="a").plausibility == 0.1
    with pytest.raises(ValueError, match="sum to 1"):
        mod(guides={"a": 0.3, "b": 0.3})
    with pytest.raises(ValueError, match="two guides"):
        proxy_tuning(expert="a", antiexpert="a")


async def test_draws_follow_the_law(toy: ToyModel, specimen: Specimen) -> None:
    """chi-squared of 20000 answers against enumeration, at 5 sigma."""
    strategy, n = Guided(guides={"arm": 0.8}), 20_000
    drawn = await answers(
        strategy((START,), Sampling(max_tokens=5, seed=0), specimen.engine, no_reward, n=n, include=frozenset()), n
    )
    expected = law(toy, strategy)
    counts = dict.fromkeys(expected, 0)
    for y in drawn:
        counts[y] += 1
    chi2 = sum((counts[y] - n * p) ** 2 / (n * p) for y, p in expected.items())
    freedom = len(expected) - 1
    assert abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom)


async def test_warping_comes_after_the_mix(toy: ToyModel, specimen: Specimen) -> None:
    sampling = Sampling(max_tokens=5, temperature=0, seed=0)
    strategy = Guided(guides={"arm": 2.0})
    [greedy] = await answers(strategy((START,), sampling, specimen.engine, no_reward, n=1, include=frozenset()), 1)
    step = toy.next(strategy.mixture)
    assert list(greedy) == [int(np.argmax(step(greedy[:t]))) for t in range(len(greedy))]


async def test_the_implausible_is_never_drawn(toy: ToyModel, specimen: Specimen) -> None:
    strategy = contrastive(amateur="arm", alpha=0.6)
    drawn = await answers(
        strategy((START,), Sampling(max_tokens=5, seed=3), specimen.engine, no_reward, n=500, include=frozenset()), 500
    )
    for y in set(drawn):
        for t, z in enumerate(y):
            base = toy.tables["base"][y[:t]]
            assert base[z] >= 0.6 * base.max() - 1e-12


async def test_the_trace_is_the_enumerated_one(toy: ToyModel, specimen: Specimen) -> None:
    strategy = genarm(guides={"arm": 1}, alpha=0.5)
    sampling = Sampling(max_tokens=5, seed=1)
    last = [
        chunk
        async for chunk in strategy((START,), sampling, specimen.engine, no_reward, n=4, include=frozenset({"trace"}))
        if chunk.finish
    ]
    ys = await answers(strategy((START,), sampling, specimen.engine, no_reward, n=4, include=frozenset()), 4)
    for chunk in last:
        y, trace = ys[chunk.index], chunk.report["trace"]
        assert trace["log_weight"] == pytest.approx(math.log(normaliser(toy, y, 0.5)), abs=1e-12)
        mixed, base = toy.next(strategy.mixture), toy.next({BASE: 1})
        kl = [float(np.exp(mixed(y[:t])) @ (mixed(y[:t]) - base(y[:t]))) for t in range(len(y))]
        assert trace["kl_exact"] == pytest.approx(kl, abs=1e-12)


async def test_a_warped_draw_has_no_weight(specimen: Specimen) -> None:
    strategy, include = Guided(guides={"arm": 1.0}), frozenset({"trace"})
    for warped in (Sampling(max_tokens=5, temperature=0.5, seed=1), Sampling(max_tokens=5, constrained=True, seed=1)):
        chunks = strategy((START,), warped, specimen.engine, no_reward, n=1, include=include)
        [trace] = [chunk.report["trace"] async for chunk in chunks if chunk.finish]
        assert trace["log_weight"] is None
