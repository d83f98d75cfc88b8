"""What is in hand when a deadline passes while a reward or a score is awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.contracts import Hanging, Specimen
from tests.decoders.conftest import START, WISH, Script, worth
from trimtab.decoders.beam import Beam
from trimtab.decoders.best_of_n import BestOfN
from trimtab.decoders.blockwise import Blockwise
from trimtab.decoders.mbr import MinimumBayesRisk
from trimtab.decoders.particles import Particles
from trimtab.decoders.protocols import Chunk, Engine, Reward, Sampling, Strategy, Tokens
from trimtab.decoders.qalign import QAlign
from trimtab.decoders.rejection import RejectionSampling
from trimtab.decoders.rps import Rps
from trimtab.decoders.soft_best_of_n import SoftBestOfN
from trimtab.decoders.speculative_rejection import SpeculativeRejection
from trimtab.decoders.vote import Vote
from trimtab.runtime.strategy_run import StrategyRun
from trimtab.runtime.usage import Usage

pytestmark = pytest.mark.usefixtures("no_waits")

LATER = 0.1
ENDED = frozenset({"stop", "length"})


async def hang(*args: Any, **more: Any) -> Any:
    await asyncio.Event().wait()


async def answer(
    s: Specimen, strategy: Strategy, reward: Reward, engine: Engine | None = None, include: frozenset[str] = frozenset()
) -> tuple[Chunk, StrategyRun]:
    """The answer's last chunk, and the run. Its deadline passes on the way."""
    clock = asyncio.get_running_loop().time
    usage = Usage(deadline=(deadline := clock() + LATER))
    run = StrategyRun(strategy=strategy, reward=reward, usage=usage, include=include)
    stream = run.execute([START], replace(s.sampling, seed=3), run.instrument(engine or s.engine), n=1)
    chunks = [chunk async for chunk in stream]
    assert clock() == pytest.approx(deadline)
    assert sum(len(chunk.tokens) for chunk in chunks) > 0
    assert usage.limit == "deadline"
    return chunks[-1], run


POOLS: list[Strategy] = [
    BestOfN(n=4),
    SoftBestOfN(n=4, lambda_=0.5),
    RejectionSampling(n=4),
    Vote(n=4, extractor="text", weighting="softmax"),
    Vote(n=4, extractor="text", weighting="reward"),
    Vote(n=4, extractor="number", weighting="softmax"),
    MinimumBayesRisk(n=4, weighting="softmax"),
    Rps(direction=WISH, k=4),
    Rps(direction=WISH, k=4, selection="soft"),
    Rps(direction=WISH, k=4, selection="consensus"),
]


@pytest.mark.parametrize("strategy", POOLS, ids=repr)
async def test_a_pool_that_nobody_scored_answers_its_first(specimen: Specimen, strategy: Strategy) -> None:
    last, _ = await answer(specimen, strategy, hang)
    assert last.finish in ENDED
    assert (last.report["value"], last.report["candidate"]) == (None, 0)


@pytest.mark.parametrize(
    "strategy",
    [
        *(QAlign(chains=3, steps=4, answer=how, extractor="text") for how in ("mbr", "vote", "last", "max_reward")),
        SpeculativeRejection(n=4, decisions=(1, 2)),
        Beam(n=4, width=2, block=5),
        Blockwise(n=4, block=5),
        Particles(n=4, block=5),
    ],
    ids=repr,
)
async def test_whole_answers_that_nobody_scored_are_answers(specimen: Specimen, strategy: Strategy) -> None:
    last, _ = await answer(specimen, strategy, hang)
    assert last.finish in {*ENDED, "deadline"}
    assert last.report["value"] is None


async def test_of_a_pool_the_best_that_was_scored_in_time() -> None:
    """The reward's first call takes the answers that have ended by then, and the second never comes back."""
    values = {"a": 0.0, "b": 2.0, "c": 1.0, "d": 9.0}
    texts = list(values)
    scored: list[str] = []

    async def once(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        if scored:
            await hang()
        scored.extend("".join(map(chr, tokens)) for tokens in completions)
        return await worth(values)(prompt, completions)

    class Slow(Script):
        async def generate(self, *args: Any, **more: Any) -> Any:
            async for chunk in super().generate(*args, **more):
                await asyncio.sleep(0.005)
                yield chunk

    engine: Any = Slow(texts)
    usage = Usage(deadline=asyncio.get_running_loop().time() + LATER)
    run = StrategyRun(strategy=BestOfN(n=4), reward=once, usage=usage, include=frozenset({"candidates"}))

    [chunk] = [c async for c in run.execute([START], Sampling(max_tokens=4, seed=0), run.instrument(engine), n=1)]
    assert engine.text(chunk.tokens) == max(scored, key=lambda text: values[text])
    assert [c["value"] for c in chunk.report["candidates"]] == [
        values[text] if text in scored else None for text in texts
    ]
    assert 0 < len(scored) < 4


@pytest.mark.parametrize(
    "strategy",
    [
        QAlign(chains=2, steps=3, guides={"arm": 1.0}, target="base"),
        Particles(n=4, block=5, guides={"arm": 1.0}, target="base"),
        Particles(n=4, block=1, guides={"arm": 1.0}, target="base", answer="max_reward"),
    ],
    ids=repr,
)
async def test_a_density_that_never_comes(specimen: Specimen, strategy: Strategy) -> None:
    await answer(specimen, strategy, specimen.reward, Hanging(specimen.engine, "score", hang))
