"""Particle filtering on the toy: the measure that it estimates without bias, its resampling, and its neutral values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.contracts import Specimen, run
from tests.decoders.conftest import START, Script, tilted, told, total_variation, worth
from trimtab.decoders.particles import Particles, System, resample_systematically
from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import BASE, LimitReached, Reward, Sampling, Tokens
from trimtab.decoders.shared.blocks import PartialAnswer
from trimtab.decoders.shared.candidates import make_generator, softmax
from trimtab.decoders.soft_best_of_n import SoftBestOfN
from trimtab.runtime.toy_engine import Prefix, ToyEngine, ToyModel

BETA = 0.7
ARM = {"arm": 1.0}


def potential(reward: dict[Prefix, float], y: Prefix) -> float:
    """r of a whole answer, and an arbitrary number for a beginning."""
    return reward[y] if y in reward else float(np.sin(sum((5 + i) * (t + 1) for i, t in enumerate(y))))


def scoring(reward: dict[Prefix, float], columns: int = 1) -> Reward:
    """With two columns, the first knows nothing of beginnings."""

    async def score(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        if columns == 1:
            return [[potential(reward, tuple(y))] for y in completions]
        return [[reward.get(tuple(y), 1e3), potential({}, tuple(y))] for y in completions]

    return score


async def filtered(search: Particles, engine: ToyEngine, reward: dict[Prefix, float], seed: int) -> dict[str, Any]:
    sampling = Sampling(max_tokens=engine.model.max_tokens, seed=seed)
    score = scoring(reward, 1 if search.prefix_reward is None else 2)
    chunks = search([START], sampling, engine, score, n=1, include=frozenset({"candidates"}))
    [chunk] = [c async for c in chunks]
    return {**chunk.report, "answer": chunk.tokens, "finish": chunk.finish}


def law(toy: ToyModel, guides: dict[str, float]) -> dict[Prefix, float]:
    return dict(toy.sequences(toy.next({BASE: 1.0, **guides})))


def measure(toy: ToyModel, reward: dict[Prefix, float], search: Particles) -> dict[Prefix, float]:
    """gamma(y): the target before it is normalised."""
    pi = law(toy, {} if search.target == "base" else dict(search.guides))

    def log_weight(y: Prefix) -> float:
        if search.variant == "increments":
            return reward[y] / search.beta
        ends = [*range(search.block, len(y), search.block), len(y)]
        return sum(potential(reward, y[:end]) for end in ends) / search.beta

    return {y: p * float(np.exp(log_weight(y))) for y, p in pi.items()}


SEARCHES = [
    Particles(n=4, beta=BETA, block=1),
    Particles(n=4, beta=BETA, block=1, ess=1.0),
    Particles(n=3, beta=BETA, block=2),
    Particles(n=4, beta=BETA, block=1, guides=ARM),
    Particles(n=4, beta=BETA, block=2, guides=ARM, target="base"),
    Particles(n=4, beta=BETA, block=1, prefix_reward="value"),
    Particles(n=4, beta=BETA, block=1, variant="pf_reference"),
    Particles(n=4, beta=BETA, block=2, variant="pf_reference"),
]


@pytest.mark.slow
@pytest.mark.parametrize("search", SEARCHES, ids=repr)
async def test_the_target_s_measure_is_estimated_without_bias(
    toy: ToyModel, reward: dict[Prefix, float], search: Particles
) -> None:
    """E[Z sum_i w_i 1{y_i = y}] = gamma(y) for every answer y, however few particles; 5 sigma over 1000 runs.

    The normaliser is its sum. Of the other variant's measure, it is told apart.
    """
    engine, gamma = ToyEngine(toy, start=START), measure(toy, reward, search)
    answers = list(gamma)
    place = {y: k for k, y in enumerate(answers)}
    runs = 1000
    found = np.zeros((runs, len(answers)))
    for seed in range(runs):
        report = await filtered(search, engine, reward, seed)
        for one in report["candidates"]:
            found[seed, place[one["tokens"]]] += np.exp(report["log_normaliser"]) * one["weight"]

    def worst(gamma: dict[Prefix, float]) -> float:
        common = (found > 0).sum(axis=0) > 10
        exact = np.array([gamma[y] for y in answers])
        cells = np.column_stack([found[:, common], found[:, ~common].sum(axis=1), found.sum(axis=1)])
        truth = np.array([*exact[common], exact[~common].sum(), exact.sum()])
        spread = cells.std(axis=0) / np.sqrt(runs)
        return float(np.max(np.abs(cells.mean(axis=0) - truth) / np.maximum(spread, 1e-3)))

    assert worst(gamma) < 5
    twin = Particles(
        n=4, beta=BETA, block=1, variant="pf_reference" if search.variant == "increments" else "increments"
    )
    assert worst(measure(toy, reward, twin)) > 5


@pytest.mark.slow
async def test_more_particles_come_nearer_to_the_target(toy: ToyModel, reward: dict[Prefix, float]) -> None:
    """TV of the answer's law, from the weights of all particles, which have less noise than the answers drawn."""
    target = tilted(law(toy, {}), reward, BETA)
    engine = ToyEngine(toy, start=START)
    apart = []
    for n, runs in ((1, 3000), (4, 750), (32, 200)):
        mass = dict.fromkeys(target, 0.0)
        for seed in range(runs):
            report = await filtered(Particles(n=n, beta=BETA, block=1), engine, reward, seed)
            for one in report["candidates"]:
                mass[one["tokens"]] += one["weight"] / runs
        apart.append(total_variation(mass, target))
    assert apart[1] < 0.7 * apart[0]
    assert apart[2] < 0.5 * apart[1]


