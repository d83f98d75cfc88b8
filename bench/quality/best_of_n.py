"""`best_of_n`: the rise of the proxy and of gold from choosing among N answers.

The served base draws one pool of answers per held-out prompt, every proxy scores all of it over HTTP, and the mean over
*all* subsets of N has a closed form (bench/quality/pool.py).

Rises of gold and proxy are in spreads of the base's answers to one prompt, so that easy and hard prompts weigh alike.
KL(best of N || base) = log N - (N - 1) / N, an upper bound where answers tie. ± is half a 95 % interval over prompts.
Word problems: the share solved by one sample, majority, reward-weighted vote, and best of N; votes by random subsets.

Last, the tokens of speculative rejection over those of best of N for the same mean reward, with N read off the curve of
the first table.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from openai import AsyncOpenAI

from trimtab.bench.intervals import half, plus_minus
from trimtab.bench.quality.pool import OBJECTIVE, OTHER, Pool, Vector, best_of, held_out, pools, vote_accuracy
from trimtab.bench.report import table
from trimtab.recipes.gold import arithmetic


def divergence(n: int) -> float:
    """KL(best of n || base) in nats."""
    return math.log(n) - (n - 1) / n


async def run(
    client: AsyncOpenAI, model: str, *, prompts: int, size: int
) -> tuple[list[Pool], list[Pool], list[dict[str, Any]]]:
    """Pools on mixed prompts and on word problems, and the figures of speculative rejection."""
    gate = asyncio.Semaphore(4)
    mixed, sums = [await pools(client, model, chosen, size, gate) for chosen in held_out(prompts)]
    return (
        mixed,
        sums,
        [
            await run_speculative_rejection(client, model, mixed, n, alpha, gate)
            for n in (16, 64)
            if n <= size
            for alpha in (0.5, 0.75)
        ],
    )


DECISIONS = (8, 16, 32)
"""Lengths at which speculative rejection compares; the base's answers have about 50 tokens."""


async def run_speculative_rejection(
    client: AsyncOpenAI, model: str, pools: Sequence[Pool], n: int, alpha: float, gate: asyncio.Semaphore
) -> dict[str, Any]:
    leaf = f"rm-a.{OBJECTIVE}"
    params = {"n": n, "alpha": alpha, "decisions": DECISIONS}
    body = {"alignment": {"strategy": "speculative_rejection", "reward": leaf, "params": params}}

    async def one(seed: int, pool: Pool) -> tuple[float, float]:
        messages: Any = list(pool.prompt.messages)
        async with gate:
            answer = await client.chat.completions.create(
                model=model, messages=messages, temperature=1.0, max_tokens=200, seed=7000 + seed, extra_body=body
            )
        report: Any = (answer.model_extra or {})["alignment"]
        return report["choices"][0]["value"], report["sampled_tokens"]

    results = await asyncio.gather(*(one(i, pool) for i, pool in enumerate(pools)))
    value, tokens = (statistics.fmean(column) for column in zip(*results, strict=True))
    plain = statistics.fmean(pool.tokens for pool in pools)
    as_good = equivalent_n([pool.raw[leaf] for pool in pools], value)
    return {
        "n": n,
        "alpha": alpha,
        "reward": value,
        "half_ci95": half([v for v, _ in results]),
        "tokens": tokens,
        "best_of": as_good,
        "best_of_tokens": None if as_good is None else as_good * plain,
        "same_n_tokens": n * plain,
    }


def equivalent_n(values: Sequence[Vector], reward: float) -> float | None:
    """The N, linearly interpolated, whose best has this mean reward; None beyond the pools."""
    before = -math.inf
    for n in range(1, len(values[0]) + 1):
        here = statistics.fmean(best_of(v, v, n) for v in values)
        if here >= reward:
            return float(n) if n == 1 else n - (here - reward) / (here - before)
        before = here
    return None


def curve(pools: Sequence[Pool], proxy: str, sizes: Sequence[int], gold: Sequence[str]) -> dict[int, dict[str, Any]]:
    """N -> means of proxy and gold over best-of-N, in spreads, per prompt."""
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


def share_solved(pools: Sequence[Pool], proxy: str, sizes: Sequence[int]) -> dict[int, dict[str, list[float]]]:
    """N -> way to choose -> share solved, per prompt."""
    rng = random.Random(0)
    out: dict[int, dict[str, list[float]]] = {n: {} for n in sizes}
    for n in sizes:
        ways: dict[str, list[float]] = {"majority": [], "weighted vote": [], "best of N": [], "any of N (oracle)": []}
        for p in pools:
            right = np.array([arithmetic(p.prompt.text, t) for t in p.texts])
            ways["majority"].append(vote_accuracy(p, np.ones(len(p.texts)), n, rng))
            ways["weighted vote"].append(vote_accuracy(p, np.exp(p.proxies[proxy]), n, rng))
            ways["best of N"].append(best_of(p.proxies[proxy], right, n))
            ways["any of N (oracle)"].append(best_of(right, right, n))
        out[n] = ways
    return out


def show(
    mixed: Sequence[Pool], sums: Sequence[Pool], speculation: Sequence[Mapping[str, Any]], size: int
) -> dict[str, Any]:
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
    right = share_solved(sums, "one RM", sizes)
    print("\nword problems: share solved")
    print(table(["N", *right[1]], [[n, *(plus_minus(v) for v in ways.values())] for n, ways in right.items()]))
    figures["solved"] = {
        str(n): {name: {"mean": statistics.fmean(v), "half_ci95": half(v)} for name, v in ways.items()}
        for n, ways in right.items()
    }
    print("\nspeculative rejection: tokens per answer returned, and those of best of N for the same reward")
    print(
        table(
            ["N", "alpha", "reward", "tokens", "best of", "its tokens", "share", "share of best of the same N"],
            [
                [
                    f["n"],
                    f["alpha"],
                    f"{f['reward']:.2f} ± {f['half_ci95']:.2f}",
                    f["tokens"],
                    f["best_of"] or f"> {size}",
                    f["best_of_tokens"] or "",
                    f["tokens"] / f["best_of_tokens"] if f["best_of_tokens"] else "",
                    f["tokens"] / f["same_n_tokens"],
                ]
                for f in speculation
            ],
        )
    )
    figures["speculative_rejection"] = list(speculation)
    return figures


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """Proxy and gold against KL, and the share of word problems solved against N, as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    titles = [t for t in figures if t not in ("solved", "speculative_rejection")]
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
