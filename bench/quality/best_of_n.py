"""`best_of_n`: what choosing among N answers buys by a proxy, and what gold says of it.

Per held-out prompt one pool of answers is drawn by the served base, every proxy scores all of it over HTTP, and for
each N the mean over *all* subsets of N is taken, in closed form: of M answers ranked by the proxy, the one of rank i
(1 the worst) is the best of a random subset of N with probability

    C(i - 1, N - 1) / C(M, N)                                                                                        (1)

Points are gold's or the proxy's, in spreads of the base's own answers (proxies: per prompt, so that easy and hard
prompts weigh alike; gold too). KL(best of N || base) = log N - (N - 1) / N, an upper bound where answers tie. ± is half
a 95 % interval over prompts. Word problems: the share solved, by one sample, majority, reward-weighted vote, and best
of N; votes by random subsets.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openai import AsyncOpenAI

from bench.quality.points import half, plus_minus
from bench.report import table
from recipes.corpus import DOMAINS, Prompt, heldout_prompts
from recipes.gold import GOLD, arithmetic

OBJECTIVE, OTHER = "helpfulness", "brevity"
SUBSETS = 200
"""Random subsets per prompt and N, for votes."""

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Pool:
    """M answers of the base to one prompt: gold by objective, and each proxy's values."""

    prompt: Prompt
    texts: Sequence[str]
    gold: Mapping[str, Vector]
    proxies: Mapping[str, Vector]


def best_of(values: Vector, other: Vector, n: int) -> float:
    """The mean, over all subsets of n, of `other` at the largest of `values`; the first drawn wins a tie."""
    m = len(values)
    order = np.lexsort((-np.arange(m), values))  # worst first; of equals the first drawn last
    log_c = np.array([_log_choose(i, n - 1) for i in range(m)]) - _log_choose(m, n)
    return float(np.exp(log_c) @ other[order])  # (1)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) if k <= n else -math.inf


def divergence(n: int) -> float:
    """KL(best of n || base) in nats."""
    return math.log(n) - (n - 1) / n