async def test_the_answer_is_drawn_by_weight(toy: ToyModel, reward: dict[Prefix, float]) -> None:
    """How often the particle of the greatest weight is answered, against its weight; 5 sigma."""
    engine, hits = ToyEngine(toy, start=START), []
    for seed in range(400):
        report = await filtered(Particles(n=4, beta=0.2, block=2, ess=0.0), engine, reward, seed)
        mass: dict[Prefix, float] = {}
        for one in report["candidates"]:
            mass[one["tokens"]] = mass.get(one["tokens"], 0.0) + one["weight"]
        best = max(mass, key=lambda y: mass[y])
        hits.append((report["answer"] == best) - mass[best])
    assert abs(np.mean(hits)) < 5 * np.std(hits) / np.sqrt(len(hits))


@pytest.mark.parametrize("search", [Particles(n=6, beta=0.5, block=5), Particles(n=6, beta=0.5, block=1, ess=0.0)])
async def test_without_resampling_weights_are_soft_best_of_n_s(
    toy: ToyModel, reward: dict[Prefix, float], search: Particles
) -> None:
    report = await filtered(search, ToyEngine(toy, start=START), reward, 1)
    rewards = [one["value"] for one in report["candidates"]]
    assert [one["weight"] for one in report["candidates"]] == pytest.approx(softmax(rewards, 0.5).tolist())
    mean = np.mean(np.exp(np.array(rewards) / 0.5))
    assert report["log_normaliser"] == pytest.approx(float(np.log(mean)))
    assert report["kl_estimate"] == pytest.approx(float(softmax(rewards, 0.5) @ np.array(rewards) / 0.5 - np.log(mean)))
    if search.block == 5:
        pool = [c async for c in SoftBestOfN(n=6, lambda_=0.5)([START], Sampling(max_tokens=5, seed=1),
                ToyEngine(toy, start=START), scoring(reward), n=1, include=frozenset({"candidates"}))]  # fmt: skip
        [shown] = [c.report["candidates"] for c in pool if "candidates" in c.report]
        assert [one["tokens"] for one in shown] == [one["tokens"] for one in report["candidates"]]


