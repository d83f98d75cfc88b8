"""What a usage counts and where it ends an answer, on the toy engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from tests.decoders.conftest import START, TOY
from trimtab.decoders.protocols import BASE, LIMIT_REASONS, Chunk, Sampling
from trimtab.runtime.metered import Metered
from trimtab.runtime.toy_engine import ToyEngine, ToyModel
from trimtab.runtime.usage import Usage

LAW = {BASE: 1.0}


@pytest.fixture
def toy() -> ToyEngine:
    return ToyEngine(ToyModel.load(TOY, {"base": "base", "arm": "arm"}), start=START)


async def drawn(engine: Metered, n: int, **sampling: Any) -> list[list[Chunk]]:
    """answer -> its chunks"""
    out: list[list[Chunk]] = [[] for _ in range(n)]
    async for chunk in engine.generate([START], Sampling(**{"max_tokens": 5, "seed": 1, **sampling}), n=n, guides=LAW):
        out[chunk.index].append(chunk)
    return out


def tokens(answer: list[Chunk]) -> tuple[int, ...]:
    return tuple(t for chunk in answer for t in chunk.tokens)


async def test_without_bounds_it_only_counts(toy: ToyEngine) -> None:
    usage = Usage()
    metered = await drawn(Metered(toy, usage), 3)
    assert metered == await drawn(Metered(toy, Usage()), 3)
    assert usage.sampled == sum(len(tokens(a)) for a in metered)
    assert usage.limit is None
    assert len((await drawn(Metered(toy, Usage()), 3, stream=False))[0]) == 1, "whole answers stay whole"


async def test_scores_are_counted_once_per_mixture(toy: ToyEngine) -> None:
    usage = Usage()
    await Metered(toy, usage).score([START], [0, 1], guides=LAW)
    await Metered(toy, usage).divergence([START], [0, 1, 0], guides={BASE: 1.0, "arm": 1.0})
    assert usage.scored == 5


@pytest.mark.parametrize("budget", [1, 2, 3, 4])
@pytest.mark.parametrize("stream", [True, False])
async def test_one_answer_never_passes_its_budget(toy: ToyEngine, budget: int, stream: bool) -> None:
    for seed in range(30):
        [whole] = await drawn(Metered(toy, Usage()), 1, seed=seed)
        usage = Usage(max_sampled_tokens=budget)
        [answer] = await drawn(Metered(toy, usage), 1, seed=seed, stream=stream)
        assert tokens(answer) == tokens(whole)[:budget]
        assert usage.sampled == len(tokens(answer))
        cut = len(tokens(whole)) > budget
        assert (answer[-1].finish in LIMIT_REASONS) == cut
        assert usage.limit == ("budget" if cut else None)


async def test_answers_side_by_side_end_together(toy: ToyEngine) -> None:
    whole = await drawn(Metered(toy, Usage()), 8)
    usage = Usage(max_sampled_tokens=12)
    answers = await drawn(Metered(toy, usage), 8)
    assert 12 <= usage.sampled < 12 + 8
    assert all(tokens(w)[: len(tokens(a))] == tokens(a) for a, w in zip(answers, whole, strict=True))
    assert {a[-1].finish for a in answers} > {"budget"}
    assert toy.live == 0


async def test_a_budget_is_the_whole_request_s(toy: ToyEngine) -> None:
    usage = Usage(max_sampled_tokens=3)
    await drawn(Metered(toy, usage), 4)
    [late] = await drawn(Metered(toy, usage), 1)
    assert (tokens(late), late[-1].finish) == ((), "budget")


class Slow:
    """The toy after a pause before each chunk."""

    def __init__(self, engine: ToyEngine) -> None:
        self.engine = engine

    async def generate(self, *args: Any, **more: Any) -> AsyncGenerator[Chunk, None]:
        async with aclosing(self.engine.generate(*args, **more)) as chunks:
            async for chunk in chunks:
                await asyncio.sleep(0.02)
                yield chunk


@pytest.mark.usefixtures("no_waits")
async def test_a_deadline_ends_what_runs(toy: ToyEngine) -> None:
    loop = asyncio.get_running_loop()
    usage = Usage(deadline=loop.time() + 0.15)
    answers = await drawn(Metered(Slow(toy), usage), 8)  # type: ignore[arg-type]
    assert loop.time() == pytest.approx(usage.deadline)
    assert usage.limit == "deadline"
    assert {a[-1].finish for a in answers} & LIMIT_REASONS == {"deadline"}
    assert 0 < usage.sampled <= 8
    await asyncio.sleep(0)
    assert toy.live == 0


async def test_another_timeout_is_no_deadline(toy: ToyEngine) -> None:
    class Broken(Slow):
        async def generate(self, *args: Any, **more: Any) -> AsyncGenerator[Chunk, None]:
            raise TimeoutError("the engine's own")
            yield

    usage = Usage(deadline=asyncio.get_running_loop().time() + 60)
    with pytest.raises(TimeoutError, match="own"):
        await drawn(Metered(Broken(toy), usage), 1)  # type: ignore[arg-type]
