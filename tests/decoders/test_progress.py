"""What searches report while they run: in the end, where they return the best, the answer itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.contracts import Recording, Specimen, check_progress, run
from tests.decoders.conftest import START, WISH, Script, told, unasked, worth
from trimtab.decoders.beam import Beam
from trimtab.decoders.best_of_n import BestOfN
from trimtab.decoders.mbr import MinimumBayesRisk
from trimtab.decoders.particles import Particles
from trimtab.decoders.protocols import Strategy, Tokens
from trimtab.decoders.qalign import QAlign
from trimtab.decoders.report import SearchProgress
from trimtab.decoders.rps import Rps
from trimtab.decoders.speculative_rejection import SpeculativeRejection

SEEDS = range(6)
BEST: list[Strategy] = [
    BestOfN(n=5),
    BestOfN(n=4, guides={"arm": 1.0}, diverse={"groups": 2, "penalty": 0.5}),
    SpeculativeRejection(n=5, decisions=(1, 2)),
    SpeculativeRejection(n=5, alpha=0.0),
    Beam(n=4, width=2, block=1),
    Beam(n=4, width=2, block=2, variant="dvts"),
    Beam(n=4, width=2, block=1, rounds=2),
    Particles(n=4, block=1, beta=0.5, answer="max_reward"),
    QAlign(chains=3, steps=6, answer="max_reward"),
    QAlign(chains=3, steps=6, answer="max_reward", burn_in=2, thin=2),
    QAlign(chains=3, steps=40, answer="max_reward", until={"r_hat": 1.5, "floor": 4}),
    Rps(direction=WISH, k=3, m=2, selection="direction"),
]


class Few:
    """A reward with many ties, of how many tokens are 0; `reads_final_answer` as a verifier has it."""

    def __init__(self, *, verifier: bool) -> None:
        self.reads_final_answer = verifier

    async def __call__(self, prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        return [[float(tuple(tokens).count(0) > 1)] for tokens in completions]


@pytest.mark.parametrize("strategy", BEST, ids=repr)
@pytest.mark.parametrize("kind", ["a reward", "ties", "a verifier"])
async def test_the_last_best_is_the_answer(specimen: Specimen, strategy: Strategy, kind: str) -> None:
    s = specimen if kind == "a reward" else replace(specimen, reward=Few(verifier=kind == "a verifier"))
    s = s if kind != "a verifier" else replace(s, sampling=replace(s.sampling, max_tokens=3))  # some are cut there
    for seed in SEEDS:
        engine = Recording(s.engine)
        [answer] = await run(strategy, replace(s, engine=engine), (START,), seed=seed)
        await check_progress(s, engine.progress, (START,))
        assert engine.progress[-1].best == answer


@pytest.mark.parametrize(
    "strategy",
    [
        MinimumBayesRisk(n=5, diverse={"groups": 5, "penalty": 0.5}),
        Particles(n=4, block=2, variant="pf_reference", guides={"arm": 1.0}, target="base"),
        QAlign(chains=2, steps=3, answer="last"),
        Rps(direction=WISH, k=3, over="both", selection="soft"),
    ],
    ids=repr,
)
async def test_what_draws_or_votes_reports_too(specimen: Specimen, strategy: Strategy) -> None:
    for seed in SEEDS:
        engine = Recording(specimen.engine)
        heard = await run(strategy, replace(specimen, engine=engine), (START,), seed=seed)
        assert heard == await run(strategy, specimen, (START,), seed=seed)
        await check_progress(specimen, engine.progress, (START,))


class Heard(Script):
    """Answers that are given, and what was reported of them."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.progress: list[SearchProgress] = []

    def report_progress(self, progress: SearchProgress) -> None:
        self.progress.append(progress)


async def test_a_pool_is_drawn_and_then_scored() -> None:
    """Scores that come while others are drawn show in the best one alone."""
    values = {"a": 0.0, "b": 2.0, "c": 1.0}
    engine: Any = Heard(list(values))
    [(text, _)] = await told(BestOfN(n=3), engine, worth(values))
    assert text == "b"
    assert [progress.done for progress in engine.progress if progress.stage == "draw"][:3] == [0, 1, 2]
    assert all(progress.of == 3 for progress in engine.progress)
    assert engine.progress[-1] == SearchProgress(stage="score", done=3, of=3, best=(ord("b"),), value=2.0)


async def test_a_pool_without_a_reward_is_only_drawn() -> None:
    engine: Any = Heard(["a", "b", "a"])
    await told(MinimumBayesRisk(n=3), engine, unasked)
    assert engine.progress == [SearchProgress(stage="draw", done=done, of=3) for done in range(4)]


async def test_of_a_pool_that_was_cut_the_answers_that_are_read_are_counted() -> None:
    """What a deadline cut is drawn as far as it will be, and is not scored beside whole ones."""
    values = {"aaaa": 0.0, "b": 2.0, "c": 1.0}
    engine: Any = Heard(list(values), cut={0: 2})
    await told(BestOfN(n=3), engine, worth(values))
    assert engine.progress[-1] == SearchProgress(stage="score", done=2, of=2, best=(ord("b"),), value=2.0)
