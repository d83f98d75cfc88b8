"""Blockwise decoding on the toy: its law enumerated, and what it becomes at the ends."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.contracts import Specimen, run
from tests.decoders.conftest import START, Script, surprise, tilted, told, total_variation, worth
from trimtab.decoders import STRATEGIES
from trimtab.decoders.best_of_n import BestOfN
from trimtab.decoders.blockwise import Blockwise
from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import BASE, Reward, Sampling, Tokens
from trimtab.runtime.toy_engine import Prefix, ToyEngine, ToyModel

BETA = 0.5


def soft_value(toy: ToyModel, reward: dict[Prefix, float]) -> dict[Prefix, float]:
    """V*(s) = beta log E_pi[exp(r / beta) | s] of every beginning, r(y) of a whole answer."""
    law = toy.next({BASE: 1.0})
    found: dict[Prefix, float] = {}

    def visit(s: Prefix) -> None:
        mass = sum(p * np.exp(reward[y] / BETA) for y, p in toy.sequences(law, s))
        found[s] = BETA * float(np.log(mass))
        if not toy.ended(s):
            for t in toy.vocab:
                visit((*s, t))

    visit(())
    return found


def table(values: dict[Prefix, float]) -> Reward:
    async def reward(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        return [[values[tuple(y)]] for y in completions]

    return reward


def law(toy: ToyModel, values: dict[Prefix, float], k: int, beta: float) -> dict[Prefix, float]:
    """Of k blocks of one token each, every multiset of draws enumerated."""
    base = toy.next({BASE: 1.0})

    def step(s: Prefix) -> np.ndarray:
        p, v = np.exp(base(s)), np.array([values[(*s, t)] for t in toy.vocab])
        out = np.zeros(len(toy.vocab))
        for counts in itertools.product(range(k + 1), repeat=len(toy.vocab)):
            if sum(counts) != k:
                continue
            c = np.array(counts)
            orders = np.exp(sum(np.log(range(1, k + 1))) - sum(float(np.log(range(1, n + 1)).sum()) for n in counts))
            chosen = c * np.exp((v - v.max()) / beta) if beta else c * (v == v[c > 0].max())
            out += orders * np.prod(p**c) * chosen / chosen.sum()
        return np.log(out)

    return dict(toy.sequences(step))


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, BETA])
async def test_blocks_are_chosen_by_the_law(toy: ToyModel, reward: dict[Prefix, float], beta: float) -> None:
    """1500 answers against the enumerated law, 5 sigma."""
    values = soft_value(toy, reward)
    engine, search = ToyEngine(toy, start=START), Blockwise(n=3, block=1, beta=beta)
    drawn: list[Prefix] = []
    for seed in range(1500):
        sampling = Sampling(max_tokens=toy.max_tokens, seed=seed)
        chunks = search([START], sampling, engine, table(values), n=1, include=frozenset())
        drawn.append(tuple([t async for c in chunks for t in c.tokens]))
    assert surprise(drawn, law(toy, values, 3, beta)) < 5
    assert surprise(drawn, law(toy, values, 3, BETA - beta)) > 5


@pytest.mark.slow
def test_many_blocks_weighed_by_the_soft_value_reach_the_target(toy: ToyModel, reward: dict[Prefix, float]) -> None:
    values = soft_value(toy, reward)
    target = tilted(dict(toy.sequences(toy.next({BASE: 1.0}))), reward, BETA)
    apart = [total_variation(law(toy, values, k, BETA), target) for k in (1, 2, 8, 64)]
    assert apart == sorted(apart, reverse=True)
    assert apart[0] == pytest.approx(0.389, abs=1e-3)
    assert apart[-1] < 0.05
    assert apart[-1] < apart[-2] / 4, "no O(1/K)"


@pytest.mark.parametrize("guides", [{"base": 1.0}, {"arm": 1.0}])
async def test_a_block_of_all_tokens_is_best_of_n(specimen: Specimen, guides: dict[str, float]) -> None:
    for seed in range(20):
        blocks = await run(Blockwise(n=5, block=5, guides=guides), specimen, (START,), seed=seed)
        assert blocks == await run(BestOfN(n=5, guides=guides), specimen, (START,), seed=seed)


async def test_one_block_of_each_is_plain_sampling(specimen: Specimen) -> None:
    for seed in range(20):
        assert await run(Blockwise(n=1, block=1), specimen, (START,), seed=seed) == await run(
            Plain(), specimen, (START,), seed=seed
        )


async def test_it_goes_on_from_the_best_block() -> None:
    texts = ["aa.bb", "ab.cc", "ab.dd"]
    values = {"aa": 1.0, "ab": 2.0, "ab.c": 1.0, "ab.d": 5.0, "ab.cc": 0.0, "ab.dd": 1.0}
    [(text, report)] = await told(Blockwise(n=3, block=2), Script(texts), worth(values))
    assert (text, report["value"], report["blocks"]) == ("ab.dd", 1.0, 3)
    assert report["kl_bound"] == pytest.approx(3 * (np.log(3) - 2 / 3))


async def test_a_step_ends_a_block(toy: ToyModel) -> None:
    """Blocks of up to 5 tokens that end at a 1: what is compared ends with one, with an end, or is full."""
    asked: list[Prefix] = []

    async def reward(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        asked.extend(map(tuple, completions))
        return [[float(len(y))] for y in completions]

    for seed in range(20):
        sampling = Sampling(max_tokens=toy.max_tokens, seed=seed)
        chunks = Blockwise(n=3, block=5, step="1")([START], sampling, ToyEngine(toy, start=START), reward, n=1,
                                                   include=frozenset())  # fmt: skip
        answer = tuple([t async for c in chunks for t in c.tokens])
        assert toy.ended(answer)
    ends = Counter(y[-1] for y in asked if len(y) < 5)
    assert set(ends) == {1, toy.eos}


async def test_the_blocks_chosen_are_the_best_so_far() -> None:
    values = {"ab": 2.0, "ac": 1.0, "abcd": 1.0, "abce": 3.0}
    engine = Script(["abcdef", "acxxxx", "abceff"], cut={0: 5, 2: 5})
    [(text, report)] = await told(Blockwise(n=3, block=2), engine, worth(values))
    assert (text, report["finish"], report["value"]) == ("abce", "deadline", 3.0)


async def test_in_the_first_block_the_best_that_ended_is_in_hand() -> None:
    engine = Script(["aaaa", "bb", "cccc"], cut={0: 3, 2: 3})
    [(text, report)] = await told(Blockwise(n=3, block=8), engine, worth({"bb": 1.0}))
    assert (text, report["finish"]) == ("bb", "stop")
    engine = Script(["aaaa", "bbbb"], cut={0: 3, 1: 3})
    [(text, report)] = await told(Blockwise(n=2, block=8), engine, worth({"aaa": 1.0, "bbb": 2.0}))
    assert (text, report["finish"]) == ("bbb", "deadline")


@pytest.mark.parametrize("logprobs", [True, False])
async def test_what_pieces_would_not_carry_out_is_refused(specimen: Specimen, logprobs: bool) -> None:
    sampling = replace(specimen.sampling, logprobs=logprobs, restarts=() if logprobs else ("bad_words",))
    with pytest.raises(ValueError, match="blockwise"):
        STRATEGIES["blockwise"].check_sampling("blockwise", sampling)
