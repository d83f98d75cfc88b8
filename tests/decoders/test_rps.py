"""RPS and directional alignment on an engine that answers what it is told, and on the toy."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.contracts import Specimen, run
from tests.decoders.conftest import START, surprise, told
from trimtab.decoders.best_of_n import BestOfN
from trimtab.decoders.dpa import Directional
from trimtab.decoders.guided import Guided
from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import BASE, Chunk, Mixture, Parts, Reward, Sampling, Tokens
from trimtab.decoders.report import SearchProgress
from trimtab.decoders.rps import Rps
from trimtab.preferences.preference_direction import (
    Cone,
    PreferenceDirection,
    Template,
    angle_of,
    from_angle,
    unit_vector,
)
from trimtab.runtime.toy_engine import Prefix

TEXT = Template(text="[{h},{w}]", role="user", slots=("h", "w"), signs=(1.0, 1.0))
OBJECTIVES = ("helpful", "wordy")


def wish(angle: float, **more: Any) -> PreferenceDirection:
    v = tuple(map(float, from_angle(angle)))
    return PreferenceDirection(
        objectives=OBJECTIVES, v=v, cone=Cone(axis=(1.0, 0.0), degrees=45), template=TEXT, **more
    )


class Obedient:
    """An engine that writes down the direction that it was told, the mixture and the seed."""

    ends: frozenset[int] = frozenset()

    def __init__(self) -> None:
        self.roles: set[str] = set()
        self.asked: list[tuple[str, int, dict[str, float], int | None]] = []

    async def render_with_instruction(self, instruction: str, *, role: str = "system") -> Tokens:
        self.roles.add(role)
        return [START, *map(ord, instruction)]

    def report_progress(self, progress: SearchProgress) -> None:
        """Nobody follows it."""

    async def generate(
        self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture
    ) -> AsyncGenerator[Chunk, None]:
        said = self.text(prompt[1:])
        self.asked.append((said, n, dict(guides), sampling.seed))
        for i in range(n):
            await asyncio.sleep(0)
            text = json.dumps({"said": said, "i": i, "guides": guides})
            yield Chunk(index=i, tokens=tuple(map(ord, text)), finish="stop")

    def parts(self, completion: Tokens) -> Parts:
        return Parts(answer=self.text(completion))

    def text(self, completion: Tokens) -> str:
        return "".join(map(chr, completion))


def obeyed(text: str) -> np.ndarray:
    """The direction that an answer of `Obedient`'s followed."""
    return np.array(json.loads(json.loads(text)["said"])) / 100


