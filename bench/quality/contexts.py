"""`contexts`: how far a prompt as a guide moves a real model's answers, against writing it in the system prompt.

    z = l(x) + w (l(x, c+) - l(x, c-))

Three attributes, each measured by a rule that no setting goes by: warmth by VADER's compound score (Hutto and Gilbert,
2014), brevity by words, simplicity by the Automated Readability Index. Families: *contrast* has a c- that says the
opposite; *alone* has none, so that w = 1 is the system prompt c+ itself, and w beyond 1 classifier-free guidance
(arXiv 2306.17806); *trained* is a LoRA guide that was trained on preferences, where there is one.

What moves an attribute further at the price of a larger divergence may only be turned up further. So a family is
compared with the system prompt at equal divergence: its curve, from the base over its exponents, is read at the system
prompt's KL. Intervals there are 95 %, by the bootstrap over prompts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.bench.eval.figures import compare, estimate, show_half
from trimtab.bench.eval.figures import show as show_number
from trimtab.bench.quality.arms import BASE, Arm, answer_in_stages
from trimtab.bench.report import table, write
from trimtab.rewards.rules import grade

Vector = NDArray[np.float64]
RESAMPLES = 4000
MAX_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class Attribute:
    name: str
    unit: str
    families: Mapping[str, str]
    """family -> the guide in real/contexts.yaml"""


ATTRIBUTES = (
    Attribute(name="warmth", unit="VADER, -1 to 1", families={"contrast": "warm", "alone": "warm-alone"}),
    Attribute(
        name="brevity", unit="words fewer", families={"contrast": "brief", "alone": "brief-alone", "trained": "trained"}
    ),
    Attribute(name="simplicity", unit="school years less", families={"contrast": "simple", "alone": "simple-alone"}),
)
SYSTEM = "alone_1"
"""What of a family's name tells the system prompt itself."""


def measures() -> dict[str, Callable[[str], float]]:
    """attribute -> what a text has of it"""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyser = SentimentIntensityAnalyzer()
    return {
        "warmth": lambda text: float(analyser.polarity_scores(text)["compound"]),
        "brevity": lambda text: -float(len(text.split())),
        "simplicity": lambda text: -grade(text),
    }


def list_arms(*, quick: bool) -> list[Arm]:
    """The base first; the strength is w."""
    exponents = {"contrast": (0.5, 1.0, 2.0, 4.0), "alone": (1.0, 2.0, 4.0), "trained": (0.5, 1.0, 2.0)}
    arms = [Arm(name=BASE, family=BASE, strength=0.0, alignment={"strategy": "plain"})]
    for attribute in ATTRIBUTES[:1] if quick else ATTRIBUTES:
        for family, guide in attribute.families.items():
            for w in (1.0,) if quick else exponents[family]:
                alignment = {"guides": {guide: w}, "return": ["trace"]}
                name = f"{attribute.name}_{family}_{w:g}"
                arms.append(Arm(name=name, family=f"{attribute.name}_{family}", strength=w, alignment=alignment))
    return arms


