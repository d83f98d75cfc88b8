"""Minimum Bayes risk against its definition, and its ROUGE-1 against the library's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pytest

from tests.decoders.conftest import Script, told, unasked, worth
from trimtab.decoders.best_of_n import BestOfN
from trimtab.decoders.mbr import MinimumBayesRisk
from trimtab.decoders.shared.similarity import f1, split_words


def utility(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    return 2 * sum((Counter(a) & Counter(b)).values()) / (len(a) + len(b)) if a or b else 0.0


def pool(seed: int, n: int = 8) -> list[str]:
    random = np.random.Generator(np.random.Philox(seed))
    return [" ".join(f"{chr(97 + w)}{w}" for w in random.integers(0, 6, size=random.integers(1, 9))) for _ in range(n)]


def expected_utility(mine: tuple[Hashable, ...], law: Mapping[tuple[Hashable, ...], float]) -> float:
    """E u(mine, Y), Y drawn from the law: what an answer is worth, by the definition of minimum Bayes risk."""
    return math.fsum(p * (1.0 if other == mine else utility(mine, other)) for other, p in law.items())


def empirical_law(bags: Sequence[Sequence[Hashable]], masses: Sequence[float]) -> dict[tuple[Hashable, ...], float]:
    """What a pool says of the answers' law: each answer with the share of all mass that its copies have."""
    law: dict[tuple[Hashable, ...], float] = {}
    for bag, mass in zip(bags, masses, strict=True):
        law[tuple(bag)] = law.get(tuple(bag), 0.0) + mass / math.fsum(masses)
    return law


@pytest.mark.parametrize("measure", ["rouge1", "token_f1"])
@pytest.mark.parametrize("weighting", ["uniform", "softmax"])
async def test_it_maximises_expected_utility_under_the_pool_s_law(measure: str, weighting: str) -> None:
    winners = set()
    for seed in range(60):
        texts = pool(seed)
        r = np.random.Generator(np.random.Philox(key=[seed, 1])).normal(size=8)
        values = dict(zip(texts, r.tolist(), strict=True))
        bags = [text.split() if measure == "rouge1" else list(text) for text in texts]
        masses = [math.exp(values[text] / 0.5) for text in texts] if weighting == "softmax" else [1.0] * 8
        law = empirical_law(bags, masses)
        worths = [round(expected_utility(tuple(bag), law), 12) for bag in bags]
        strategy = MinimumBayesRisk(n=8, utility=measure, weighting=weighting, beta=0.5)
        reward = unasked if weighting == "uniform" else worth(values)
        answers = await told(strategy, Script(texts), reward, n=8)
        order = sorted(range(8), key=lambda i: -worths[i])
        assert [report["candidate"] for _, report in answers] == order
        assert [report["expected_utility"] for _, report in answers] == pytest.approx([worths[i] for i in order])
        winners.add(order[0])
    assert len(winners) > 3


async def test_without_weights_it_is_the_most_like_the_others() -> None:
    """An answer's likeness to itself is the same for all, and so changes no order."""
    for seed in range(30):
        texts = pool(seed)
        bags = [text.split() for text in texts]
        others = [round(math.fsum(utility(a, b) for j, b in enumerate(bags) if j != i), 9) for i, a in enumerate(bags)]
        answers = await told(MinimumBayesRisk(n=8), Script(texts), unasked, n=8)
        assert [report["candidate"] for _, report in answers] == sorted(range(8), key=lambda i: -others[i])


async def test_the_best_of_three_is_not_outvoted_by_two_that_are_alike() -> None:
    values = {"good": 10.0, "bad": 0.0, "bad bad": -1.0}
    strategy = MinimumBayesRisk(n=3, weighting="softmax")
    [(text, report)] = await told(strategy, Script(list(values)), worth(values))
    assert (text, report["value"]) == ("good", 10.0)
    assert report["expected_utility"] == pytest.approx(1 / (1 + math.exp(-10) + math.exp(-11)), abs=1e-9)


async def test_a_small_beta_is_best_of_n() -> None:
    for seed in range(40):
        texts = [f"{text} {'z' * i}" for i, text in enumerate(pool(seed))]  # no two of the same words
        r = np.random.Generator(np.random.Philox(key=[seed, 2])).normal(size=8)
        values = dict(zip(texts, r.tolist(), strict=True))
        strategy = MinimumBayesRisk(n=8, weighting="softmax", beta=1e-6)
        [(text, _)] = await told(strategy, Script(texts), worth(values))
        assert text == (await told(BestOfN(n=8), Script(texts), worth(values)))[0][0]


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
async def test_weights_lead_to_better_answers_than_a_draw(beta: float) -> None:
    gained = []
    for seed in range(60):
        texts = pool(seed)
        r = np.random.Generator(np.random.Philox(key=[seed, 3])).normal(size=8)
        values = dict(zip(texts, r.tolist(), strict=True))
        strategy = MinimumBayesRisk(n=8, weighting="softmax", beta=beta)
        [(_, report)] = await told(strategy, Script(texts), worth(values))
        gained.append(report["value"] - float(r.mean()))
    assert math.fsum(gained) > 0


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
