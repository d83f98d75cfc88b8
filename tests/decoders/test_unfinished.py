"""Answers cut at `max_tokens` have come to nothing yet: they neither vote nor are verified where others ended."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.decoders.conftest import START, Script, tilted, told, total_variation, unasked
from trimtab.decoders.beam import Beam
from trimtab.decoders.best_of_n import BestOfN
from trimtab.decoders.blockwise import Blockwise
from trimtab.decoders.mbr import MinimumBayesRisk
from trimtab.decoders.particles import Particles
from trimtab.decoders.protocols import BASE, Chunk, Mixture, Reward, Sampling, Strategy, Tokens
from trimtab.decoders.qalign import QAlign
from trimtab.decoders.rejection import RejectionSampling
from trimtab.decoders.report import SearchProgress
from trimtab.decoders.segments import Segments
from trimtab.decoders.soft_best_of_n import SoftBestOfN
from trimtab.decoders.speculative_rejection import SpeculativeRejection
from trimtab.decoders.vote import Vote
from trimtab.runtime.toy_engine import Prefix, ToyEngine, ToyModel

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


@pytest.mark.parametrize(
    "strategy",
    [
        Beam(n=5, width=5, block=1),
        Beam(n=5, width=5, block=2),
        Beam(n=5, width=5, block=1, variant="dvts"),
        Blockwise(n=5, block=2),
        Blockwise(n=5, block=2, beta=1e-3),
        Particles(n=5, block=2, beta=1e-3),
        Particles(n=5, block=2, answer="max_reward"),
        SpeculativeRejection(n=5, decisions=(1,)),
        SpeculativeRejection(n=5, decisions=(4,)),
    ],
    ids=repr,
)
async def test_other_searches_prefer_one_that_ended(strategy: Strategy) -> None:
    [(text, report)] = await told(strategy, Script(TEXTS), Right("7"), max_tokens=2, include=frozenset({"candidates"}))
    assert text in ("4", "5")
    assert (report["value"], report["finish"]) == (0.0, "stop")
    shown: Any = report.get("candidates", [])
    assert all(one["value"] is None for one in shown if one["finish_reason"] == "length")
    cut = ["5 is", "7 or", "4 is", "1 is", "2 is"]
    [(text, report)] = await told(strategy, Script(cut), Right("7"), max_tokens=2)
    assert (text, report["value"]) == ("7 ", 1.0), "where none ended, they are read"


async def test_what_goes_on_is_no_cut_answer() -> None:
    """A beginning that reads well is not dropped for an answer that has ended and does not."""
    strategy = SpeculativeRejection(n=2, decisions=(1,))
    [(text, report)] = await told(strategy, Script(["4", "7 it is"]), Right("7"))
    assert (text, report["value"]) == ("7 it is", 1.0)


@dataclass
class Turns:
    """An engine that writes these texts in turn."""

    texts: list[str]
    eos_ids: frozenset[int] = frozenset()

    def report_progress(self, progress: SearchProgress) -> None:
        """Nobody follows it."""

    async def generate(
        self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture
    ) -> AsyncGenerator[Chunk, None]:
        text = self.texts.pop(0)
        cut = len(text) > sampling.max_tokens
        tokens = tuple(map(ord, text[: sampling.max_tokens]))
        yield Chunk(index=0, tokens=tokens, finish="length" if cut else "stop")

    def text(self, completion: Tokens) -> str:
        return "".join(map(chr, completion))


async def test_a_cut_segment_is_drawn_again() -> None:
    reward = Right("7")
    engine: Any = Turns(["7 or", "7 or", "4"])
    [(text, report)] = await told(Segments(tries=3), engine, reward, max_tokens=2)
    assert (text, report["value"], report["proposals"]) == ("4", 0.0, 3)
    assert "7 " not in reward.read
    cut: Any = Turns(["7 or"] * 3)
    [(text, report)] = await told(Segments(tries=3), cut, Right("7"), max_tokens=2)
    assert (text, report["value"], report["proposals"]) == ("7 ", 1.0, 3)


@dataclass
class Whole:
    """The toy's rewards, of whole answers; it reads final answers."""

    rewards: dict[Prefix, float]
    reads_final_answer: bool = True

    async def __call__(self, prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        return [[self.rewards.get(tuple(tokens), 0.0)] for tokens in completions]


def ended_law(toy: ToyModel, reward: dict[Prefix, float], beta: float) -> tuple[dict[Prefix, float], float]:
    """pi(y) exp(r(y) / beta) over the answers that end by themselves, and its sum before it is normalised."""
    ended = {y: p for y, p in toy.sequences(toy.next({BASE: 1.0})) if y[-1] == toy.eos}
    assert 0.2 < sum(ended.values()) < 0.9
    return tilted(ended, reward, beta), sum(p * math.exp(reward[y] / beta) for y, p in ended.items())


async def draw_candidates(strategy: Strategy, toy: ToyModel, reward: Reward) -> tuple[dict[str, Any], dict[Any, float]]:
    """The report, and what each candidate weighs or how often it was visited, as a share."""
    sampling = Sampling(max_tokens=toy.max_tokens, seed=1)
    chunks = strategy([START], sampling, ToyEngine(toy, start=START), reward, n=1, include=frozenset({"candidates"}))
    [report] = [{**chunk.report} async for chunk in chunks]
    shares: dict[Any, float] = {}
    for one in report["candidates"]:
        counted = one.get("weight", one.get("visits", 0) if one["value"] is not None else 0)
        shares[one["tokens"]] = shares.get(one["tokens"], 0.0) + counted
    total = sum(shares.values())
    return report, {y: share / total for y, share in shares.items()}


@pytest.mark.parametrize("ess", [0.0, 1.0])
async def test_particles_draw_from_the_answers_that_end(toy: ToyModel, reward: dict[Prefix, float], ess: float) -> None:
    law, normaliser = ended_law(toy, reward, 0.7)
    strategy = Particles(n=800, beta=0.7, block=1, ess=ess)
    report, weights = await draw_candidates(strategy, toy, Whole(reward))
    assert all(weights.get(y, 0.0) == 0.0 for y in reward if y not in law)
    assert total_variation({y: weights.get(y, 0.0) for y in law}, law) < 0.1
    assert report["log_normaliser"] == pytest.approx(math.log(normaliser), abs=0.1)
    assert report["unfinished"] > 0 or ess == 1.0


async def test_chains_draw_from_the_answers_that_end(toy: ToyModel, reward: dict[Prefix, float]) -> None:
    law, _ = ended_law(toy, reward, 0.7)
    report, visited = await draw_candidates(QAlign(beta=0.7, steps=500, chains=4), toy, Whole(reward))
    assert visited.keys() >= {y for y, p in law.items() if p > 0.02}
    assert total_variation({y: visited.get(y, 0.0) for y in law}, law) < 0.1
    assert all(visited.get(y, 0.0) == 0.0 for y in reward if y not in law)
    assert report["r_hat"] < 1.05


@pytest.mark.parametrize("answer", ["mbr", "vote", "last", "max_reward"])
async def test_chains_answer_with_one_that_ended(toy: ToyModel, reward: dict[Prefix, float], answer: Any) -> None:
    """Cut answers get the highest rewards, and a chain in four begins at one."""
    cut = {y: 10.0 + r if y[-1] != toy.eos else r for y, r in reward.items()}
    for seed in range(10):
        strategy, engine = QAlign(steps=3, chains=4, answer=answer, extractor="text"), ToyEngine(toy, start=START)
        [(_, report)] = await told(strategy, engine, Whole(cut), seed=seed, max_tokens=toy.max_tokens)
        assert report["finish"] == "stop"
        assert report["value"] is not None


async def test_chains_of_cut_answers_are_read() -> None:
    [(text, report)] = await told(QAlign(steps=2, chains=2), Script(["7 or"]), Right("7"), max_tokens=2)
    assert (text, report["value"], report["unfinished"]) == ("7 ", 1.0, 1)


async def test_chains_agree_on_what_ended(toy: ToyModel, reward: dict[Prefix, float]) -> None:
    """`until` looks at no state that counts for nothing."""
    strategy = QAlign(beta=0.7, steps=400, chains=4, until={"r_hat": 1.2, "floor": 16})
    report, visited = await draw_candidates(strategy, toy, Whole(reward))
    assert report["steps"] < 1600
    assert sum(visited.values()) == pytest.approx(1)
