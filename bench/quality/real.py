"""`real`: what strategies make of a real model's answers, by the reward that they go by and by one they never see.

`trimtab eval` has every setting answer the same held-out prompts, and `preferred` and `judge` score the answers: reward
models of the two halves of one set of human preferences. Guides are trained on preferences too and see no score at all.
Beside them stands what sharpening alone gives: a guide that began as the base is near it, so that the base times its
power w is near the base at temperature 1 / (1 + w).

A *rise* is a setting's mean score above the base's, in standard deviations of the base's own answers; only so do two
rewards compare. Where a strategy overdoes its reward, `preferred` still rises from a strength to the next and `judge`
falls. Intervals are 95 %, paired, Student's over prompts.

Seconds are those of single requests: the first prompts are answered one request at a time, the others several at once.
Every stage writes its figures, and a run that was broken off goes on where it ended.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from trimtab.bench.eval.figures import compare, show_half, show_kl, show_pairs
from trimtab.bench.eval.figures import show as show_number
from trimtab.bench.quality.arms import BASE, Arm, answer_in_stages
from trimtab.bench.report import table, write

PREFERRED, JUDGE = "preferred", "judge"
GUIDES = ("helpful", "harmless", "brief")
PREFERENCES = Path("out/real/preferences")
DATA = tuple(PREFERENCES / f"{axis}-test.jsonl" for axis in ("helpful", "harmless"))
SINGLE = 8
"""Prompts that are answered one request at a time."""


def list_arms(*, quick: bool) -> list[Arm]:
    """The base first. The strength of a guide is its exponent, or lambda of one that is served as a difference; of best
    of n and of votes it is n; of a temperature T it is 1 / T - 1, the base's exponent beyond 1. Searches go by
    objectives, so that their temperatures are in spreads of the reward."""
    exponents, sizes, temperatures = ((1.0,), (4,), (0.5,)) if quick else ((0.5, 1.0, 2.0), (4, 16, 64), (0.7, 0.5))
    differences = (1.0,) if quick else (1.0, 2.0, 4.0)  # DPO's guide over the base, which it is nearer to
    steps, votes = (4, 4) if quick else (16, 16)
    wish = {"weights": {"preference": 1.0}}
    return [
        Arm(name=BASE, family=BASE, strength=0.0, alignment={"strategy": "plain"}),
        *(
            Arm(
                name=f"temperature_{t:g}",
                family="temperature",
                strength=1 / t - 1,
                alignment={"guides": {"base": 1 / t}, "return": ["trace"]},
            )
            for t in temperatures
        ),
        *(
            Arm(
                name=f"helpful_{w:g}",
                family="helpful",
                strength=w,
                alignment={"strategy": "dera", "params": {"aligned": "helpful", "lambda": w}, "return": ["trace"]},
            )
            for w in differences
        ),
        *(
            Arm(name=f"{g}_{w:g}", family=g, strength=w, alignment={"guides": {g: w}, "return": ["trace"]})
            for g in ("harmless", "brief")
            for w in exponents
        ),
        *(
            Arm(
                name=f"best_of_{n}",
                family="best of n",
                strength=n,
                alignment={"strategy": "best_of_n", **wish, "params": {"n": n}},
            )
            for n in sizes
        ),
        Arm(
            name="qalign",
            family="qalign",
            strength=steps,
            alignment={"strategy": "qalign", **wish, "params": {"chains": 4, "steps": steps, "beta": 0.5}},
        ),
        Arm(
            name="args",
            family="args",
            strength=2.0,
            alignment={
                "strategy": "args",
                "weights": {"promise": 1.0},
                "params": {"k": 5, "weight": 2.0, "min_p": 0.05},
            },
        ),
        Arm(
            name=f"mbr_{votes}",
            family="votes",
            strength=votes,
            alignment={"strategy": "mbr", "params": {"n": votes}},
        ),
    ]


async def study(url: str, prompts: int, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of the last stage; those of each are in `args.out`. Exits with a message for what cannot go on."""
    arms = list_arms(quick=args.quick)
    figures: dict[str, Any] = {}
    async with aclosing(
        answer_in_stages(url, arms, prompts, args, rewards=(PREFERRED, JUDGE), single=SINGLE, max_tokens=128)
    ) as stages:
        async for summary, sources, left in stages:
            figures = work_out(summary, arms, sources)
            show(figures, expect_seconds(figures, left))
            draw(figures, args.png)
            write(args.out / "study.json", figures)
    return figures


