"""Differences from the first setting with their intervals, and reward against the tokens that an answer takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plot(path: Path, summary: Mapping[str, Any]) -> None:
    """A row for each reward. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rewards, first = summary["rewards"], summary["first"]
    height = 1.5 + 0.5 * len(summary["settings"])
    figure, axes = pyplot.subplots(
        len(rewards), 2, figsize=(12, max(3.5, height) * len(rewards)), squeeze=False, layout="constrained"
    )
    for (reward, rows), (differences, costs) in zip(rewards.items(), axes, strict=True):
        compared = {name: row["versus_first"] for name, row in rows.items() if "versus_first" in row}
        known = {name: row for name, row in compared.items() if row["difference"] is not None}
        differences.errorbar(
            [row["difference"] for row in known.values()],
            range(len(known)),
            xerr=[row["half_ci95"] or 0.0 for row in known.values()],
            fmt="o",
            capsize=4,
        )
        differences.set_yticks(range(len(known)), list(known))
        differences.axvline(0, color="grey", linestyle="--")
        differences.set(xlabel=f"{reward}: difference from {first}", ylim=(max(1, len(known)) - 0.5, -0.5))
        for name, row in rows.items():
            setting = summary["settings"][name]
            parts = [setting[c] for c in ("sampled_tokens", "scored_tokens") if setting[c] is not None]
            tokens = sum(parts) if parts else setting["visible_tokens"]
            if row["mean"] is not None and tokens is not None:
                costs.errorbar(tokens, row["mean"], row["half_ci95"] or 0.0, marker="o", capsize=4, label=name)
        costs.set(xlabel="tokens drawn and scored for an answer", ylabel=reward)
        if costs.get_legend_handles_labels()[0]:
            costs.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
