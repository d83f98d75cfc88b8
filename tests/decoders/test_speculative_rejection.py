"""Speculative rejection against best of N on the same answers, and what it draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.contracts import Specimen, run
from tests.decoders.conftest import START, Script, told, worth
from trimtab.decoders import STRATEGIES
from trimtab.decoders.best_of_n import BestOfN
from trimtab.decoders.protocols import Sampling, Tokens
from trimtab.decoders.speculative_rejection import SpeculativeRejection, derive_seed

LENGTHS = (2, 4, 8)


def pool(random: np.random.Generator, n: int = 12) -> list[str]:
    """Texts that differ from their first character on, so that a beginning has one continuation."""
    return [chr(300 + i) + "x" * int(random.integers(0, 14)) for i in range(n)]


def beginnings(texts: list[str]) -> list[str]:
    return [text[:k] for text in texts for k in range(1, len(text) + 1)]


async def test_nothing_dropped_is_best_of_n(specimen: Specimen) -> None:
    neutral = SpeculativeRejection(n=6, alpha=0, decisions=(1, 2, 3))
    for seed in range(20):
        for n in (1, 3):
            assert await run(neutral, specimen, specimen.prompts[0], seed=seed, n=n) == await run(
                BestOfN(n=6), specimen, specimen.prompts[0], seed=seed, n=n
            )


async def test_answers_shorter_than_the_first_decision_are_best_of_n_s(specimen: Specimen) -> None:
    for seed in range(20):
        assert await run(SpeculativeRejection(n=6), specimen, specimen.prompts[0], seed=seed) == await run(
            BestOfN(n=6), specimen, specimen.prompts[0], seed=seed
        )


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.9])
async def test_on_the_same_answers_never_better_than_best_of_n(alpha: float) -> None:
    worse = 0
    for seed in range(60):
        random = np.random.Generator(np.random.Philox(seed))
        texts = pool(random)
        values = {begun: float(random.normal()) for begun in beginnings(texts)}
        strategy = SpeculativeRejection(n=12, alpha=alpha, decisions=LENGTHS)
        [(text, report)] = await told(strategy, Script(texts), worth(values))
        [(best, _)] = await told(BestOfN(n=12), Script(texts), worth(values))
        assert text in texts
        assert report["value"] == values[text] <= values[best]
        worse += text != best
    assert 0 < worse < 60


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.9])
async def test_where_beginnings_rank_as_the_whole_it_is_best_of_n(alpha: float, n: int) -> None:
    for seed in range(30):
        random = np.random.Generator(np.random.Philox(seed))
        texts = pool(random)
        rank = dict(zip((text[0] for text in texts), random.permutation(12).tolist(), strict=True))
        values = {begun: rank[begun[0]] + len(begun) / 100 for begun in beginnings(texts)}
        strategy = SpeculativeRejection(n=12, alpha=alpha, decisions=LENGTHS)
        engine, everything = Script(texts), Script(texts)
        found = await told(strategy, engine, worth(values), n=n)
        best = await told(BestOfN(n=12), everything, worth(values), n=n)
        assert [text for text, _ in found] == [text for text, _ in best]
        assert engine.drawn < everything.drawn


async def test_what_is_kept_and_what_is_drawn() -> None:
    texts = [chr(65 + i) * 16 for i in range(8)]
    values = {begun: float(ord(begun[0])) for begun in beginnings(texts)}
    engine = Script(texts)
    [(text, report)] = await told(SpeculativeRejection(n=8, decisions=LENGTHS), engine, worth(values), max_tokens=16)
    assert text == "H" * 16
    assert report["finish"] == "stop"
    assert report["decisions"] == [
        {"tokens": 2, "candidates": 8, "kept": 4},
        {"tokens": 4, "candidates": 4, "kept": 2},
        {"tokens": 8, "candidates": 2, "kept": 1},
    ]
    assert engine.drawn == 8 * 2 + 4 * 2 + 2 * 4 + 1 * 8
    assert engine.asked[0][:2] == ("", 2)
    assert sorted(begun for begun, _, _ in engine.asked[1:]) == sorted(
        ["EE", "FF", "GG", "HH", "GGGG", "HHHH", "HHHHHHHH"]
    )
    seeds = [seed for _, _, seed in engine.asked]
    assert len(set(seeds)) == len(seeds), "segments must not share their draws"


async def test_once_only_the_asked_for_are_left_they_are_drawn_to_the_end() -> None:
    texts = [chr(65 + i) * 16 for i in range(4)]
    engine = Script(texts)
    values = {begun: float(ord(begun[0])) for begun in beginnings(texts)}
    strategy = SpeculativeRejection(n=4, decisions=LENGTHS)
    answers = await told(strategy, engine, worth(values), n=2, max_tokens=16, seed=None)
    assert [text for text, _ in answers] == ["D" * 16, "C" * 16]
    assert sorted(engine.asked) == [("", 2, None), ("CC", 14, None), ("DD", 14, None)]


async def test_an_ended_answer_that_is_dropped_stays_eligible() -> None:
    values = {"a": 0.5, "bb": 1.0, "cc": 2.0, "bbbb": 0.1, "cccc": 0.2}
    strategy, include = SpeculativeRejection(n=3, decisions=(2,)), frozenset({"candidates"})
    [(text, report)] = await told(strategy, Script(["a", "bbbb", "cccc"]), worth(values), include=include)
    assert text == "a"
    assert [c["finish_reason"] for c in report["candidates"]] == ["stop", "stop", "stop"]
    strategy = SpeculativeRejection(n=3, alpha=0.6, decisions=(2,))
    [(text, report)] = await told(strategy, Script(["a", "bbbb", "cccc"]), worth(values), include=include)
    assert text == "a"
    assert [c["finish_reason"] for c in report["candidates"]] == ["stop", "rejected", "stop"]


async def test_a_length_is_no_end_and_the_last_one_is(specimen: Specimen) -> None:
    texts = ["aaaaaaaa", "bbbbbbbb"]
    values = {begun: float(len(begun)) for begun in beginnings(texts)}
    strategy = SpeculativeRejection(n=2, decisions=(2, 4))
    chunks = strategy((START,), Sampling(max_tokens=6, seed=1), Script(texts), worth(values), n=1, include=frozenset())
    assert [(len(c.tokens), c.finish) async for c in chunks] == [(2, None), (4, "length")]


async def test_a_deadline_leaves_the_best_of_those_kept() -> None:
    texts = [chr(65 + i) * 16 for i in range(4)]
    values = {begun: float(ord(begun[0])) for text in texts for begun in (text[:2],)}
    engine = Script(texts, cut=dict.fromkeys(range(4), 3))
    [(text, report)] = await told(SpeculativeRejection(n=4, decisions=LENGTHS), engine, worth(values))
    assert (text, report["finish"], report["value"]) == ("DDD", "deadline", float(ord("D")))


async def test_a_whole_answer_comes_before_a_better_one_that_was_cut() -> None:
    values = {"aa": 9.0, "bb": 5.0, "bbb": 1.0, "cc": 0.0}
    engine = Script(["aaaaa", "bbb", "ccccc", "cccccc"], cut={0: 3})
    strategy = SpeculativeRejection(n=3, alpha=0.3, decisions=(2,))
    [(text, report)] = await told(strategy, engine, worth(values))
    assert (text, report["finish"], report["value"]) == ("bbb", "stop", 1.0)


async def test_an_answer_that_cannot_be_carried_on_is_refused() -> None:
    sampling = Sampling(max_tokens=16, restarts=("min_tokens",))
    with pytest.raises(ValueError, match=r"speculative_rejection.*min_tokens"):
        STRATEGIES["speculative_rejection"].check_sampling("speculative_rejection", sampling)


@pytest.mark.parametrize("decisions", [(0, 2), (2, 2), (4, 2), (-1,)])
def test_decisions_rise(decisions: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="decisions must"):
        SpeculativeRejection(decisions=decisions)


@pytest.mark.parametrize("good_calls", range(4, 8))
async def test_a_reward_that_fails_on_the_way_leaves_nothing(specimen: Specimen, good_calls: int) -> None:
    calls = 0

    async def broken(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        nonlocal calls
        calls += 1
        if calls > good_calls:
            raise RuntimeError("reward model down")
        return [[float(calls)] for _ in completions]

    failed = 0
    for seed in range(10):
        calls = 0
        try:
            await told(SpeculativeRejection(n=4, decisions=(1, 2)), specimen.engine, broken, seed=seed, max_tokens=5)
        except RuntimeError:
            failed += 1
        assert specimen.engine.live == 0
    assert failed or good_calls == 7


def test_segments_seeds() -> None:
    assert derive_seed(None, 0, 64) is None
    seeds = {derive_seed(seed, i, t) for seed in (-1, 0, 1) for i in range(8) for t in (64, 128)}
    assert len(seeds) == 48
    assert all(seed is not None and 0 <= seed < 2**62 for seed in seeds)
