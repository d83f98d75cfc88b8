from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from tests.contracts import Specimen
from trimtab.decoders.protocols import Chunk, Engine, Mixture, Parts, Reward, Sampling, Strategy, Tokens
from trimtab.decoders.report import SearchProgress
from trimtab.preferences.preference_direction import DPA, Cone, PreferenceDirection, Template
from trimtab.runtime.toy_engine import Prefix, ToyEngine, ToyModel

TOY = Path(__file__).parent.parent / "toy_model.json"
START = 9
"""Where a response begins; no token of the toy's own."""


WISH = PreferenceDirection(
    objectives=("helpfulness", "verbosity"),
    v=(0.8, 0.6),
    cone=Cone(axis=(1.0, 0.0), degrees=45),
    template=Template(text=DPA, role="system", slots=("h", "w"), signs=(1.0, 1.0)),
    guides={"helpfulness": {"arm": 1.0}, "verbosity": {}},
)


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
        direction=WISH,
        stopping=lambda stop: Sampling(max_tokens=toy.max_tokens, stop=(stop,)),
        ending_at=lambda token: Sampling(max_tokens=toy.max_tokens, stop_token_ids=(token,)),
    )


def total_variation(p: dict[Prefix, float], q: dict[Prefix, float]) -> float:
    return 0.5 * sum(abs(p[y] - q[y]) for y in p)


def tilted(base: dict[Prefix, float], score: dict[Prefix, float], beta: float) -> dict[Prefix, float]:
    """pi*(y), proportional to pi(y) exp(score(y) / beta)."""
    mass = {y: p * float(np.exp(score[y] / beta)) for y, p in base.items()}
    return {y: m / sum(mass.values()) for y, m in mass.items()}


def divergence(p: dict[Prefix, float], q: dict[Prefix, float]) -> float:
    """KL(p || q), in nats."""
    return sum(mass * math.log(mass / q[y]) for y, mass in p.items() if mass > 0)


def surprise(drawn: Sequence[Prefix], law: dict[Prefix, float]) -> float:
    """How many standard deviations chi-squared lies above its mean, rare outcomes taken together."""
    counts = dict.fromkeys(law, 0)
    for y in drawn:
        counts[y] += 1
    common = [(counts[y], len(drawn) * p) for y, p in law.items() if len(drawn) * p >= 5]
    common.append((len(drawn) - sum(c for c, _ in common), len(drawn) - sum(e for _, e in common)))
    chi2 = sum((count - expected) ** 2 / expected for count, expected in common)
    return (chi2 - (len(common) - 1)) / math.sqrt(2 * (len(common) - 1))


class Script:
    """An engine whose answers are given, as texts with a character per token.

    A generation gives the first n of those that begin with what of a response the prompt holds.
    """

    def __init__(self, texts: Sequence[str], *, cut: Mapping[int, int] | None = None) -> None:
        self.texts = texts
        self.cut = cut or {}
        """answer -> the length at which a deadline ends it"""
        self.live = 0
        self.asked: list[tuple[str, int, int | None]] = []
        """(begun response, max_tokens, seed) of each generation"""
        self.drawn = 0

    def report_progress(self, progress: SearchProgress) -> None:
        """Nobody follows it."""

    async def generate(
        self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture
    ) -> AsyncGenerator[Chunk, None]:
        begun = self.text(tuple(prompt)[tuple(prompt).index(START) + 1 :])
        self.asked.append((begun, sampling.max_tokens, sampling.seed))
        self.live += 1
        try:
            matching = [i for i, text in enumerate(self.texts) if text.startswith(begun)]
            for index, i in enumerate(matching[:n]):
                rest = self.texts[i][len(begun) :]
                drawn, finish = rest[: sampling.max_tokens], "stop" if len(rest) <= sampling.max_tokens else "length"
                if (left := self.cut.get(i, math.inf) - len(begun)) < len(drawn):
                    drawn, finish = drawn[: int(left)], "deadline"
                self.drawn += len(drawn)
                yield Chunk(index=index, tokens=tuple(map(ord, drawn)), finish=finish)
        finally:
            self.live -= 1

    async def score(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        raise NotImplementedError

    async def divergence(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        raise NotImplementedError

    def parts(self, completion: Tokens) -> Parts:
        return Parts(answer=self.text(completion))

    def text(self, completion: Tokens) -> str:
        return "".join(map(chr, completion))


def worth(values: Mapping[str, float]) -> Reward:
    """The reward of `Script`'s texts, whole or begun."""

    async def reward(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        return [[values["".join(map(chr, tokens))]] for tokens in completions]

    return reward


async def unasked(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
    raise AssertionError("no reward is needed")


async def told(
    strategy: Strategy,
    engine: Engine,
    reward: Reward,
    *,
    n: int = 1,
    seed: int | None = 0,
    max_tokens: int = 64,
    include: frozenset[str] = frozenset(),
) -> list[tuple[str, dict[str, object]]]:
    """Each answer's text and report."""
    tokens: list[tuple[int, ...]] = [()] * n
    reports: list[dict[str, object]] = [{}] * n
    chunks = strategy((START,), Sampling(max_tokens=max_tokens, seed=seed), engine, reward, n=n, include=include)
    async with aclosing(chunks):
        async for chunk in chunks:
            tokens[chunk.index] += chunk.tokens
            if chunk.finish is not None:
                reports[chunk.index] = {"finish": chunk.finish, **chunk.report}
    return [(engine.text(t), report) for t, report in zip(tokens, reports, strict=True)]