def work_out(summary: Mapping[str, Any], arms: Sequence[Arm], sources: Sequence[str]) -> dict[str, Any]:
    """From the figures of `trimtab eval`; `sources` has the file of each prompt. None without data."""
    scores = {reward: read_scores(summary, reward) for reward in (PREFERRED, JUDGE)}
    spreads = {reward: spread(of[BASE]) for reward, of in scores.items()}
    rows = {}
    for arm in arms:
        setting = summary["settings"][arm.name]
        rows[arm.name] = {
            "family": arm.family,
            "strength": arm.strength,
            **{name: setting[name] for name in ("words", "visible_tokens", "sampled_tokens", "scored_tokens", "kl")},
            "seconds": mean_seconds(summary, arm.name),
            "scores": {reward: summary["rewards"][reward][arm.name] for reward in scores},
            "rise": {reward: rise(of[arm.name], of[BASE], spreads[reward]) for reward, of in scores.items()},
            "by_source": {
                source: {
                    reward: compare(select(of[arm.name], sources, source), select(of[BASE], sources, source))
                    for reward, of in scores.items()
                }
                for source in dict.fromkeys(sources)
            },
        }
    for family in dict.fromkeys(arm.family for arm in arms):
        climb = sorted((arm for arm in arms if arm.family == family), key=lambda arm: arm.strength)
        for weaker, stronger in itertools.pairwise(climb):
            rows[stronger.name]["step"] = {
                reward: rise(of[stronger.name], of[weaker.name], spreads[reward]) for reward, of in scores.items()
            }
    return {"prompts": len(sources), "spreads": spreads, "settings": rows, "failures": summary["failures"]}


Scores = dict[tuple[int, int], float]
"""(prompt, sample) -> score"""


def read_scores(summary: Mapping[str, Any], reward: str) -> dict[str, Scores]:
    """By setting."""
    scores: dict[str, Scores] = {name: {} for name in summary["settings"]}
    for answer in summary["answers"]:
        if reward in answer["rewards"]:
            scores[answer["setting"]][answer["prompt"], answer["sample"]] = answer["rewards"][reward]
    return scores


def select(scores: Scores, sources: Sequence[str], source: str) -> Scores:
    return {at: score for at, score in scores.items() if sources[at[0]] == source}


def spread(scores: Scores) -> float | None:
    """Standard deviation; None of fewer than two, or of equal ones."""
    return (statistics.stdev(scores.values()) or None) if len(scores) > 1 else None


def rise(scores: Scores, first: Scores, unit: float | None) -> dict[str, float | None]:
    """The paired difference in units of `unit`, with half its interval."""
    versus = compare(scores, first)
    parts = {"mean": versus["difference"], "half_ci95": versus["half_ci95"]}
    return {name: None if value is None or unit is None else value / unit for name, value in parts.items()}


def mean_seconds(summary: Mapping[str, Any], setting: str) -> float | None:
    """Of the prompts that were answered one request at a time."""
    single = [a["latency"] for a in summary["answers"] if a["setting"] == setting and a["prompt"] < SINGLE]
    return statistics.fmean(single) if single else None


def expect_seconds(figures: Mapping[str, Any], prompts: int) -> float:
    """For so many more prompts, one request at a time; several at once take less."""
    return prompts * sum(row["seconds"] or 0.0 for row in figures["settings"].values())


