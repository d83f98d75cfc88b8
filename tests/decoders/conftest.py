from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from decoders.protocols import Sampling, Tokens
from decoders.toy import Prefix, ToyEngine, ToyModel
from tests.contracts import Specimen

TOY = Path(__file__).parent.parent / "toy_model.json"
START = 9
"""Where a response begins; no token of the toy's own."""


@pytest.fixture(scope="session")
def toy() -> ToyModel:
    return ToyModel.load(TOY, {"base": "base", "arm": "arm"})


@pytest.fixture(scope="session")
def reward() -> dict[Prefix, float]:
    """r(y) of each of the 63 responses."""
    return {tuple(map(int, y)): r for y, r in json.loads(TOY.read_text())["reward"].items()}


@pytest.fixture
def specimen(toy: ToyModel, reward: dict[Prefix, float]) -> Specimen:
    engine = ToyEngine(toy, start=START)

    async def live() -> int:
        return engine.live

    async def table(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        """r of the response that the prompt's begun response and the completion make; of a prefix, its length."""
        begun = tuple(prompt)[tuple(prompt).index(START) + 1 :]
        return [[reward.get((*begun, *tokens), float(len(tokens)))] for tokens in completions]

    return Specimen(
        engine=engine,
        prompts=((START,), (START, 0), (4, START, 1, 0)),
        guides=("arm",),
        reward=table,
        live=live,
        sampling=Sampling(max_tokens=toy.max_tokens),
        tolerance=1e-9,
    )


def total_variation(p: dict[Prefix, float], q: dict[Prefix, float]) -> float:
    return 0.5 * sum(abs(p[y] - q[y]) for y in p)


def tilted(base: dict[Prefix, float], score: dict[Prefix, float], beta: float) -> dict[Prefix, float]:
    """pi*(y), proportional to pi(y) exp(score(y) / beta)."""
    mass = {y: p * float(np.exp(score[y] / beta)) for y, p in base.items()}
    return {y: m / sum(mass.values()) for y, m in mass.items()}
