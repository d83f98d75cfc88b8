"""`qalign`: answers of Markov chains against a choice among independent answers, at equal sampled tokens.

The served base draws a pool of answers per held-out prompt, scored as for `best_of_n`. Chains run for each beta and
number of steps, in one request each. Choices from the pool use as many answers as the chains' tokens would draw: N =
tokens of the chains / mean tokens of an answer. All by one reward model:

- QAlign: the request's answer: `mbr`, for word problems `vote`.
- its states: the mean over the states that the chains visited, which are draws from their target.
- best of N; MBR weighted by exp(r / beta) with the chains' beta; MBR; for word problems votes.

beta is in spreads of the reward over the base's answers to one prompt. Rises are in spreads as in `best_of_n`, ± is
half a 95 % interval over prompts; the last column is of the differences prompt by prompt.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from openai import AsyncOpenAI

from trimtab.bench.intervals import half, plus_minus
from trimtab.bench.quality.pool import FINAL, OBJECTIVE, Pool, Vector, best_of, held_out, mbr_gold, pools, vote_accuracy
from trimtab.bench.report import table
from trimtab.decoders.shared.similarity import f1, split_words
from trimtab.recipes.gold import GOLD, arithmetic

CHAINS = 4
LEAF = f"rm-a.{OBJECTIVE}"
ANSWERS: dict[str, dict[str, Any]] = {
    OBJECTIVE: {"answer": "mbr"},
    "word problems": {"answer": "vote", "extractor": {"regex": FINAL}},
}
"""Kinds of prompts, and params of the chains for them."""

Gold = Callable[[str, str], float]


@dataclass(frozen=True)
class ChainsResult:
    """One request's answer, and the states of its chains with their visits."""

    text: str
    value: float
    tokens: int
    acceptance: float
    states: Sequence[tuple[str, float, int]]
    """text, proxy, visits"""


@dataclass(frozen=True)
class QAlignStudy:
    """One kind of prompts: the pool of each, and its chains by (beta, steps)."""

    name: str
    gold: Gold
    pools: Sequence[Pool]
    runs: Mapping[tuple[float, int], Sequence[ChainsResult]]

    @property
    def votes(self) -> bool:
        """Whether answers are right or wrong, and chosen by a vote."""
        return self.name != OBJECTIVE


async def run(
    client: AsyncOpenAI, model: str, *, prompts: int, size: int, betas: Sequence[float], steps: Sequence[int]
) -> list[QAlignStudy]:
    gate = asyncio.Semaphore(8)
    studies = []
    for (name, params), gold, chosen in zip(
        ANSWERS.items(), (GOLD[OBJECTIVE], arithmetic), held_out(prompts), strict=True
    ):
        drawn = await pools(client, model, chosen, size, gate)
        spread = statistics.fmean(p.raw[LEAF].std() for p in drawn)
        runs = {}
        for beta in betas:
            for k in steps:
                settings = {"chains": CHAINS, "steps": k, "beta": beta * spread, **params}
                runs[beta, k] = await asyncio.gather(
                    *(run_chains(client, model, p, seed, settings, gate) for seed, p in enumerate(drawn))
                )
        studies.append(QAlignStudy(name, gold, drawn, runs))
    return studies


async def run_chains(
    client: AsyncOpenAI, model: str, pool: Pool, seed: int, params: Mapping[str, Any], gate: asyncio.Semaphore
) -> ChainsResult:
    messages: Any = list(pool.prompt.messages)
    body = {"alignment": {"strategy": "qalign", "reward": LEAF, "params": params, "return": ["candidates"]}}
    async with gate:
        answer = await client.chat.completions.create(
            model=model, messages=messages, temperature=1.0, max_tokens=200, seed=9000 + seed, extra_body=body
        )
    report: Any = (answer.model_extra or {})["alignment"]
    [choice] = report["choices"]
    return ChainsResult(
        text=answer.choices[0].message.content or "",
        value=choice["value"],
        tokens=report["sampled_tokens"],
        acceptance=choice["acceptance_rate"],
        states=[(c["text"], c["value"], c["visits"]) for c in choice["candidates"]],
    )


@dataclass(frozen=True)
class Scale:
    """A pool, and the units of its rises."""

    pool: Pool
    gold: Vector
    similarity_MM: Vector
    zero: float
    unit: float
    spread: float
    """Of the reward over the answers to one prompt."""

    def rise(self, gold: float) -> float:
        return (gold - self.zero) / self.unit

    def proxy(self, value: float) -> float:
        return (value - float(self.pool.raw[LEAF].mean())) / self.spread


def scales(study: QAlignStudy) -> list[Scale]:
    golden = [np.array([study.gold(p.prompt.text, t) for t in p.texts], dtype=np.float64) for p in study.pools]
    unit = statistics.fmean(g.std() for g in golden)
    spread = statistics.fmean(p.raw[LEAF].std() for p in study.pools)
    scaled = []
    for pool, gold in zip(study.pools, golden, strict=True):
        similarity = f1([split_words(text) for text in pool.texts])
        np.fill_diagonal(similarity, 1)
        zero, one = (0.0, 1.0) if study.votes else (float(gold.mean()), unit)
        scaled.append(Scale(pool, gold, similarity, zero, one, spread))
    return scaled


