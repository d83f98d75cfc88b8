"""`directions`: how well answers follow a preference direction, and the gain from its neighbours (RPS).

Control: one answer to each of the same held-out prompts at every angle, by a preference prompt or by guides; mean gold
of both objectives, and Spearman's rank correlation of the angles' means with the angle. RPS: against as many answers at
the target alone, for each target, over prompts and over guides; the share of prompts where its answer has the higher
v . gold, in spreads of the base's own answers, with ties as a half. ± is half a 95 % interval over prompts.
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

from trimtab.bench.intervals import half, plus_minus
from trimtab.bench.quality.points import Bench
from trimtab.bench.report import table
from trimtab.recipes.gold import GOLD, fluency

K = 5
TARGETS = tuple(range(10, 50, 5))


@dataclass(frozen=True)
class Axis:
    """The gold of a slot of a preference prompt."""

    name: str
    objective: str
    turned: bool = False
    """Whether the slot means the opposite of the objective."""

    def points(self, question: str, answer: str) -> float:
        gold = GOLD[self.objective](question, answer)
        return 10 - gold if self.turned else gold


HELPFUL, BRIEF = Axis("helpfulness", "helpfulness"), Axis("brevity", "brevity")
WORDY = Axis("verbosity", "brevity", turned=True)
WARM, CAREFUL = Axis("warmth", "warmth"), Axis("caution", "caution")


@dataclass(frozen=True)
class Sweep:
    """A way to steer towards a direction, and the range of its angles."""

    name: str
    strategy: str
    params: Mapping[str, Any]
    axes: tuple[Axis, Axis]
    low: float
    high: float


def by_guides(first: Axis, second: Axis) -> Sweep:
    """A direction as exponents of guides: RPS at the target alone."""
    alone = {"over": "guides", "k": 1, "theta_max": 0.0, "alpha": ALPHA}
    return Sweep(f"guides, {first.name} to {second.name}", "rps", alone, (first, second), 0, 90)


ALPHA = 2.0
SWEEPS = (
    Sweep("DPA's prompt, member", "directional", {"prompt": "dpa"}, (HELPFUL, WORDY), -45, 45),
    Sweep("DPA's prompt, base", "directional", {"prompt": "dpa-base"}, (HELPFUL, WORDY), -45, 45),
    Sweep("warmth to caution, member", "directional", {"prompt": "kindness"}, (WARM, CAREFUL), 0, 90),
    by_guides(HELPFUL, BRIEF),
    by_guides(WARM, CAREFUL),
)

NEIGHBOURHOODS: dict[str, tuple[tuple[Axis, Axis], dict[str, Any]]] = {
    "over prompts, sample": ((HELPFUL, WORDY), {"prompt": "dpa"}),
    "over prompts, grid_reference": ((HELPFUL, WORDY), {"prompt": "dpa", "mode": "grid_reference"}),
    "over guides, sample": ((HELPFUL, BRIEF), {"over": "guides", "alpha": ALPHA}),
}
"""name -> the axes of v, and params"""


@dataclass(frozen=True)
class DirectionsStudy:
    control: Mapping[str, Mapping[float, Mapping[str, Sequence[float]]]]
    """sweep -> angle -> measure -> per prompt"""
    gains: Mapping[str, Mapping[int, Sequence[tuple[float, float]]]]
    """neighbourhood -> target -> per prompt, v . gold of its answer and of the baseline's"""


class Directions(Bench):
    async def texts(self, alignment: Mapping[str, Any], places: Sequence[int] | None = None) -> list[str]:
        """One answer to each prompt, or to those at `places`."""

        async def one(place: int) -> str:
            answer = await self.ask(place, alignment, seed=place)
            return answer.choices[0].message.content or ""

        chosen = range(len(self.prompts)) if places is None else places
        return list(await asyncio.gather(*(one(place) for place in chosen)))

    def measure(self, axes: Sequence[Axis], texts: Sequence[str]) -> dict[str, list[float]]:
        pairs = list(zip((p.text for p in self.prompts), texts, strict=True))
        points = {axis.name: [axis.points(question, text) for question, text in pairs] for axis in axes}
        return points | {"words": [float(len(text.split())) for text in texts], "fluency": list(map(fluency, texts))}


def weights_at(axes: tuple[Axis, Axis], angle: float) -> dict[str, float]:
    """Weights per objective for an angle between two axes."""
    shares = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return {a.objective: -share if a.turned else share for a, share in zip(axes, shares, strict=True)}


