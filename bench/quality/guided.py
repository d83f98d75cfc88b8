"""`guided`: gold against a guide's exponent, and the frontier of two conflicting guides.

For each objective with a guide: mean gold against the exponent alpha, and its cost, the mean over answers of
sum_t KL(guided || base) in nats, exact per token. Then the frontier of two conflicting objectives: weights (w, 1 - w)
times a strength, against the straight line between the extremes, which a coin toss between them reaches. ± is half a
95 % interval.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.bench.intervals import half, plus_minus
from trimtab.bench.quality.points import Bench, Point
from trimtab.bench.report import table
from trimtab.recipes.gold import GOLD

ALPHAS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
MIXES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
CONFLICT = ("warmth", "brevity")
"""Two objectives that conflict."""


@dataclass(frozen=True)
class GuidedStudy:
    base: Point
    rises: Mapping[str, Mapping[float, Point]]
    """objective -> alpha -> its guide at alpha"""
    frontier: Mapping[float, Point]
    """w -> weights (w, 1 - w) on CONFLICT"""


async def run(bench: Bench, catalogue: Mapping[str, Any], *, quick: bool, strength: float) -> GuidedStudy:
    guides = {name: o["guide"] for name, o in catalogue["objectives"].items() if o["guide"] and name in GOLD}
    alphas = [alpha for alpha in (ALPHAS[1::2] if quick else ALPHAS) if alpha]
    base = await bench.point({})
    rises = {
        objective: {0.0: base} | {alpha: await bench.point({"guides": {guide: alpha}}) for alpha in alphas}
        for objective, guide in guides.items()
    }
    first, second = CONFLICT
    frontier = {
        w: await bench.point({"weights": {first: strength * w, second: strength * (1 - w)}})
        for w in (MIXES[::2] if quick else MIXES)
    }
    return GuidedStudy(base, rises, frontier)


def above_the_line(frontier: Mapping[float, Point], resamples: int = 2000) -> dict[float, tuple[float, float]]:
    """w -> (distance, half a 95 % interval) of each interior point above the line, in gold points of the second.

    Vertical, at the point's own first coordinate; the interval is a bootstrap over prompts, which all points share.
    """
    draws = np.random.default_rng(0).integers(0, len(frontier[1.0].kl), (resamples, len(frontier[1.0].kl)))
    means = {w: np.array([np.asarray(p.scores[name])[draws].mean(1) for name in CONFLICT]) for w, p in frontier.items()}
    exact = {w: np.array([p.mean(name) for name in CONFLICT]) for w, p in frontier.items()}

    def gap(at: Mapping[float, Any], w: float) -> Any:
        (x, y), (x0, y0), (x1, y1) = at[w], at[0.0], at[1.0]
        return y - y0 - (x - x0) / (x1 - x0) * (y1 - y0)

    interior = sorted(frontier)[1:-1]
    return {w: (float(gap(exact, w)), float(1.96 * gap(means, w).std())) for w in interior}


def show(study: GuidedStudy) -> dict[str, Any]:
    """Prints the tables and returns the figures."""
    best = []
    for objective, points in study.rises.items():
        spread = statistics.stdev(study.base.scores[objective])
        rise = {alpha: (p.mean(objective) - study.base.mean(objective)) / spread for alpha, p in points.items()}
        print(f"\n{objective}: gold against alpha; the base's own spread is {spread:.2f}")
        rows = []
        for alpha, p in sorted(points.items()):
            words = f"{p.mean('words'):.1f}"
            rows.append(
                [alpha, plus_minus(p.scores[objective]), rise[alpha], plus_minus(p.kl), p.mean("fluency"), words]
            )
        print(table(["alpha", "gold", "rise in spreads", "KL, nats/answer", "fluency", "words"], rows))
        top = max(rise, key=lambda alpha: rise[alpha])
        best.append((objective, top, rise[top], statistics.fmean(points[top].kl), points[top].mean("fluency")))
    print("\nbest alpha per objective")
    print(table(["objective", "alpha", "rise in spreads", "KL, nats/answer", "fluency"], best))

    first, second = CONFLICT
    line = above_the_line(study.frontier)
    rows = []
    for w, p in sorted(study.frontier.items()):
        over = "{:+.2f} ± {:.2f}".format(*line[w]) if w in line else "an extreme"
        rows.append([w, plus_minus(p.scores[first]), plus_minus(p.scores[second]), over, plus_minus(p.kl)])
    print(f"\nfrontier: weights {first} = w, {second} = 1 - w, times the strength")
    print(table(["w", first, second, f"{second} above the line", "KL, nats/answer"], rows))
    return {
        "base": study.base.figures(),
        "rises": {o: {str(a): p.figures() for a, p in points.items()} for o, points in study.rises.items()},
        "best": [dict(zip(("objective", "alpha", "spreads", "kl", "fluency"), row, strict=True)) for row in best],
        "frontier": {str(w): p.figures() | {"above_line": line.get(w)} for w, p in study.frontier.items()},
    }


def draw(study: GuidedStudy, path: Path) -> None:
    """Gold against alpha, gold against KL, and the frontier, as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (by_alpha, by_kl, front) = plt.subplots(1, 3, figsize=(16, 5), layout="constrained")
    for objective, points in study.rises.items():
        alphas = sorted(points)
        gold = [points[a].mean(objective) for a in alphas]
        error = [half(points[a].scores[objective]) for a in alphas]
        by_alpha.errorbar(alphas, gold, error, marker="o", capsize=3, label=objective)
        by_kl.errorbar([statistics.fmean(points[a].kl) for a in alphas], gold, error, marker="o", capsize=3)
    first, second = CONFLICT
    points_in_order = [study.frontier[w] for w in sorted(study.frontier)]
    xs, ys = ([p.mean(name) for p in points_in_order] for name in CONFLICT)
    x_error, y_error = ([half(p.scores[name]) for p in points_in_order] for name in CONFLICT)
    front.errorbar(xs, ys, y_error, x_error, marker="o", capsize=3, label="mixed guides")
    front.plot([xs[0], xs[-1]], [ys[0], ys[-1]], "--", color="grey", label="between the extremes")
    for w, x, y in zip(sorted(study.frontier), xs, ys, strict=True):
        front.annotate(f"{w:g}", (x, y), textcoords="offset points", xytext=(6, 6))
    by_alpha.set(title="gold score against exponent", xlabel="alpha", ylabel="gold score of the guide's own objective")
    by_kl.set(title="gold score against divergence", xlabel="KL(guided ‖ base), nats per answer", ylabel="gold score")
    front.set(title=f"frontier: {first} = w, {second} = 1 − w", xlabel=f"gold {first}", ylabel=f"gold {second}")
    by_alpha.legend()
    front.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