def proxies(scales: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Name -> reward specification; `scales` are means and spreads on the base's own answers."""

    def standard(leaf: str) -> dict[str, Any]:
        mean, spread = scales[leaf]
        return {"of": leaf, "transform": {"standardise": {"mean": mean, "std": spread}}}

    members = [standard(f"{rm}.{OBJECTIVE}") for rm in ("rm-a", "rm-b")]
    pair = [f"rm-a.{OBJECTIVE}", f"rm-a.{OTHER}"]
    return {
        "one RM": members[0],
        "other RM": members[1],
        "ensemble mean": {"of": members, "combine": "mean"},
        "ensemble min": {"of": members, "combine": "min"},
        "ensemble UWO": {"of": members, "combine": {"uwo": {"lambda": 0.5}}},
        "both, sum": {"of": [standard(leaf) for leaf in pair]},
        "both, LSC": {"of": [{"of": leaf, "transform": {"lsc": {"references": 8}}} for leaf in pair]},
        "both, PAR": {"of": [{"of": leaf, "transform": {"par": {"references": 8}}} for leaf in pair]},
    }


async def drawn(
    client: AsyncOpenAI, model: str, prompts: Sequence[Prompt], size: int, gate: asyncio.Semaphore
) -> list[list[str]]:
    """prompt -> `size` answers of the base"""

    async def one(seed: int, prompt: Prompt) -> list[str]:
        messages: Any = list(prompt.messages)
        async with gate:
            answer = await client.chat.completions.create(
                model=model, messages=messages, temperature=1.0, max_tokens=200, n=size, seed=seed * size
            )
        return [choice.message.content or "" for choice in answer.choices]

    return list(await asyncio.gather(*(one(i, prompt) for i, prompt in enumerate(prompts))))


async def scored(
    client: AsyncOpenAI, prompt: Prompt, texts: Sequence[str], reward: Any, gate: asyncio.Semaphore
) -> list[dict[str, Any]]:
    body = {"messages": list(prompt.messages), "responses": list(texts), "reward": reward}
    async with gate:
        answer: Any = await client.post("/alignment/score", cast_to=object, body=body)
    scores: list[dict[str, Any]] = answer["scores"]
    return scores


async def run(client: AsyncOpenAI, model: str, *, prompts: int, size: int) -> tuple[list[Pool], list[Pool]]:
    """Pools on mixed prompts, and on word problems."""
    gate = asyncio.Semaphore(8)
    mixed = heldout_prompts(prompts, seed=1, domains=tuple(d for d in DOMAINS if d != "arithmetic"))
    sums = heldout_prompts(prompts, seed=1, domains=("arithmetic",))
    leaves = [f"{rm}.{objective}" for rm in ("rm-a", "rm-b") for objective in (OBJECTIVE, OTHER)]
    found: list[list[Pool]] = []
    for chosen in (mixed, sums):
        texts = await drawn(client, model, chosen, size, gate)
        raw = await asyncio.gather(
            *(scored(client, p, t, {"of": leaves}, gate) for p, t in zip(chosen, texts, strict=True))
        )
        columns = {leaf: [s["rewards"][leaf] for row in raw for s in row] for leaf in leaves}
        specs = proxies({leaf: (statistics.fmean(c), statistics.stdev(c)) for leaf, c in columns.items()})
        pools = []
        for prompt, answers in zip(chosen, texts, strict=True):
            rows = await asyncio.gather(*(scored(client, prompt, answers, spec, gate) for spec in specs.values()))
            values = {name: np.array([s["value"] for s in row]) for name, row in zip(specs, rows, strict=True)}
            gold = {name: np.array([score(prompt.text, a) for a in answers]) for name, score in GOLD.items()}
            pools.append(Pool(prompt, answers, gold, values))
        found.append(pools)
    return found[0], found[1]


def curve(pools: Sequence[Pool], proxy: str, sizes: Sequence[int], gold: Sequence[str]) -> dict[int, dict[str, Any]]:
    """N -> the proxy's and gold's means over best-of-N, in spreads, per prompt."""
    out: dict[int, dict[str, Any]] = {}
    spreads = {g: statistics.fmean(p.gold[g].std() for p in pools) for g in gold}
    spread = statistics.fmean(p.proxies[proxy].std() for p in pools)
    for n in sizes:
        rise = [(best_of(p.proxies[proxy], p.proxies[proxy], n) - p.proxies[proxy].mean()) / spread for p in pools]
        golden = [
            math.fsum((best_of(p.proxies[proxy], p.gold[g], n) - p.gold[g].mean()) / spreads[g] for g in gold)
            for p in pools
        ]
        out[n] = {"kl": divergence(n), "proxy": rise, "gold": golden}
    return out


FINAL = re.compile(r"Answer: (-?\d+)")


def solved(pools: Sequence[Pool], proxy: str, sizes: Sequence[int]) -> dict[int, dict[str, list[float]]]:
    """N -> way to choose -> share solved, per prompt."""
    rng = random.Random(0)
    out: dict[int, dict[str, list[float]]] = {n: {} for n in sizes}
    for n in sizes:
        ways: dict[str, list[float]] = {"majority": [], "weighted vote": [], "best of N": [], "any of N (oracle)": []}
        for p in pools:
            right = np.array([arithmetic(p.prompt.text, t) for t in p.texts])
            answers = [found[-1] if (found := FINAL.findall(t)) else None for t in p.texts]
            weight = np.exp(p.proxies[proxy])
            votes: dict[str, list[float]] = {"majority": [], "weighted vote": []}
            for _ in range(SUBSETS):
                subset = rng.sample(range(len(answers)), n)
                for name, vote in (("majority", np.ones(len(answers))), ("weighted vote", weight)):
                    count: Counter[str] = Counter()
                    for i in subset:
                        if answers[i] is not None:
                            count[str(answers[i])] += vote[i]
                    won = count.most_common(1)[0][0] if count else None
                    votes[name].append(float(won is not None and int(won) == p.prompt.answer))
            ways["majority"].append(statistics.fmean(votes["majority"]))
            ways["weighted vote"].append(statistics.fmean(votes["weighted vote"]))
            ways["best of N"].append(best_of(p.proxies[proxy], right, n))
            ways["any of N (oracle)"].append(best_of(right, right, n))
        out[n] = ways
    return out


def show(mixed: Sequence[Pool], sums: Sequence[Pool], size: int) -> dict[str, Any]:
    """Prints the tables and returns the figures."""
    sizes = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n <= size]
    figures: dict[str, Any] = {}
    names = list(mixed[0].proxies)
    for title, chosen, gold in (
        (f"{OBJECTIVE}", [n for n in names if not n.startswith("both")], [OBJECTIVE]),
        (f"{OBJECTIVE} + {OTHER}", [n for n in names if n.startswith("both")], [OBJECTIVE, OTHER]),
    ):
        curves = {name: curve(mixed, name, sizes, gold) for name in chosen}
        print(f"\n{title}: proxy / gold rise in spreads, by proxy")
        rows = [
            [
                n,
                divergence(n),
                *(f"{statistics.fmean(c[n]['proxy']):+.2f} / {plus_minus(c[n]['gold'])}" for c in curves.values()),
            ]
            for n in sizes
        ]
        print(table(["N", "KL", *curves], rows))
        figures[title] = {
            name: {
                str(n): {
                    "kl": f["kl"],
                    "proxy": statistics.fmean(f["proxy"]),
                    "gold": statistics.fmean(f["gold"]),
                    "half_ci95": half(f["gold"]),
                }
                for n, f in c.items()
            }
            for name, c in curves.items()
        }
    right = solved(sums, "one RM", sizes)
    print("\nword problems: share solved")
    print(table(["N", *right[1]], [[n, *(plus_minus(v) for v in ways.values())] for n, ways in right.items()]))
    figures["solved"] = {
        str(n): {name: {"mean": statistics.fmean(v), "half_ci95": half(v)} for name, v in ways.items()}
        for n, ways in right.items()
    }
    return figures


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """Proxy and gold against KL, and the share of word problems solved against N, as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    titles = [t for t in figures if t != "solved"]
    figure, axes = plt.subplots(1, len(titles) + 1, figsize=(17, 5), layout="constrained")
    for axis, title in zip(axes, titles, strict=False):
        for name, points in figures[title].items():
            kl = [f["kl"] for f in points.values()]
            [line] = axis.plot(kl, [f["gold"] for f in points.values()], marker="o", label=f"{name}, gold")
            low = [f["gold"] - f["half_ci95"] for f in points.values()]
            high = [f["gold"] + f["half_ci95"] for f in points.values()]
            axis.fill_between(kl, low, high, color=line.get_color(), alpha=0.12)
            axis.plot(kl, [f["proxy"] for f in points.values()], "--", color=line.get_color())
        axis.set(
            title=f"{title}: dashed proxy, solid gold", xlabel="KL(best of N ‖ base), nats", ylabel="rise, spreads"
        )
        axis.legend()
    for name in figures["solved"]["1"]:
        xs = [int(n) for n in figures["solved"]]
        axes[-1].plot(xs, [f[name]["mean"] for f in figures["solved"].values()], marker="o", label=name)
    axes[-1].set(title="word problems", xlabel="N", ylabel="share solved", xscale="log")
    axes[-1].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