async def study(url: str, prompts: int, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of the last stage; those of each are in `args.out`."""
    arms, figures = list_arms(quick=args.quick), dict[str, Any]()
    stages = answer_in_stages(url, arms, prompts, args, rewards=["concise"], max_tokens=MAX_TOKENS)
    async with aclosing(stages):
        async for summary, _, _ in stages:
            figures = work_out(summary, read_texts(args.out / "answers.jsonl"), arms)
            show(figures)
            draw(figures, args.png)
            write(args.out / "contexts.json", figures)
    return figures


def read_texts(path: Path) -> dict[tuple[str, int], str]:
    """(setting, prompt) -> the answer's text"""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(record["setting"], record["prompt"]): record["text"] for record in records if record.get("text")}


def work_out(summary: Mapping[str, Any], texts: Mapping[tuple[str, int], str], arms: Sequence[Arm]) -> dict[str, Any]:
    """Of prompts that every arm has answered with a text."""
    measured = measures()
    kl = {(a["setting"], a["prompt"]): a["kl"].get("kl_exact", 0.0) for a in summary["answers"]}
    prompts = sorted({prompt for _, prompt in texts if all((arm.name, prompt) in texts for arm in arms)})
    tables: dict[str, Any] = {}
    for attribute in ATTRIBUTES:
        those = [arm for arm in arms if arm.family.startswith(f"{attribute.name}_")]
        values = {
            arm.name: np.array([measured[attribute.name](texts[arm.name, prompt]) for prompt in prompts])
            for arm in (arms[0], *those)
        }
        costs = {name: np.array([kl[name, prompt] for prompt in prompts]) for name in values}
        if those and prompts:
            tables[attribute.name] = {
                "unit": attribute.unit,
                "settings": {
                    name: {
                        "value": of_each(value),
                        "above_base": compare(as_scores(value), as_scores(values[BASE])),
                        "kl": of_each(costs[name]),
                        "words": summary["settings"][name]["words"],
                        "seconds": summary["settings"][name]["latency"]["mean"],
                    }
                    for name, value in values.items()
                },
                "at_equal_kl": {
                    family: at_equal_kl(
                        [arm.name for arm in those if arm.family == f"{attribute.name}_{family}"],
                        f"{attribute.name}_{SYSTEM}",
                        values,
                        costs,
                    )
                    for family in attribute.families
                    if family != "alone"
                },
                "past_the_prompt": [
                    {"setting": arm.name, "above_prompt": compare(as_scores(values[arm.name]), as_scores(system))}
                    for system in [values.get(f"{attribute.name}_{SYSTEM}")]
                    for arm in those
                    if arm.family.endswith("_alone") and arm.strength > 1 and system is not None
                ],
            }
    return {"prompts": len(prompts), "attributes": tables}


def of_each(values: Vector) -> dict[str, Any]:
    return estimate([(at, float(value)) for at, value in enumerate(values)])


def as_scores(values: Vector) -> dict[tuple[int, int], float]:
    return {(at, 0): float(value) for at, value in enumerate(values)}


def at_equal_kl(
    family: Sequence[str], system: str, values: Mapping[str, Vector], costs: Mapping[str, Vector]
) -> dict[str, float | None]:
    """The family's curve, at the system prompt's mean KL, over the system prompt's mean; None where the curve, from the
    base to its largest exponent, does not reach so far."""
    names, rng = [BASE, *family], np.random.default_rng(0)
    value, cost = (np.stack([of[name] for name in [*names, system]]) for of in (values, costs))
    picks = rng.integers(value.shape[1], size=(RESAMPLES, value.shape[1]))

    def difference(pick: Any) -> float:
        heights, places = value[:, pick].mean(-1), cost[:, pick].mean(-1)
        order = np.argsort(places[:-1])
        return float(np.interp(places[-1], places[:-1][order], heights[:-1][order]) - heights[-1])

    reaches = bool(cost[:-1].mean(-1).max() >= cost[-1].mean())
    if not reaches or value.shape[1] < 2:
        return {"difference": None, "low": None, "high": None}
    low, high = np.quantile([difference(pick) for pick in picks], (0.025, 0.975))
    return {"difference": difference(slice(None)), "low": float(low), "high": float(high)}


def show(figures: Mapping[str, Any]) -> None:
    """Prints the tables."""
    for name, of in figures["attributes"].items():
        print(f"\n{name}, {of['unit']}: {figures['prompts']} prompts")
        rows = []
        for setting, row in of["settings"].items():
            value, above, kl = row["value"], row["above_base"], row["kl"]
            cells = [show_half(value["mean"], value["half_ci95"])]
            cells += [show_half(above["difference"], above["half_ci95"], "+"), show_half(kl["mean"], kl["half_ci95"])]
            rows.append([setting, *cells, show_number(row["words"], 1), show_number(row["seconds"], 2)])
        print(table(["setting", name, "above base", "KL, nats", "words", "s"], rows))
        for family, apart in of["at_equal_kl"].items():
            if apart["difference"] is None:
                print(f"{family}: nowhere as far from the base as the system prompt")
            else:
                interval = f"({apart['low']:+.3f} to {apart['high']:+.3f})"
                print(f"{family} less the system prompt, at its KL: {apart['difference']:+.3f} {interval}")
        for past in of["past_the_prompt"]:
            above = past["above_prompt"]
            print(f"{past['setting']} over w = 1: {show_half(above['difference'], above['half_ci95'], '+')}")


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """Each attribute against KL, a line for each family, as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    if not figures["attributes"]:
        return
    figure, axes = plt.subplots(1, len(figures["attributes"]), figsize=(17, 5), layout="constrained", squeeze=False)
    for axis, (name, of) in zip(axes[0], figures["attributes"].items(), strict=True):
        base = of["settings"][BASE]
        families: dict[str, list[Mapping[str, Any]]] = {}
        for setting, row in of["settings"].items():
            if setting != BASE:
                families.setdefault(setting.split("_")[1], []).append(row)
        for family, rows in families.items():
            points = [base, *rows]
            axis.errorbar(
                [row["kl"]["mean"] for row in points],
                [row["value"]["mean"] for row in points],
                [row["value"]["half_ci95"] or 0.0 for row in points],
                fmt="o-",
                capsize=3,
                label=family,
            )
        axis.set(title=name, xlabel="KL from the base, nats an answer", ylabel=of["unit"])
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
