"""QAlign on the toy: its kernel enumerated, and the code's chains against the law that it must reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from decoders.plain import Plain
from decoders.protocols import BASE, Sampling, Tokens
from decoders.qalign import QAlign, mixing
from decoders.toy import Prefix, ToyEngine, ToyModel
from tests.decoders.conftest import START, tilted

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


@pytest.mark.parametrize(("guides", "target"), [({}, "proposal"), (GUIDES, "proposal"), (GUIDES, "base")])
async def test_the_code_s_chains_follow_the_kernel(
    toy: ToyModel, reward: dict[Prefix, float], guides: dict[str, float], target: str
) -> None:
    """The law of the last state after 5 steps, cell by cell within 5 sigma; of a wrong beta it is told apart."""

    async def score(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        return [[reward[tuple(y)]] for y in completions]

    chains, steps, beta = 1024, 5, 0.5
    search = QAlign(beta=beta, steps=steps, chains=chains, answer="last", guides=guides, target=target)
    drawn: Counter[Prefix] = Counter()
    engine = ToyEngine(toy, start=START)
    for seed in range(2):
        sampling = Sampling(max_tokens=toy.max_tokens, seed=seed)
        async for chunk in search([START], sampling, engine, score, n=chains, want=frozenset()):
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
        [chunk] = [c async for c in search([START], sampling, engine, score, n=1, want=frozenset())]
        plain = [t async for c in Plain()([START], sampling, engine, score, n=1, want=frozenset()) for t in c.tokens]
        assert chunk.tokens == tuple(plain)


def test_mixing_of_known_chains() -> None:
    rng = np.random.default_rng(0)
    white = rng.normal(size=(8, 400))
    r_hat, size = mixing(white)
    assert r_hat == pytest.approx(1, abs=0.02)
    assert size > 0.7 * white.size
    r_hat, size = mixing(white + 5 * np.arange(8)[:, None])
    assert r_hat is not None
    assert r_hat > 3
    assert size < 40