def show(figures: Mapping[str, Any], seconds_left: float = 0.0) -> None:
    """Prints the tables."""
    settings = figures["settings"]
    prompts = figures["prompts"]
    print(f"\n{prompts} prompts; seconds of the first {min(SINGLE, prompts)}, a request at a time")
    headers = ["setting", PREFERRED, f"above {BASE}", "wins", JUDGE, f"above {BASE}", "wins"]
    headers += ["KL, nats", "words", "tokens", "drawn", "scored", "s"]
    rows = []
    for name, row in settings.items():
        cells: list[str] = []
        for reward in (PREFERRED, JUDGE):
            score = row["scores"][reward]
            above, wins, *_ = show_pairs(score.get("versus_first"))
            cells += [show_half(score["mean"], score["half_ci95"]), above, wins]
        tokens = (show_number(row[f"{kind}_tokens"], 1) for kind in ("visible", "sampled", "scored"))
        cells += [show_kl(row["kl"]), show_number(row["words"], 1), *tokens, show_number(row["seconds"], 2)]
        rows.append([name, *cells])
    print(table(headers, rows))

    print("\nrise over the base, in spreads of its answers, and from the next weaker strength")
    headers = ["family", "strength", PREFERRED, JUDGE, f"{PREFERRED}, step", f"{JUDGE}, step"]
    rows = []
    for row in settings.values():
        if row["family"] != BASE:
            rises = [show_rise(row["rise"][reward]) for reward in (PREFERRED, JUDGE)]
            steps = [show_rise(row["step"][reward]) if "step" in row else "" for reward in (PREFERRED, JUDGE)]
            rows.append([row["family"], f"{row['strength']:.3g}", *rises, *steps])
    print(table(headers, rows))

    print("\ndifference from the base by where the prompts come from")
    sources = list(settings[BASE]["by_source"])
    headers = ["setting", *(f"{source}: {reward}" for source in sources for reward in (PREFERRED, JUDGE))]
    rows = [
        [
            name,
            *(
                show_half(of[reward]["difference"], of[reward]["half_ci95"], "+")
                for of in row["by_source"].values()
                for reward in (PREFERRED, JUDGE)
            ),
        ]
        for name, row in settings.items()
        if name != BASE
    ]
    print(table(headers, rows))
    if seconds_left:
        print(f"\nat most {seconds_left / 60:.0f} minutes for the other prompts, a request at a time", flush=True)


def show_rise(of: Mapping[str, float | None]) -> str:
    return show_half(of["mean"], of["half_ci95"], "+")


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """Both rewards' rise, and words, against the strength of guides and temperatures; then against n; as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (by_exponent, by_n, lengths) = plt.subplots(1, 3, figsize=(17, 5), layout="constrained")
    families: dict[str, list[Mapping[str, Any]]] = {}
    for row in figures["settings"].values():
        families.setdefault(row["family"], []).append(row)
    base = families.pop(BASE)[0]
    for family, members in families.items():
        rows = sorted(members, key=lambda row: row["strength"])
        strengths = [row["strength"] for row in rows]
        has_exponents = family in ("temperature", *GUIDES)
        axis = by_exponent if has_exponents else by_n
        color = None
        for reward, style, fill in ((PREFERRED, "o-", None), (JUDGE, "o--", "none")):
            known = [(row["strength"], row["rise"][reward]) for row in rows if row["rise"][reward]["mean"] is not None]
            lines = axis.errorbar(
                [strength for strength, _ in known],
                [of["mean"] for _, of in known],
                [of["half_ci95"] or 0.0 for _, of in known],
                fmt=style,
                markerfacecolor=fill,
                capsize=3,
                color=color,
                label=family if reward == PREFERRED else None,
            )
            color = lines[0].get_color()
        if has_exponents:
            words = [base["words"], *(row["words"] for row in rows)]
            lengths.plot([0.0, *strengths], words, marker="o", color=color, label=family)
    by_exponent.set(title=f"guides; filled {PREFERRED}, hollow {JUDGE}", xlabel="exponent; of a temperature, 1 / T - 1")
    by_n.set(title=f"searches; filled {PREFERRED}, hollow {JUDGE}", xlabel="n, steps or weight")
    by_n.set_xscale("log", base=2)
    lengths.set(title="length", xlabel="exponent", ylabel="words")
    for axis in (by_exponent, by_n):
        axis.set_ylabel("rise over the base, in its spreads")
        axis.axhline(0, color="grey", linewidth=0.8)
    for axis in (by_exponent, by_n, lengths):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
