"""`infer` and `auto`: weights from a person's choices and from the prompt.

`infer`: simulated people with hidden weights w choose between answers of the base by P = sigmoid(w . r), r the served
rewards in spreads, and the server infers w from their choices. Cosine of inferred and hidden weights by number of
choices, for random pairs and for pairs that the server asks for; the coverage of its 95 % intervals, and the cosine
that it expects.

`auto`: one answer to each held-out prompt with weights from the prompt, with equal weights, and with the asker's own,
which no adapter has seen; the worth of each answer to the asker, in spreads of the base's gold
(recipes.orchestrator.WANTS).
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openai import AsyncOpenAI

from trimtab.bench.intervals import half, plus_minus
from trimtab.bench.quality.directions import Directions
from trimtab.bench.quality.pool import draw_answers
from trimtab.bench.report import table
from trimtab.recipes.corpus import Prompt, heldout_prompts
from trimtab.recipes.orchestrator import WANTS, asker_worth

STD = 2.0
"""Standard deviation of the hidden weights, which is that of the server's prior."""
ANSWERS, OFFERED = 6, 8
"""Answers per conversation, and conversations from which the server chooses its next question."""

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredPool:
    """A conversation, the base's answers to it, and the server's scores of them."""

    prompt: Prompt
    texts: Sequence[str]
    rewards: Vector
    """[ANSWERS, K]"""

    def to_request(self, **more: Any) -> dict[str, Any]:
        return {"messages": list(self.prompt.messages), **more}


@dataclass(frozen=True)
class Inference:
    """The server's estimate of one person after some choices."""

    cosine: float
    coverage: float
    """Share of objectives whose interval contains the truth."""
    expected: float


async def draw_pool(
    client: AsyncOpenAI, model: str, objectives: Sequence[str], prompts: int, gate: asyncio.Semaphore
) -> list[ScoredPool]:
    chosen = heldout_prompts(prompts, seed=7)
    texts = await draw_answers(client, model, chosen, ANSWERS, gate)

    async def one(prompt: Prompt, texts: Sequence[str]) -> ScoredPool:
        weights = dict.fromkeys(objectives, 1.0)
        body = {"messages": list(prompt.messages), "responses": list(texts), "weights": weights}
        async with gate:
            answer: Any = await client.post("/alignment/score", cast_to=object, body=body)
        rewards = np.array([[s["transformed"][o] for o in objectives] for s in answer["scores"]])
        return ScoredPool(prompt, texts, rewards)

    return list(await asyncio.gather(*(one(p, t) for p, (t, _) in zip(chosen, texts, strict=True))))


async def person(
    client: AsyncOpenAI,
    objectives: Sequence[str],
    pool: Sequence[ScoredPool],
    seed: int,
    checkpoints: Sequence[int],
    *,
    active: bool,
    gate: asyncio.Semaphore,
) -> dict[int, Inference]:
    """The estimate at each number of choices."""
    w = np.random.default_rng([seed, 0]).standard_normal(len(objectives)) * STD
    rng = np.random.default_rng([seed, 1 + active])
    comparisons: list[dict[str, Any]] = []
    inferences: dict[int, Inference] = {}

    async def infer_weights(candidates: Sequence[ScoredPool]) -> Any:
        body = {
            "objectives": list(objectives),
            "comparisons": comparisons,
            "candidates": [c.to_request(responses=list(c.texts)) for c in candidates],
        }
        async with gate:
            return await client.post("/alignment/infer", cast_to=object, body=body)

    for n in range(1, max(checkpoints) + 1):
        offered = [pool[i] for i in rng.choice(len(pool), OFFERED, replace=False)]
        place, (a, b) = 0, rng.choice(ANSWERS, 2, replace=False)
        if active:
            ask = (await infer_weights(offered))["ask"]
            place, (a, b) = ask["candidate"], ask["responses"]
        one = offered[place]
        margin = float((one.rewards[a] - one.rewards[b]) @ w)
        first = rng.random() < 0.5 * (1 + math.tanh(margin / 2))
        texts = (one.texts[a], one.texts[b]) if first else (one.texts[b], one.texts[a])
        comparisons.append(one.to_request(chosen=texts[0], rejected=texts[1]))
        if n in checkpoints:
            inference = await infer_weights([])
            u, v = w / np.linalg.norm(w), np.array([inference["weights"][o] for o in objectives])
            bounds = [inference["interval"][o] for o in objectives]
            coverage = statistics.fmean(low <= x <= high for x, (low, high) in zip(u, bounds, strict=True))
            inferences[n] = Inference(float(u @ v), coverage, inference["expected_cosine"])
    return inferences