@pytest.mark.parametrize("answer", ["sample", "max_reward", "vote"])
async def test_one_particle_is_plain_sampling(specimen: Specimen, answer: str) -> None:
    for seed in range(20):
        search = Particles(n=1, block=1, answer=answer, extractor="text")
        assert await run(search, specimen, (START,), seed=seed) == await run(Plain(), specimen, (START,), seed=seed)


def test_systematic_resampling_keeps_shares() -> None:
    """Each between floor and ceil of N w_i, and N w_i on average; 5 sigma."""
    weights = np.array([0.05, 0.31, 0.0, 0.44, 0.2])
    rng = make_generator(0, 1)
    counts = np.array([np.bincount(resample_systematically(weights, rng), minlength=5) for _ in range(4000)])
    assert (counts >= np.floor(5 * weights - 1e-9)).all()
    assert (counts <= np.ceil(5 * weights + 1e-9)).all()
    spread = np.maximum(counts.std(axis=0) / np.sqrt(len(counts)), 1e-12)
    assert (np.abs(counts.mean(axis=0) - 5 * weights) / spread < 5)[counts.std(axis=0) > 0].all()


def test_the_effective_size_decides() -> None:
    def system() -> System:
        return System(particles=[PartialAnswer()] * 4, logw=np.log(np.array([0.7, 0.1, 0.1, 0.1])))

    even = system()
    assert even.effective == pytest.approx(1 / 0.52)
    for ess, resampled in ((0.4, 0), (0.5, 1), (1.0, 1), (0.0, 0)):
        one = system()
        one.resample(make_generator(0, 0), ess, "increments")
        assert one.resampled == resampled
        assert one.log_normaliser + one.log_mean == pytest.approx(float(np.log(0.25)))


async def test_the_vote_is_by_weight() -> None:
    texts = ["a 1", "b 2", "c 2"]
    values = {"a 1": 1.0, "b 2": 0.5, "c 2": 0.5}
    search = Particles(n=3, block=8, answer="vote", beta=1.0)
    [(text, _)] = await told(search, Script(texts), worth(values))
    assert text == "b 2"
    [(text, _)] = await told(Particles(n=3, block=8, answer="vote", beta=0.1), Script(texts), worth(values))
    assert text == "a 1"


async def test_n_answers_are_different_ones() -> None:
    texts = ["aa", "bb", "cc"]
    answers = await told(Particles(n=3, block=8), Script(texts), worth(dict.fromkeys(texts, 0.0)), n=3)
    assert sorted(text for text, _ in answers) == texts


async def test_what_ended_is_in_hand_when_time_is_up() -> None:
    values = {"aa": 3.0, "bb": 1.0, "cc": 2.0}
    engine = Script(["aaaa", "bb", "cccc"], cut={0: 3})
    [(text, report)] = await told(Particles(n=3, block=2, ess=0.0), engine, worth({**values, "cccc": 0.0}))
    assert (text, report["finish"]) == ("cccc", "stop") or (text, report["finish"]) == ("bb", "stop")
    [(text, report)] = await told(
        Particles(n=2, block=2, ess=0.0), Script(["aaaa", "cccc"], cut={0: 3, 1: 3}), worth(values)
    )
    assert (text, report["finish"]) == ("aa", "deadline")
    with pytest.raises(LimitReached, match="deadline"):
        await told(Particles(n=2, block=2), Script(["aaaa", "cccc"], cut={0: 0, 1: 0}), worth(values))


async def test_another_target_needs_exact_sampling(specimen: Specimen) -> None:
    search = Particles(target="base", guides=ARM)
    with pytest.raises(ValueError, match="temperature 1"):
        async for _ in search([START], Sampling(max_tokens=4, top_k=2), specimen.engine, specimen.reward, n=1,
                              include=frozenset()):  # fmt: skip
            pass
