"""One request at the engine: what is recorded of its strategy, and who answers where it fails."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.decoders.conftest import START, TOY
from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import Chunk, LimitReached, Sampling
from trimtab.runtime.metered import Metered
from trimtab.runtime.strategy_run import StrategyRun
from trimtab.runtime.toy_engine import ToyEngine, ToyModel
from trimtab.runtime.usage import Usage

SAMPLING = Sampling(max_tokens=5, seed=1)


@pytest.fixture
def toy() -> ToyEngine:
    return ToyEngine(ToyModel.load(TOY, {"base": "base", "arm": "arm"}), start=START)


@dataclass(frozen=True)
class Scripted:
    """Gives its chunks, then fails if it has a fault."""

    chunks: Sequence[Chunk]
    fault: Exception | None = None
    work = Plain().work

    async def __call__(self, *args: Any, **more: Any) -> AsyncGenerator[Chunk, None]:
        for chunk in self.chunks:
            yield chunk
        if self.fault is not None:
            raise self.fault


async def executed(run: StrategyRun, engine: ToyEngine) -> list[Chunk]:
    return [chunk async for chunk in run.execute([START], SAMPLING, run.instrument(engine), n=1)]


def test_a_request_without_a_strategy_is_native() -> None:
    assert StrategyRun().native
    assert not StrategyRun(strategy=Plain()).native


async def test_what_it_draws_is_its_own(toy: ToyEngine) -> None:
    run = StrategyRun(strategy=Plain())
    for chunk in await executed(run, toy):
        run.record(2, chunk)
    assert run.usage.sampled == run.usage.visible == len(run.answers[2]) > 0
    assert run.usage.first_visible_at is not None
    assert (run.reports, run.failure, run.degraded) == ({}, None, False)


async def test_reports_of_one_answer_are_one(toy: ToyEngine) -> None:
    run = StrategyRun(strategy=Plain())
    run.record(0, Chunk(index=0, tokens=(1,), report={"kl_exact": 0.5}))
    run.record(0, Chunk(index=0, tokens=(2,), report={"value": 1.0}, finish="stop"))
    assert run.reports == {0: {"kl_exact": 0.5, "value": 1.0}}
    assert run.answers == {0: [1, 2]}


FIRST = Chunk(index=0, tokens=(1,))


@pytest.mark.parametrize(
    ("chunks", "recoverable", "fallback", "recovers"),
    [
        ([], (RuntimeError,), True, True),
        ([FIRST], (RuntimeError,), True, False),  # the client has a token already
        ([], (KeyError,), True, False),
        ([], (RuntimeError,), False, False),
    ],
)
async def test_a_fallback_answers_before_the_first_token_or_never(
    toy: ToyEngine, chunks: list[Chunk], recoverable: tuple[type[Exception], ...], fallback: bool, recovers: bool
) -> None:
    fault = RuntimeError("broken")
    run = StrategyRun(
        strategy=Scripted(chunks, fault), fallback=Plain() if fallback else None, recoverable_errors=recoverable
    )
    if recovers:
        assert await executed(run, toy) == await executed(StrategyRun(strategy=Plain()), toy)
    else:
        with pytest.raises(RuntimeError, match="broken"):
            await executed(run, toy)
    assert (run.failure, run.degraded) == (fault, recovers)


async def test_answers_that_were_all_cut_before_a_token_are_an_error(toy: ToyEngine) -> None:
    empty = Chunk(index=0, tokens=(), finish="deadline")
    with pytest.raises(LimitReached, match="deadline"):
        await executed(StrategyRun(strategy=Scripted([empty])), toy)
    assert await executed(StrategyRun(strategy=Scripted([empty, FIRST])), toy) == [FIRST, empty]


async def test_its_bounds_are_its_engine_s(toy: ToyEngine) -> None:
    run = StrategyRun(strategy=Plain(), usage=Usage(max_sampled_tokens=1))
    assert isinstance(run.instrument(toy), Metered)
    assert sum(len(chunk.tokens) for chunk in await executed(run, toy)) == 1