async def run(bench: Directions, *, quick: bool) -> DirectionsStudy:
    control: dict[str, dict[float, dict[str, list[float]]]] = {}
    for sweep in SWEEPS:
        control[sweep.name] = {}
        for i in range(0, 13, 3 if quick else 1):
            angle = sweep.low + (sweep.high - sweep.low) * i / 12
            weights = weights_at(sweep.axes, angle)
            alignment = {"strategy": sweep.strategy, "weights": weights, "params": sweep.params}
            control[sweep.name][angle] = bench.measure(sweep.axes, await bench.texts(alignment))
        print(sweep.name, flush=True)
    base_points = bench.measure((HELPFUL, BRIEF, WORDY), await bench.texts({"strategy": "plain"}))
    spread = {axis.name: statistics.stdev(base_points[axis.name]) for axis in (HELPFUL, BRIEF, WORDY)}
    gains: dict[str, dict[int, list[tuple[float, float]]]] = {}
    baselines: dict[tuple[str, int], list[float]] = {}
    for name, (axes, params) in NEIGHBOURHOODS.items():
        gains[name] = {}
        for target in TARGETS[2::5] if quick else TARGETS:
            v = math.cos(math.radians(target)), math.sin(math.radians(target))
            weights = weights_at(axes, target)

            async def weigh_points(
                params: Mapping[str, Any],
                weights: Mapping[str, float] = weights,
                axes: tuple[Axis, Axis] = axes,
                v: tuple[float, float] = v,
            ) -> list[float]:
                texts = await bench.texts({"strategy": "rps", "weights": weights, "params": {"k": K, **params}})
                points = bench.measure(axes, texts)
                columns = [np.array(points[axis.name]) / spread[axis.name] for axis in axes]
                return list(map(float, v[0] * columns[0] + v[1] * columns[1]))

            around = await weigh_points(params)
            # A neighbourhood of the target alone: as many answers, all at the target.
            narrow = {**params, "mode": "sample", "theta_max": 0.0}
            key = str(narrow), target
            alone = baselines[key] = baselines.get(key) or await weigh_points(narrow)
            gains[name][target] = list(zip(around, alone, strict=True))
            print(name, target, flush=True)
    return DirectionsStudy(control, gains)


def win_rate(pairs: Sequence[tuple[float, float]]) -> list[float]:
    return [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]


def rank_correlation(angles: Sequence[float], means: Sequence[float]) -> float:
    """Spearman's rank correlation of means with angles."""
    ranks = np.argsort(np.argsort(means))
    return float(np.corrcoef(np.argsort(np.argsort(angles)), ranks)[0, 1])


def show(study: DirectionsStudy) -> dict[str, Any]:
    """Prints the tables and returns the figures."""
    figures: dict[str, Any] = {"control": {}, "rps": {}}
    for name, angles in study.control.items():
        first, second = list(next(iter(angles.values())))[:2]
        print(f"\n{name}")
        shown = (first, second, "words")
        rows = [
            [f"{angle:g}", *(plus_minus(m[key]) for key in shown), statistics.fmean(m["fluency"])]
            for angle, m in angles.items()
        ]
        print(table(["angle", first, second, "words", "fluency"], rows))
        means = {axis: [statistics.fmean(m[axis]) for m in angles.values()] for axis in (first, second)}
        ranks = {axis: rank_correlation(list(angles), values) for axis, values in means.items()}
        spans = {axis: max(values) - min(values) for axis, values in means.items()}
        for axis, rank in ranks.items():
            print(f"{axis}: rank correlation {rank:+.2f}, span {spans[axis]:.2f} points")
        figures["control"][name] = {
            "rank_correlation": ranks,
            "span": spans,
            "angles": {
                f"{angle:g}": {k: {"mean": statistics.fmean(v), "half_ci95": half(v)} for k, v in m.items()}
                for angle, m in angles.items()
            },
        }
    targets = list(next(iter(study.gains.values())))
    rows = []
    for name, by_target in study.gains.items():
        wins = {t: win_rate(pairs) for t, pairs in by_target.items()}
        rise = {t: [a - b for a, b in pairs] for t, pairs in by_target.items()}
        rows.append([name, "win rate", *(plus_minus(wins[t]) for t in targets)])
        rows.append([name, "v . gold", *(plus_minus(rise[t]) for t in targets)])
        figures["rps"][name] = {
            t: {"win_rate": statistics.fmean(wins[t]), "win_half_ci95": half(wins[t]),
                "rise": statistics.fmean(rise[t]), "rise_half_ci95": half(rise[t])}
            for t in targets
        }  # fmt: skip
    print(f"\nRPS with k = {K} against {K} answers at the target: share of prompts it wins, and how much it gains")
    print(table(["neighbourhood", "", *(f"{t} degrees" for t in targets)], rows))
    return figures


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """Gold against the angle, and the win rate against the target, as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(figures["control"]) + 1, figsize=(30, 4.5), layout="constrained")
    for axis, (name, sweep) in zip(axes, figures["control"].items(), strict=False):
        angles = [float(a) for a in sweep["angles"]]
        for measure in sweep["rank_correlation"]:
            points = [m[measure] for m in sweep["angles"].values()]
            means, errors = [p["mean"] for p in points], [p["half_ci95"] for p in points]
            axis.errorbar(angles, means, errors, marker="o", capsize=3, label=measure)
        axis.set(title=name, xlabel="angle, degrees", ylabel="gold, points")
        axis.legend()
    for name, by_target in figures["rps"].items():
        errors = [t["win_half_ci95"] for t in by_target.values()]
        axes[-1].errorbar(list(by_target), [t["win_rate"] for t in by_target.values()], errors, marker="o", capsize=3,
                          label=name)  # fmt: skip
    axes[-1].axhline(0.5, color="grey", linestyle="--")
    axes[-1].set(title=f"RPS (k = {K}) against {K} answers at the target", xlabel="target, degrees", ylabel="win rate")
    axes[-1].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