def serves(best: float, target: float) -> Reward:
    """Rewards of which the target likes an answer the more the nearer what it followed lies to `best` degrees."""

    async def reward(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        assert prompt == (START,), "rewards read the prompt as the client wrote it"
        rows = []
        for tokens in completions:
            near = -abs(angle_of(obeyed("".join(map(chr, tokens)))) - best)
            row = near * from_angle(target)
            rows.append([float(row @ from_angle(target)), *map(float, row)])
        return rows

    return reward


async def test_the_prompt_says_the_direction() -> None:
    engine = Obedient()
    [(text, report)] = await told(Directional(direction=wish(-15), guides={"g": 0.5}), engine, serves(0, 0), seed=3)
    assert engine.asked == [("[97,-26]", 1, {BASE: 1.0, "g": 0.5}, 3)]
    assert engine.roles == {"user"}
    assert report["preference_prompt"] == "[97,-26]"
    assert json.loads(text)["said"] == "[97,-26]"
    read = Directional(direction=wish(0, reader="dpa"))
    await told(read, engine, serves(0, 0))
    assert engine.asked[-1][2] == {BASE: 0.0, "dpa": 1.0}


@pytest.mark.parametrize(("best", "wins"), [(20.0, True), (40.0, False)])
async def test_neighbours_help_only_where_they_serve_the_target_better(best: float, wins: bool) -> None:
    """A target of 40 degrees, by what answers at `best` degrees are worth to it."""
    target, reward = 40.0, serves(best, 40.0)
    [(around, found)] = await told(Rps(direction=wish(target), mode="grid_reference"), Obedient(), reward)
    [(alone, kept)] = await told(Rps(direction=wish(target), theta_max=0.0), Obedient(), reward)
    assert angle_of(obeyed(alone)) == pytest.approx(40, abs=0.5)
    assert angle_of(obeyed(around)) == pytest.approx(best, abs=0.5)
    assert (found["value"] > kept["value"]) is wins


async def test_candidates_are_shown_with_their_directions() -> None:
    search = Rps(direction=wish(30), k=3, m=2, mode="grid_relative")
    [(_, report)] = await told(search, Obedient(), serves(25, 30), include=frozenset({"candidates"}))
    shown: Any = report["candidates"]
    assert [c["degrees_from_target"] for c in shown] == pytest.approx([5, 5, 0, 0, 5, 5], abs=1e-3)
    assert [angle_of(list(c["direction"].values())) for c in shown] == pytest.approx([25, 25, 30, 30, 35, 35], abs=1e-3)
    assert [json.loads("".join(map(chr, c["tokens"])))["i"] for c in shown] == [0, 1] * 3
    assert report["candidate"] == 0
    assert list(report["direction"]) == list(OBJECTIVES)


async def test_directions_that_read_the_same_are_drawn_as_one() -> None:
    engine = Obedient()
    await told(Rps(direction=wish(30), k=4, m=2, theta_max=0.0), engine, serves(0, 30), seed=5)
    assert engine.asked == [("[87,50]", 8, {BASE: 1.0}, 5)]
    engine.asked.clear()
    await told(Rps(direction=wish(30), k=3, m=2, mode="grid_relative"), engine, serves(0, 30), seed=5)
    assert [n for _, n, _, _ in engine.asked] == [2, 2, 2]
    assert len({seed for *_, seed in engine.asked}) == 3


async def test_directions_over_guides_are_exponents() -> None:
    gains = {"helpful": {"h": 0.5}, "wordy": {"w": 2.0}}
    bare = replace(wish(-30, guides=gains), template=None)
    engine = Obedient()

    async def flat(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        return [[0.0, 0.0, 0.0] for _ in completions]

    await told(Rps(direction=bare, over="guides", theta_max=0.0, alpha=3.0), engine, flat)
    [(said, n, mixture, _)] = engine.asked
    assert (said, n) == ("", 5)
    assert mixture == pytest.approx({BASE: 1.0, "h": 1.5 * math.cos(math.radians(30)), "w": 0.0})
    both = replace(wish(30, guides=gains), reader="dpa")
    await told(Rps(direction=both, over="both", theta_max=0.0, guides={"more": 1.0}), engine, flat)
    said, _, mixture, _ = engine.asked[-1]
    assert said == "[87,50]"
    assert mixture == pytest.approx({BASE: 0, "dpa": 1, "h": 0.5 * math.sqrt(0.75), "w": 2 * 0.5, "more": 1.0})


def test_what_nothing_can_carry_out_is_refused() -> None:
    bare = replace(wish(0), template=None)
    with pytest.raises(ValueError, match="no preference prompt"):
        Rps(direction=bare)
    with pytest.raises(ValueError, match="no preference prompt"):
        Directional(direction=bare)
    with pytest.raises(ValueError, match="objective 'wordy' has no guide"):
        Rps(direction=replace(bare, guides={"helpful": {"h": 1.0}}), over="guides")


def rated(rows: dict[int, tuple[float, float]], target: Sequence[float]) -> Reward:
    """Two objectives' rewards by the place of an answer in its call of the engine."""

    async def reward(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        found = [rows[json.loads("".join(map(chr, tokens)))["i"]] for tokens in completions]
        return [[float(np.dot(row, target)), *row] for row in found]

    return reward


async def test_a_consensus_is_what_most_neighbours_would_choose() -> None:
    """At the cone's edge: answer 0 serves the target best by a hair, 1 whoever cares a little more for words."""
    edge, aside = from_angle(-45), from_angle(45)
    rows = {0: edge, 1: 0.99 * edge + 0.2 * aside, 2: 0.2 * edge + 0.9 * aside, 3: 0 * edge, 4: 0 * edge}
    pairs = {i: (float(row[0]), float(row[1])) for i, row in rows.items()}
    votes = [max(rows, key=lambda i: float(rows[i] @ from_angle(a))) for a in (-45, -40, -35, -30, -25)]
    assert votes == [0, 1, 1, 1, 1]
    same = replace(wish(-45), template=replace(TEXT, scale=0.001))  # all directions are one prompt
    for selection, best in (("argmax", 0), ("consensus", 1)):
        search = Rps(direction=same, k=5, mode="grid_relative", selection=selection)
        [(text, report)] = await told(search, Obedient(), rated(pairs, edge))
        assert json.loads(text)["i"] == best
        assert report.get("votes", 4) == 4


@pytest.mark.slow
async def test_a_soft_choice_has_its_law() -> None:
    rows = {0: (1.0, 0.0), 1: (0.0, 0.0), 2: (0.3, 5.0)}
    search = Rps(direction=wish(0), k=3, theta_max=0.0, selection="soft", lambda_=0.5)
    reward = rated(rows, (1.0, 0.0))
    drawn = [json.loads((await told(search, Obedient(), reward, seed=s))[0][0])["i"] for s in range(3000)]
    weights = {(i,): math.exp(row[0] / 0.5) for i, row in rows.items()}
    law = {y: w / sum(weights.values()) for y, w in weights.items()}
    assert abs(surprise([(i,) for i in drawn], law)) < 5


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
async def test_the_length_of_the_weights_changes_nothing(scale: float) -> None:
    asked = replace(wish(0), v=tuple(map(float, unit_vector([3 * scale, scale]))))
    assert await told(Rps(direction=asked), Obedient(), serves(10, angle_of(asked.v)), seed=1) == await told(
        Rps(direction=replace(wish(0), v=tuple(map(float, unit_vector([3, 1]))))),
        Obedient(),
        serves(10, angle_of(asked.v)),
        seed=1,
    )


# On the toy, which reads no instruction.

NEUTRAL = PreferenceDirection(objectives=OBJECTIVES, v=(1.0, 0.0), cone=Cone(axis=(1.0, 0.0)), template=TEXT,
               guides={"helpful": {"arm": 1.0}, "wordy": {"arm": 0.5}})  # fmt: skip


async def test_without_neighbours_it_is_best_of_n(specimen: Specimen) -> None:
    for seed in range(20):
        alone = await run(Rps(direction=NEUTRAL, k=4, theta_max=0.0), specimen, (START,), seed=seed, n=2)
        assert alone == await run(BestOfN(n=4), specimen, (START,), seed=seed, n=2)


async def test_one_neighbour_is_the_direction_itself(specimen: Specimen) -> None:
    for seed in range(20):
        one = await run(Rps(direction=NEUTRAL, k=1, theta_max=0.0), specimen, (START,), seed=seed)
        assert one == await run(Directional(direction=NEUTRAL), specimen, (START,), seed=seed)
        assert one == await run(Plain(), specimen, (START,), seed=seed)
        guided = await run(Rps(direction=NEUTRAL, k=1, theta_max=0.0, over="guides"), specimen, (START,), seed=seed)
        assert guided == await run(Guided(guides={"arm": 1.0}), specimen, (START,), seed=seed)


@pytest.mark.slow
async def test_where_directions_change_nothing_the_pool_has_best_of_n_s_law(
    specimen: Specimen, toy: Any, reward: dict[Prefix, float]
) -> None:
    """The toy answers every direction alike; seeds of different directions must be independent draws of one law."""
    search = Rps(direction=replace(NEUTRAL, template=replace(TEXT, scale=1e6)), k=4)
    drawn = [(await run(search, specimen, (START,), seed=s))[0] for s in range(2000)]
    below, law = 0.0, {}
    base = dict(toy.sequences(toy.next({BASE: 1})))
    for y in sorted(base, key=reward.__getitem__):
        law[y] = (below + base[y]) ** 4 - below**4
        below += base[y]
    assert abs(surprise(drawn, law)) < 5
