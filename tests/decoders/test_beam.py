"""Reward-guided beam search and DVTS: by hand on scripted answers, on the toy against a plain reference."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.contracts import Specimen, run
from tests.decoders.conftest import START, Script, told, worth
from trimtab.decoders.beam import Beam
from trimtab.decoders.best_of_n import BestOfN
from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import BASE, LimitReached, Sampling, Tokens
from trimtab.decoders.shared.candidates import derive_seed
from trimtab.runtime.toy_engine import Prefix, ToyEngine, ToyModel

BOTH = pytest.mark.parametrize("variant", ["beam", "dvts"])


def potential(y: Prefix) -> float:
    return sum((3 + 2 * i) * (t + 1) ** 2 for i, t in enumerate(y)) % 7.3


async def score(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
    return [[potential(tuple(y))] for y in completions]


async def reference(toy: ToyModel, seed: int, n: int, width: int, block: int, variant: str) -> tuple[Prefix, float]:
    """The search with lists of tokens and nothing else."""
    engine = ToyEngine(toy, start=START)

    async def drawn(kept: Prefix, n: int, seed: int) -> list[Prefix]:
        sampling = Sampling(max_tokens=min(block, toy.max_tokens - len(kept)), seed=seed, stream=False)
        found = {c.index: c.tokens async for c in engine.generate([START, *kept], sampling, n=n, guides={BASE: 1.0})}
        return [kept + found[i] for i in range(n)]

    children = await drawn((), n, seed)
    groups = [children] if variant == "beam" else [children[i : i + width] for i in range(0, n, width)]
    keep = n // width if variant == "beam" else 1
    ended = {y for y in children if toy.ended(y)}
    step = 1
    while True:
        kept = [sorted(group, key=lambda y: -potential(y))[:keep] for group in groups]
        if all(toy.ended(y) for group in kept for y in group):
            return max(((y, potential(y)) for y in ended), key=lambda pair: pair[1])
        groups, place = [], 0
        for group in kept:
            grown: list[Prefix] = []
            for y in group:
                grown += [y] if toy.ended(y) else await drawn(y, width, derive_seed(seed, place, step) or 0)
                place += 1
            groups.append(grown)
            ended |= {y for y in grown if toy.ended(y)}
        step += 1


@BOTH
@pytest.mark.parametrize(("n", "width", "block"), [(4, 2, 1), (6, 3, 1), (4, 1, 2), (8, 4, 2), (3, 3, 1)])
async def test_it_is_the_search_written_plainly(toy: ToyModel, n: int, width: int, block: int, variant: str) -> None:
    engine = ToyEngine(toy, start=START)
    for seed in range(25):
        sampling = Sampling(max_tokens=toy.max_tokens, seed=seed)
        search = Beam(n=n, width=width, block=block, variant=variant)
        [chunk] = [c async for c in search([START], sampling, engine, score, n=1, include=frozenset())]
        assert (chunk.tokens, chunk.report["value"]) == await reference(toy, seed, n, width, block, variant)


@BOTH
async def test_one_beam_is_plain_sampling(specimen: Specimen, variant: str) -> None:
    for seed in range(20):
        search = Beam(n=1, width=1, block=1, variant=variant)
        assert await run(search, specimen, (START,), seed=seed) == await run(Plain(), specimen, (START,), seed=seed)


@BOTH
async def test_a_block_of_all_tokens_is_best_of_n(specimen: Specimen, variant: str) -> None:
    for seed in range(20):
        search = Beam(n=4, width=2, block=5, variant=variant)
        assert await run(search, specimen, (START,), seed=seed) == await run(
            BestOfN(n=4), specimen, (START,), seed=seed
        )


TEXTS = ["aa", "ab", "ba", "bb"]
VALUES = {"a": 2.0, "b": 1.0, "aa": 0.0, "ab": 0.5, "ba": 9.0, "bb": 0.0}


async def test_trees_are_kept_apart() -> None:
    """Beam search drops b for a, and dvts has a tree that keeps it."""
    [(text, _)] = await told(Beam(n=4, width=2, block=1), Script(TEXTS), worth(VALUES))
    assert text == "ab"
    [(text, _)] = await told(Beam(n=4, width=2, block=1, variant="dvts"), Script(TEXTS), worth(VALUES))
    assert text == "ba"


async def test_an_answer_that_was_dropped_is_still_one() -> None:
    values = {"x": 2.0, "y": 3.0, "z": 3.0, "yy": 1.0, "zz": 0.0}
    [(text, report)] = await told(Beam(n=3, width=3, block=1), Script(["x", "yy", "zz"]), worth(values))
    assert (text, report["value"]) == ("x", 2.0)


async def test_after_the_last_round_answers_are_drawn_to_their_end(toy: ToyModel) -> None:
    asked: list[Prefix] = []

    async def reward(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        asked.extend(map(tuple, completions))
        return [[potential(tuple(y))] for y in completions]

    for seed in range(10):
        asked.clear()
        search = Beam(n=4, width=2, block=1, rounds=1)
        sampling = Sampling(max_tokens=toy.max_tokens, seed=seed)
        [chunk] = [c async for c in search([START], sampling, ToyEngine(toy, start=START), reward, n=1,
                                           include=frozenset())]  # fmt: skip
        assert toy.ended(chunk.tokens)
        assert all(len(y) == 1 or toy.ended(y) for y in asked)
        assert len(asked) <= 6


async def test_the_best_so_far() -> None:
    engine = Script(["aaaa", "bb", "cccc"], cut={0: 3, 2: 3})
    values = {"aa": 5.0, "bb": 1.0, "cc": 4.0}
    [(text, report)] = await told(Beam(n=3, width=1, block=2), engine, worth(values))
    assert (text, report["finish"]) == ("bb", "stop")
    engine = Script(["aaaa", "cccc"], cut={0: 3, 1: 3})
    [(text, report)] = await told(Beam(n=2, width=1, block=2), engine, worth(values))
    assert (text, report["finish"]) == ("aa", "deadline")
    with pytest.raises(LimitReached, match="deadline"):
        await told(Beam(n=2, width=1, block=2), Script(["aaaa", "cccc"], cut={0: 0, 1: 0}), worth(values))


def test_the_width_divides() -> None:
    with pytest.raises(ValueError, match="width=3 must divide n=4"):
        Beam(n=4, width=3)