async def infer(client: AsyncOpenAI, catalogue: Mapping[str, Any], *, prompts: int, quick: bool) -> dict[str, Any]:
    """Prints the table and returns the figures."""
    objectives = [name for name, o in catalogue["objectives"].items() if o["reward"]]
    gate = asyncio.Semaphore(8)
    people, checkpoints = (12, (1, 2, 4, 8)) if quick else (40, (1, 2, 4, 8, 16, 24))
    pool = await draw_pool(client, catalogue["model"], objectives, max(prompts, OFFERED), gate)
    ways = {}
    for way in ("random", "asked"):
        ways[way] = await asyncio.gather(
            *(person(client, objectives, pool, s, checkpoints, active=way == "asked", gate=gate) for s in range(people))
        )
        print(way, flush=True)
    rows, figures = [], []
    for n in checkpoints:
        row: dict[str, Any] = {"choices": n}
        for way, inferences in ways.items():
            cosines = [f[n].cosine for f in inferences]
            row[way] = {
                "cosine": statistics.fmean(cosines),
                "half_ci95": half(cosines),
                "held": statistics.fmean(f[n].coverage for f in inferences),
                "expected": statistics.fmean(f[n].expected for f in inferences),
            }
        gain = [b[n].cosine - a[n].cosine for a, b in zip(ways["random"], ways["asked"], strict=True)]
        row["gain"], row["gain_half_ci95"] = statistics.fmean(gain), half(gain)
        cells = [
            cell
            for way in ways
            for cell in (plus_minus([f[n].cosine for f in ways[way]]), row[way]["expected"], row[way]["held"])
        ]
        rows.append([n, *cells, plus_minus(gain)])
        figures.append(row)
    print(f"\n{people} people, {len(objectives)} objectives: cosine of inferred and hidden weights")
    columns = [f"{way}{column}" for way in ways for column in ("", ": expected", ": 95 % hold")]
    print(table(["choices", *columns, "asked - random"], rows))
    return {"people": people, "objectives": objectives, "rows": figures}


async def auto(bench: Directions, catalogue: Mapping[str, Any]) -> dict[str, Any]:
    """Prints the table and returns the figures."""
    objectives = list(next(iter(WANTS.values())) | {o: 0.0 for wants in WANTS.values() for o in wants})
    equal = dict.fromkeys(objectives, 1 / len(objectives))
    if not catalogue["auto_weights"]:
        raise SystemExit("this server has no auto_weights")

    def worth(texts: Sequence[str]) -> list[float]:
        return [asker_worth(p.domain, p.text, text) for p, text in zip(bench.prompts, texts, strict=True)]

    async def answer_by_asker(how: Mapping[str, Any]) -> list[str]:
        """With the asker's own weights in each domain."""
        texts: dict[int, str] = {}
        for domain, weights in WANTS.items():
            places = [i for i, p in enumerate(bench.prompts) if p.domain == domain]
            texts |= dict(zip(places, await bench.texts({**how, "weights": weights}, places), strict=True))
        return [texts[i] for i in range(len(bench.prompts))]

    base = worth(await bench.texts({"strategy": "plain"}))
    rows, figures = [["base", "", plus_minus(base), "", ""]], [{"strategy": "base", "worth": statistics.fmean(base)}]
    for strategy, how in (
        ("guided", {"strategy": "guided"}),
        ("best of 8", {"strategy": "best_of_n", "params": {"n": 8}}),
    ):
        by = {
            "equal": worth(await bench.texts({**how, "weights": equal})),
            "auto": worth(await bench.texts({**how, "weights": "auto"})),
            "who asks": worth(await answer_by_asker(how)),
        }
        for name, values in by.items():
            apart = [a - b for a, b in zip(values, by["equal"], strict=True)]
            rise = [a - b for a, b in zip(values, base, strict=True)]
            rows.append([strategy, name, plus_minus(values), plus_minus(rise), plus_minus(apart) if any(apart) else ""])
            figures.append(
                {"strategy": strategy, "weights": name, "worth": statistics.fmean(values), "half_ci95": half(values),
                 "above_equal": statistics.fmean(apart), "above_equal_half_ci95": half(apart)}
            )  # fmt: skip
        print(strategy, flush=True)
    print("\nwhat who asks thinks of the answers, in spreads of the base's gold")
    print(table(["strategy", "weights", "worth", "above the base", "above equal"], rows))
    return {"rows": figures}


def draw_infer(figures: Mapping[str, Any], path: Path) -> None:
    """Cosine against the number of choices, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
    ns = [row["choices"] for row in figures["rows"]]
    for way in ("random", "asked"):
        points = [row[way] for row in figures["rows"]]
        axis.errorbar(
            ns, [t["cosine"] for t in points], [t["half_ci95"] for t in points], marker="o", capsize=3, label=way
        )
        axis.plot(ns, [t["expected"] for t in points], ":", label=f"{way}: as the server expects")
    axis.set(xlabel="choices", ylabel="cosine of inferred and hidden weights", ylim=(0, 1))
    axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