def ways(study: QAlignStudy, s: Scale, c: ChainsResult, n: int, beta: float) -> dict[str, tuple[float, float | None]]:
    """way -> (gold, proxy) for one prompt; choices from the pool only where it has n answers."""
    rng = random.Random(0)
    ask, values = s.pool.prompt.text, s.pool.raw[LEAF]
    visits = sum(v for *_, v in c.states)
    state_gold = sum(study.gold(ask, text) * v for text, _, v in c.states) / visits
    state_proxy = sum(value * v for _, value, v in c.states) / visits
    points: dict[str, tuple[float, float | None]] = {
        "QAlign": (s.rise(study.gold(ask, c.text)), s.proxy(c.value)),
        "its states": (s.rise(state_gold), s.proxy(state_proxy)),
    }
    if n > len(values):
        return points
    points["best of N"] = s.rise(best_of(values, s.gold, n)), s.proxy(best_of(values, values, n))
    tilted, uniform = np.exp((values - values.max()) / (beta * s.spread)), np.ones(len(values))
    for name, weight in (("weighted ", tilted), ("", uniform)):
        if study.votes:
            points[f"{name}vote"] = vote_accuracy(s.pool, weight, n, rng), None
        else:
            points[f"{name}MBR"] = s.rise(mbr_gold(s.similarity_MM, weight, s.gold, n, rng)), None
    return points


def tabulate(study: QAlignStudy) -> list[dict[str, Any]]:
    """A row for each beta and number of steps; gold and proxy by way, per prompt."""
    at_hand = scales(study)
    length = statistics.fmean(p.tokens for p in study.pools)
    rows = []
    for (beta, steps), chains in study.runs.items():
        tokens = statistics.fmean(c.tokens for c in chains)
        n = max(1, round(tokens / length))
        points = [ways(study, s, c, n, beta) for s, c in zip(at_hand, chains, strict=True)]
        rows.append(
            {
                "beta": beta,
                "steps": steps,
                "acceptance": statistics.fmean(c.acceptance for c in chains),
                "tokens": tokens,
                "n": n,
                "gold": {way: [f[way][0] for f in points] for way in points[0]},
                "proxy": {
                    way: [f[way][1] for f in points] for way, (_, proxy) in points[0].items() if proxy is not None
                },
            }
        )
    return rows


def show(studies: Sequence[QAlignStudy]) -> dict[str, Any]:
    """Prints a table for each kind of prompts and returns the figures."""
    figures: dict[str, Any] = {}
    for study in studies:
        rows = tabulate(study)
        columns = list(rows[0]["gold"])
        print(f"\n{study.name}: proxy / " + ("share solved" if study.votes else "gold rise, in spreads"))
        shown = []
        for row in rows:
            gold, proxy = row["gold"], row["proxy"]
            cells = [
                "" if way not in gold
                else (f"{statistics.fmean(proxy[way]):+.2f} / " if way in proxy else "") + plus_minus(gold[way])
                for way in columns
            ]  # fmt: skip
            apart = [a - b for a, b in zip(gold["QAlign"], gold.get("best of N", []), strict=False)]
            shown.append([row["beta"], row["steps"], f"{row['acceptance']:.2f}", f"{row['tokens']:.0f}", row["n"],
                          *cells, plus_minus(apart) if apart else ""])  # fmt: skip
        headers = ["beta", "steps", "accepted", "tokens", "N", *columns, "QAlign - best of N"]
        print(table(headers, shown))
        figures[study.name] = [
            {
                **{key: row[key] for key in ("beta", "steps", "acceptance", "tokens", "n")},
                "gold": {way: {"mean": statistics.fmean(v), "half_ci95": half(v)} for way, v in row["gold"].items()},
                "proxy": {way: {"mean": statistics.fmean(v), "half_ci95": half(v)} for way, v in row["proxy"].items()},
            }
            for row in rows
        ]
    return figures


def draw(figures: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Gold against sampled tokens for each way; chains have a line for each beta."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(figures), figsize=(14, 5.5), layout="constrained")
    for axis, (name, rows) in zip(axes, figures.items(), strict=True):
        betas = sorted({row["beta"] for row in rows})
        colours = dict(zip(betas, plt.cm.viridis(np.linspace(0, 0.85, len(betas))), strict=True))
        for beta in betas:
            mine = [row for row in rows if row["beta"] == beta]
            for way, style in (("QAlign", "o-"), ("its states", ":")):
                xs = [row["tokens"] for row in mine]
                ys = np.array([row["gold"][way]["mean"] for row in mine])
                axis.plot(xs, ys, style, color=colours[beta], label=f"{way}, beta {beta:g}")
                if way == "QAlign":
                    h = np.array([row["gold"][way]["half_ci95"] for row in mine])
                    axis.fill_between(xs, ys - h, ys + h, color=colours[beta], alpha=0.12)
        others = sorted((row for row in rows if "best of N" in row["gold"]), key=lambda row: row["tokens"])
        for way, style in (("best of N", "r^--"), ("vote", "ks--"), ("MBR", "ks--")):
            points = [(row["tokens"], row["gold"][way]["mean"]) for row in others if way in row["gold"]]
            if points:
                axis.plot(*zip(*points, strict=True), style, label=way)
        ylabel = "gold rise, spreads" if name == OBJECTIVE else "share solved"
        axis.set(title=name, xlabel="tokens sampled per answer", ylabel=ylabel, xscale="log")
        axis.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
