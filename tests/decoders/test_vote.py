"""Votes against brute force over random pools."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.decoders.conftest import Script, told, unasked, worth
from trimtab.decoders.vote import Vote


def winner(answers: list[str | None], votes: list[float]) -> tuple[str, list[int]]:
    """The class with the most votes and its members."""
    best: tuple[float, str] | None = None
    for a in answers:  # in the order drawn: a later class must be better to win
        if a is not None:
            total = math.fsum(v for b, v in zip(answers, votes, strict=True) if b == a)
            if best is None or total > best[0]:
                best = total, a
    assert best is not None
    return best[1], [i for i, a in enumerate(answers) if a == best[1]]


@pytest.mark.parametrize("weighting", ["uniform", "softmax", "reward"])
async def test_votes_against_brute_force(weighting: str) -> None:
    winners = set()
    for seed in range(100):
        random = np.random.Generator(np.random.Philox(seed))
        answers = [None if a == 4 else str(a) for a in random.integers(0, 5, size=9)]
        if set(answers) == {None}:
            continue
        texts = [f"{chr(97 + i)} {'none' if a is None else a}" for i, a in enumerate(answers)]
        rewards = random.random(9).round(1).tolist()
        votes = {
            "uniform": [1.0] * 9,
            "softmax": [math.exp(r / 0.3) / sum(math.exp(q / 0.3) for q in rewards) for r in rewards],
            "reward": rewards,
        }[weighting]
        expected, members = winner(answers, votes)
        best = members[0] if weighting == "uniform" else max(members, key=lambda i: (rewards[i], -i))
        reward = unasked if weighting == "uniform" else worth(dict(zip(texts, rewards, strict=True)))
        [(text, report)] = await told(Vote(n=9, weighting=weighting, beta=0.3), Script(texts), reward)
        assert (report["answer"], report["candidate"]) == (expected, best)
        assert text == texts[best]
        extracted = sum(a is not None for a in answers)
        assert report["extracted"] == extracted
        assert report["share"] == len(members) / extracted
        winners.add(best)
    assert len(winners) > 3


async def test_failed_extractions_are_no_class() -> None:
    [(text, report)] = await told(Vote(n=4), Script(["a", "b", "c", "so 5"]), unasked)
    assert (text, report["share"], report["extracted"]) == ("so 5", 1.0, 1)


@pytest.mark.parametrize("weighting", ["uniform", "softmax", "reward"])
async def test_where_none_extracts_the_best_is_shown(weighting: str) -> None:
    values = {"a": 1.0, "b": 3.0, "c": 2.0}
    reward = unasked if weighting == "uniform" else worth(values)
    [(text, report)] = await told(Vote(n=3, weighting=weighting), Script(list(values)), reward)
    assert text == ("a" if weighting == "uniform" else "b")
    assert report["extracted"] == 0
    assert "answer" not in report


async def test_a_tie_goes_to_the_class_drawn_first() -> None:
    [(text, _)] = await told(Vote(n=5), Script(["x 3", "a 2", "b 1", "c 1", "d 2"]), unasked)
    assert text == "a 2"


async def test_n_answers_are_of_different_classes_first() -> None:
    texts = ["a 1", "b 1", "c 2", "d 3", "e 1", "f 3"]
    answers = await told(Vote(n=6), Script(texts), unasked, n=5)
    assert [text for text, _ in answers] == ["a 1", "d 3", "c 2", "b 1", "e 1"]
    assert [report["share"] for _, report in answers] == [3 / 6, 2 / 6, 1 / 6, 3 / 6, 3 / 6]


async def test_only_whole_answers_vote() -> None:
    engine = Script(["a 12", "b 12", "c 1"], cut={0: 3, 1: 3})
    [(text, report)] = await told(Vote(n=3), engine, unasked)
    assert (text, report["extracted"]) == ("c 1", 1)


def test_an_unusable_extractor_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"extractor\.regex"):
        Vote(extractor={"regex": "("})
