"""A prompt that fills the context leaves no room for a token: every strategy's answers are empty and end by length."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

import pytest

from tests.contracts import Specimen, build
from trimtab.decoders import STRATEGIES
from trimtab.decoders.protocols import Chunk, Engine, Mixture, Sampling, Tokens
from trimtab.runtime.strategy_run import StrategyRun


@dataclass(frozen=True)
class FullEngine:
    """An engine that has no room left behind any prompt."""

    engine: Engine

    async def generate(
        self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture
    ) -> AsyncGenerator[Chunk, None]:
        for i in range(n):
            yield Chunk(index=i, tokens=(), finish="length")

    async def greedy_top_logprobs(
        self, prompt: Tokens, *, k: int, length: int, guides: Mixture
    ) -> list[list[tuple[int, float]]]:
        return []

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)


DIVERSE = {f"{name}, diverse": name for name in ("best_of_n", "mbr", "vote")}


@pytest.mark.parametrize("case", [*STRATEGIES, *DIVERSE])
async def test_answers_are_empty_and_end_by_length(specimen: Specimen, case: str) -> None:
    engine: Engine = FullEngine(specimen.engine)  # type: ignore[assignment]
    strategy = build(DIVERSE.get(case, case), specimen)
    if case in DIVERSE:
        strategy = replace(strategy, n=4, diverse={"groups": 2, "penalty": 0.5})  # type: ignore[type-var]
    run, n = StrategyRun(strategy=strategy, reward=specimen.reward), 2
    finishes: dict[int, str] = {}
    async with aclosing(run.execute(specimen.prompts[0], specimen.sampling, engine, n=n)) as chunks:
        async for chunk in chunks:
            assert chunk.tokens == ()
            if chunk.finish is not None:
                finishes[chunk.index] = chunk.finish
    assert finishes == dict.fromkeys(range(n), "length")
