"""Answers cut at `max_tokens` have come to nothing yet: they neither vote nor are verified where others ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from tests.decoders.conftest import START, Script, told, unasked
from trimtab.decoders.best_of_n import BestOfN
from trimtab.decoders.mbr import MinimumBayesRisk
from trimtab.decoders.protocols import Sampling, Strategy, Tokens
from trimtab.decoders.rejection import RejectionSampling
from trimtab.decoders.soft_best_of_n import SoftBestOfN
from trimtab.decoders.speculative_rejection import SpeculativeRejection
from trimtab.decoders.vote import Vote

TEXTS = ["7 or", "7 or", "7 or", "4", "5"]
"""At most two tokens each: the first three are cut."""


@dataclass
class Right:
    """1 for an answer that holds the number; what it was given to read is remembered."""

    number: str
    read: list[str] = field(default_factory=list)
    reads_final_answer: bool = True

    async def __call__(self, prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        texts = ["".join(map(chr, tokens)) for tokens in completions]
        self.read += texts
        return [[float(self.number in text)] for text in texts]


@pytest.mark.parametrize("extractor", ["number", "text"])
async def test_cut_answers_do_not_vote_where_others_ended(extractor: str) -> None:
    [(text, report)] = await told(Vote(n=5, extractor=extractor), Script(TEXTS), unasked, max_tokens=2)
    assert (text, report["extracted"], report["unfinished"]) == ("4", 2, 3)


async def test_where_none_ended_they_all_vote() -> None:
    [(text, report)] = await told(Vote(n=3), Script(["7 or", "5 is", "7 is"]), unasked, max_tokens=2)
    assert (text, report["answer"], report["unfinished"]) == ("7 ", "7", 3)


@pytest.mark.parametrize(
    "strategy",
    [
        BestOfN(n=5),
        SoftBestOfN(n=5, lambda_=1e-3),
        RejectionSampling(n=5, beta=1e-3),
        MinimumBayesRisk(n=5, weighting="softmax", beta=1e-3),
        Vote(n=5, weighting="reward"),
    ],
    ids=repr,
)
async def test_a_verifier_does_not_read_them_where_others_ended(strategy: Strategy) -> None:
    reward = Right("7")
    [(text, report)] = await told(strategy, Script(TEXTS), reward, max_tokens=2)
    assert sorted(reward.read) == ["4", "5"]
    assert text in ("4", "5")
    assert report["value"] == 0.0
    alone = Right("7")
    [(text, report)] = await told(strategy, Script(["5 is", "7 or", "4 is", "1 is", "2 is"]), alone, max_tokens=2)
    assert (text, report["value"]) == ("7 ", 1.0)


async def test_another_reward_reads_them_as_ever() -> None:
    [(text, report)] = await told(BestOfN(n=5), Script(TEXTS), Right("7", reads_final_answer=False), max_tokens=2)
    assert (text, report["unfinished"]) == ("7 ", 3)


async def test_of_equals_one_that_ended_comes_first() -> None:
    [(text, _)] = await told(BestOfN(n=5), Script(TEXTS), Right("0", reads_final_answer=False), max_tokens=2)
    assert text == "4"


@pytest.mark.parametrize("strategy", [SoftBestOfN(n=2, lambda_=0.5), RejectionSampling(n=2)], ids=repr)
async def test_a_law_that_the_request_warps_is_said(strategy: Strategy) -> None:
    async def warnings(sampling: Sampling) -> list[str]:
        chunks = strategy((START,), sampling, Script(["a", "b"]), Right("a"), n=1, include=frozenset())
        return [text async for chunk in chunks for text in chunk.report.get("warnings", ())]

    assert await warnings(Sampling(max_tokens=2, seed=0)) == []
    [text] = await warnings(Sampling(max_tokens=2, seed=0, temperature=0.7, top_k=40))
    assert "temperature=0.7, top_k=40" in text
    [text] = await warnings(Sampling(max_tokens=2, seed=0, constrained=True))
    assert "penalties" in text


async def test_speculative_rejection_counts_them_too() -> None:
    strategy = SpeculativeRejection(n=3, decisions=(1,))
    [(_, report)] = await told(
        strategy, Script(["abcd", "bcde", "c"]), Right("c", reads_final_answer=False), max_tokens=3
    )
    assert report["unfinished"] == 1
