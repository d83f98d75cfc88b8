"""QAlign on the toy: its kernel enumerated, and the code's chains against the law that it must reach."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from tests.decoders.conftest import START, tilted
from trimtab.decoders import STRATEGIES
from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import BASE, Chunk, Sampling, Tokens
from trimtab.decoders.qalign import QAlign
from trimtab.decoders.shared.convergence import measure_mixing
from trimtab.runtime.toy_engine import Prefix, ToyEngine, ToyModel

GUIDES = {"arm": 1.0}


def law(toy: ToyModel, guides: dict[str, float]) -> dict[Prefix, float]:
    return dict(toy.sequences(toy.next({BASE: 1.0, **guides})))


def kernel(
    toy: ToyModel, reward: dict[Prefix, float], beta: float, guides: dict[str, float], to_base: bool
) -> np.ndarray:
    """[Y, Y] transition probabilities by equations (2) and (3), every proposal enumerated."""
    q, base = law(toy, guides), law(toy, {})
    answers = list(q)
    at = {y: k for k, y in enumerate(answers)}
    c = {y: np.log(base[y] / q[y]) if to_base else 0.0 for y in answers}
    out = np.zeros((len(answers), len(answers)))
    for y in answers:
        for i in range(len(y)):
            for new, p in toy.sequences(toy.next({BASE: 1.0, **guides}), y[:i]):
                ratio = np.exp((reward[new] - reward[y]) / beta + c[new] - c[y]) * len(y) / len(new)
                accepted = p / len(y) * min(1.0, ratio)
                out[at[y], at[new]] += accepted
                out[at[y], at[y]] += p / len(y) - accepted
    return out


@pytest.mark.parametrize("beta", [0.1, 0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("guides", "to_base"), [({}, False), (GUIDES, False), (GUIDES, True)])
def test_the_kernel_keeps_the_target(
    toy: ToyModel, reward: dict[Prefix, float], beta: float, guides: dict[str, float], to_base: bool
) -> None:
    target = tilted(law(toy, {} if to_base else guides), reward, beta)
    p = np.array(list(target.values()))
    flow = p[:, None] * kernel(toy, reward, beta, guides, to_base)
    assert np.abs(flow - flow.T).max() < 1e-15, "detailed balance"
    assert 0.5 * np.abs(flow.sum(0) - p).sum() < 1e-10


def test_the_distance_by_step_is_the_paper_s_chain_s(toy: ToyModel, reward: dict[Prefix, float]) -> None:
    """TV after 0, 1, 2, 4 … 128 steps from the base at beta = 0.5, and the kernel's second eigenvalue."""
    p, k = np.array(list(law(toy, {}).values())), kernel(toy, reward, 0.5, {}, False)
    target = np.array(list(tilted(law(toy, {}), reward, 0.5).values()))
    found = [0.5 * np.abs(p @ np.linalg.matrix_power(k, t) - target).sum() for t in (0, 1, 2, 4, 8, 16, 32, 64, 128)]
    assert found == pytest.approx([0.389, 0.308, 0.258, 0.202, 0.142, 0.079, 0.028, 0.005, 0.0002], abs=1e-3)
    assert sorted(np.abs(np.linalg.eigvals(k)))[-2] == pytest.approx(0.952, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("guides", "target"), [({}, "proposal"), (GUIDES, "proposal"), (GUIDES, "base")])
