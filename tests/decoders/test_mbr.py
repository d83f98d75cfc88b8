"""Minimum Bayes risk against brute force, and its ROUGE-1 against the library's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import pytest

from tests.decoders.conftest import Script, told, unasked, worth
from trimtab.decoders.mbr import MinimumBayesRisk
from trimtab.decoders.shared.similarity import f1, split_words


def utility(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    return 2 * sum((Counter(a) & Counter(b)).values()) / (len(a) + len(b)) if a or b else 0.0


def pool(seed: int, n: int = 8) -> list[str]:
    random = np.random.Generator(np.random.Philox(seed))
    return [" ".join(f"{chr(97 + w)}{w}" for w in random.integers(0, 6, size=random.integers(1, 9))) for _ in range(n)]


@pytest.mark.parametrize("measure", ["rouge1", "token_f1"])
@pytest.mark.parametrize("weighting", ["uniform", "softmax"])
async def test_against_brute_force(measure: str, weighting: str) -> None:
    winners = set()
    for seed in range(60):
        texts = pool(seed)
        r = np.random.Generator(np.random.Philox(key=[seed, 1])).normal(size=8)
        values = dict(zip(texts, r.tolist(), strict=True))
        bags = [text.split() if measure == "rouge1" else list(text) for text in texts]
        weights = [math.exp(values[text] / 0.5) for text in texts] if weighting == "softmax" else [1.0] * 8
        weights = [w / (7 if weighting == "uniform" else sum(weights)) for w in weights]
        risks = [round(sum(weights[j] * utility(bags[i], bags[j]) for j in range(8) if j != i), 12) for i in range(8)]
        strategy = MinimumBayesRisk(n=8, utility=measure, weighting=weighting, beta=0.5)
        reward = unasked if weighting == "uniform" else worth(values)
        answers = await told(strategy, Script(texts), reward, n=8)
        order = sorted(range(8), key=lambda i: -risks[i])
        assert [report["candidate"] for _, report in answers] == order
        assert [report["expected_utility"] for _, report in answers] == pytest.approx([risks[i] for i in order])
        winners.add(order[0])
    assert len(winners) > 3


async def test_equal_candidates_tie_and_the_first_is_shown() -> None:
    for seed in range(30):
        texts = pool(seed, n=4)
        texts += [" ".join(reversed(texts[k].split())) for k in (3, 2, 1, 0)]
        [(_, report)] = await told(MinimumBayesRisk(n=8), Script(texts), unasked)
        assert report["candidate"] < 4


def test_rouge_1_is_the_library_s() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    texts = [*pool(0), "The cat's 2 mats, on_the mat: THE END!", "", "don't; the   cat", "...", "a\tA\na"]
    scorer = RougeScorer(["rouge1"])
    likeness = f1([split_words(text) for text in texts])
    for i, a in enumerate(texts):
        for j, b in enumerate(texts):
            if i != j:
                assert likeness[i, j] == pytest.approx(scorer.score(a, b)["rouge1"].fmeasure, abs=1e-12)


def test_words_of_any_script() -> None:
    assert split_words("Ça, c'est l'ÉTÉ — привет 世界") == ["ça", "c", "est", "l", "été", "привет", "世界"]


def test_many_shared_words_are_counted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    bags = [text.split() for text in pool(3, n=12)]
    whole = f1(bags)
    monkeypatch.setattr("trimtab.decoders.shared.similarity.COLUMNS", 3)
    assert np.array_equal(f1(bags), whole)
    assert whole[0, 1] == utility(bags[0], bags[1])


async def test_whole_answers_are_compared_with_whole_ones() -> None:
    engine = Script(["a b c d", "a b c d", "x y", "x z"], cut={0: 5, 1: 5})
    [(text, _)] = await told(MinimumBayesRisk(n=4), engine, unasked)
    assert text == "x y"