async def test_the_code_s_chains_follow_the_kernel(
    toy: ToyModel, reward: dict[Prefix, float], guides: dict[str, float], target: str
) -> None:
    """The law of the last state after 5 steps, cell by cell within 5 sigma; of a wrong beta it is told apart."""

    async def score(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        return [[reward[tuple(y)]] for y in completions]

    chains, steps, beta = 1024, 5, 0.5
    search = QAlign(beta=beta, steps=steps, chains=chains, answer="last", guides={BASE: 1.0, **guides}, target=target)
    drawn: Counter[Prefix] = Counter()
    engine = ToyEngine(toy, start=START)
    for seed in range(2):
        sampling = Sampling(max_tokens=toy.max_tokens, seed=seed)
        async for chunk in search([START], sampling, engine, score, n=chains, include=frozenset()):
            drawn[chunk.tokens] += 1
    n = drawn.total()
    answers = list(law(toy, {}))
    start = np.array(list(law(toy, guides).values()))

    def worst(beta: float) -> float:
        p = start @ np.linalg.matrix_power(kernel(toy, reward, beta, guides, target == "base"), steps)
        seen = np.array([drawn[y] for y in answers])
        return float(np.max(np.abs(seen - n * p) / np.sqrt(n * p * (1 - p) + 1)))

    assert worst(beta) < 5
    assert worst(100.0) > 5


async def test_no_steps_are_plain_sampling(toy: ToyModel, reward: dict[Prefix, float]) -> None:
    async def score(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        return [[reward[tuple(y)]] for y in completions]

    engine = ToyEngine(toy, start=START)
    for seed in range(10):
        sampling = Sampling(max_tokens=toy.max_tokens, seed=seed)
        search = QAlign(steps=0, chains=1, answer="last")
        [chunk] = [c async for c in search([START], sampling, engine, score, n=1, include=frozenset())]
        plain = [t async for c in Plain()([START], sampling, engine, score, n=1, include=frozenset()) for t in c.tokens]
        assert chunk.tokens == tuple(plain)


def test_mixing_of_known_chains() -> None:
    rng = np.random.default_rng(0)
    white = rng.normal(size=(8, 400))
    r_hat, size = measure_mixing(white)
    assert r_hat == pytest.approx(1, abs=0.02)
    assert size > 0.7 * white.size
    r_hat, size = measure_mixing(white + 5 * np.arange(8)[:, None])
    assert r_hat is not None
    assert r_hat > 3
    assert size < 40


def mixing_slow(traces: np.ndarray) -> float:
    """Split R-hat by its definition (Gelman et al., BDA 3, 11.4), one chain at a time."""
    half = traces.shape[1] // 2
    parts = [part for chain in traces for part in (chain[:half], chain[-half:])]
    within = sum(float(np.var(part, ddof=1)) for part in parts) / len(parts)
    means = [float(np.mean(part)) for part in parts]
    between = half * float(np.var(means, ddof=1))
    return float(np.sqrt(((half - 1) / half * within + between / half) / within))


def test_split_r_hat_is_its_definition() -> None:
    traces = np.cumsum(np.random.default_rng(1).normal(size=(3, 41)), axis=1)
    assert measure_mixing(traces)[0] == pytest.approx(mixing_slow(traces), rel=1e-12)


class Uneven:
    """A toy whose generations take turns of random length, so that some chains run ahead of others."""

    def __init__(self, engine: ToyEngine, seed: int) -> None:
        self.engine = engine
        self.rng = random.Random(seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def generate(self, *args: Any, **more: Any) -> AsyncGenerator[Chunk, None]:
        for _ in range(self.rng.choice((0, 0, 0, 40))):
            await asyncio.sleep(0)
        async with aclosing(self.engine.generate(*args, **more)) as chunks:
            async for chunk in chunks:
                yield chunk


@pytest.mark.parametrize(
    ("until", "holds"),
    [
        ({"r_hat": 1.05}, lambda told: told["r_hat"] <= 1.05),
        ({"effective_sample_size": 60, "floor": 8}, lambda told: told["effective_sample_size"] >= 60),
        ({"r_hat": 1.1, "effective_sample_size": 40},
         lambda told: told["r_hat"] <= 1.1 and told["effective_sample_size"] >= 40),
    ],
)  # fmt: skip
async def test_chains_stop_once_they_agree_and_not_by_the_clock(
    toy: ToyModel, reward: dict[Prefix, float], until: Any, holds: Any
) -> None:
    async def score(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        return [[reward[tuple(y)]] for y in completions]

    search = QAlign(beta=0.5, steps=2000, chains=4, burn_in=3, until=until)
    sampling = Sampling(max_tokens=toy.max_tokens, seed=5)
    found = []
    for hurry in range(3):
        engine = ToyEngine(toy, start=START)
        steps = search([START], sampling, Uneven(engine, hurry), score, n=1, include=frozenset({"trace"}))
        found += [chunk async for chunk in steps]
        assert engine.live == 0
    first, *others = found
    assert all((chunk.tokens, chunk.report) == (first.tokens, first.report) for chunk in others)
    told = first.report
    lengths = {len(chain["reward"]) for chain in told["trace"]}
    assert len(lengths) == 1
    assert 3 + until.get("floor", 16) <= lengths.pop() < 2000
    assert holds(told)
    assert told["steps"] == sum(len(chain["accepted"]) for chain in told["trace"])


async def test_chains_that_never_agree_run_to_their_end(toy: ToyModel, reward: dict[Prefix, float]) -> None:
    async def score(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        return [[1.0] for _ in completions]

    search = QAlign(steps=40, chains=2, until={"r_hat": 1.001})
    sampling = Sampling(max_tokens=toy.max_tokens, seed=5)
    [chunk] = [c async for c in search([START], sampling, ToyEngine(toy, start=START), score, n=1, include=frozenset())]
    assert (chunk.report["steps"], chunk.report["r_hat"]) == (80, None)


async def test_the_states_shown_are_those_of_the_trace(toy: ToyModel, reward: dict[Prefix, float]) -> None:
    """Each once, as often visited as the traces say, with the reward that they give; the best of them is answered."""

    async def score(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        return [[reward[tuple(y)]] for y in completions]

    search = QAlign(beta=0.5, steps=20, chains=3, answer="max_reward")
    sampling, include = Sampling(max_tokens=toy.max_tokens, seed=2), frozenset({"trace", "candidates"})
    [chunk] = [c async for c in search([START], sampling, ToyEngine(toy, start=START), score, n=1, include=include)]
    shown, traces = chunk.report["candidates"], chunk.report["trace"]
    assert [c["index"] for c in shown] == list(range(len({c["tokens"] for c in shown})))
    visited = Counter(i for chain in traces for i in chain["candidate"])
    assert visited == {c["index"]: c["visits"] for c in shown}
    assert visited.total() == 63
    for chain in traces:
        assert chain["reward"] == [shown[i]["value"] for i in chain["candidate"]]
        assert chain["length"] == [len(shown[i]["tokens"]) for i in chain["candidate"]]
        moved = [a != b for a, b in itertools.pairwise(chain["candidate"])]
        assert all(accepted for accepted, m in zip(chain["accepted"], moved, strict=True) if m)
    assert all(c["value"] == reward[c["tokens"]] for c in shown)
    assert chunk.tokens == max(shown, key=lambda c: c["value"])["tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [("0 1",), ("1 1", "0 0")])
async def test_a_stop_string_ends_an_answer_wherever_it_begins(toy: ToyModel, stop: tuple[str, ...]) -> None:
    """Under a reward of nothing the chains keep the law of answers ended at the string, cell by cell within 5 sigma."""

    async def nothing(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        return [[0.0] for _ in completions]

    engine = ToyEngine(toy, start=START)

    def ended(y: Prefix) -> Prefix:
        return next((y[:k] for k in range(len(y)) if any(s in engine.text(y[:k]) for s in stop)), y)

    target: Counter[Prefix] = Counter()
    for y, p in law(toy, {}).items():
        target[ended(y)] += p  # type: ignore[assignment]
    drawn: Counter[Prefix] = Counter()
    search = QAlign(steps=6, chains=1024, answer="last")
    for seed in range(2):
        sampling = Sampling(max_tokens=toy.max_tokens, seed=seed, stop=stop)
        async for chunk in search([START], sampling, engine, nothing, n=1024, include=frozenset()):
            drawn[chunk.tokens] += 1
            if any(s in engine.text(chunk.tokens) for s in stop):
                assert chunk.finish == "stop"
    assert drawn.keys() <= target.keys()
    n = drawn.total()
    off = [abs(drawn[y] - n * p) / np.sqrt(n * p * (1 - p) + 1) for y, p in target.items()]
    assert max(off) < 5


@pytest.mark.parametrize(("sampling", "warned"), [
    ({}, []),
    ({"temperature": 0.7, "top_p": 0.9}, ["the model's under temperature=0.7, top_p=0.9"]),
    ({"top_k": 2, "stop": ("0 1",)}, ["the model's under top_k=2", "ended at a stop string"]),
])  # fmt: skip
async def test_where_exactness_is_lost_it_is_said(toy: ToyModel, sampling: Any, warned: list[str]) -> None:
    async def score(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        return [[float(len(y))] for y in completions]

    asked = Sampling(max_tokens=toy.max_tokens, seed=1, **sampling)
    search = QAlign(steps=3)
    [chunk] = [c async for c in search([START], asked, ToyEngine(toy, start=START), score, n=1, include=frozenset())]
    told = chunk.report.get("warnings", [])
    assert len(told) == len(warned)
    assert all(text in warning for text, warning in zip(warned, told, strict=True))


@pytest.mark.parametrize(("params", "sampling", "n", "message"), [
    ({"target": "base", "guides": GUIDES}, {"temperature": 0.5}, 1, "needs temperature 1"),
    ({"answer": "last", "chains": 2}, {}, 3, "cannot be the last of params.chains=2"),
    ({}, {"restarts": ("bad_words",)}, 1, "bad_words cannot be carried on"),
    ({}, {"logprobs": True}, 1, "cannot be combined with logprobs"),
])  # fmt: skip
async def test_what_cannot_be_is_refused_before_any_work(
    toy: ToyModel, params: Any, sampling: Any, n: int, message: str
) -> None:
    async def unasked(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        raise AssertionError

    asked = Sampling(max_tokens=toy.max_tokens, **sampling)
    chunks = QAlign(**params)([START], asked, ToyEngine(toy, start=START), unasked, n=n, include=frozenset())

    async def attempt() -> None:
        STRATEGIES["qalign"].check_sampling("qalign", asked)
        await anext(chunks)

    with pytest.raises(ValueError, match=message):
        await attempt()
    for wrong in ({"steps": 4, "burn_in": 5}, {"until": {}}, {"until": {"floor": 8}}):
        with pytest.raises(ValueError, match=r"burn_in=5|until names neither"):
            QAlign(**wrong)
