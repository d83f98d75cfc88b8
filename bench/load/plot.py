"""Plots of runs: latency against the due time, and its distribution for each entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.bench.load.exchange import Outcome

COLOURS = {
    Outcome.OK: "tab:blue",
    Outcome.LIMITED: "tab:cyan",
    Outcome.DEGRADED: "tab:olive",
    Outcome.EXPECTED: "tab:gray",
    Outcome.REFUSED: "tab:orange",
    Outcome.ERROR: "tab:red",
    Outcome.UNEXPECTED: "tab:pink",
    Outcome.CONNECTION: "tab:brown",
    Outcome.INCOMPLETE: "black",
    Outcome.DISCONNECTED: "tab:purple",
}
STYLES = ("-", "--", ":", "-.")


def plot(path: Path, runs: list[tuple[str, dict[str, Any]]]) -> None:
    """A row for each (title, figures). Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(runs), 2, figsize=(13, 4.5 * len(runs)), squeeze=False, layout="constrained")
    for (title, figures), (over_time, distribution) in zip(runs, axes, strict=True):
        _over_time(over_time, figures)
        over_time.set_title(title)
        _distribution(distribution, figures)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _over_time(axes: Any, figures: dict[str, Any]) -> None:
    for outcome, colour in COLOURS.items():
        those = [r for r in figures["requests"] if r["outcome"] == outcome]
        ended = [r for r in those if r["latency"] is not None]
        axes.scatter(
            [r["intended"] for r in ended],
            [r["latency"] for r in ended],
            s=12,
            color=colour,
            label=f"{outcome}: {len(those)}" if those else None,
        )
        for r in those:
            if r["latency"] is None:  # a request without an end is a mark at its start
                axes.plot(r["intended"], 0.0, "x", color=colour)
    axes.set(xlabel="due, seconds from the start of counting", ylabel="latency from when due, s", ylim=(0, None))
    if figures["requests"]:
        axes.legend(fontsize="small")


def _distribution(axes: Any, figures: dict[str, Any]) -> None:
    answered = (Outcome.OK, Outcome.LIMITED, Outcome.DEGRADED)
    for i, name in enumerate(row["name"] for row in figures["entries"]):
        times = [
            r["latency"]
            for r in figures["requests"]
            if r["entry"] == name and r["outcome"] in answered and not r["slow"] and r["latency"] is not None
        ]
        if times:
            axes.ecdf(times, label=name, color=f"C{i % 10}", linestyle=STYLES[i // 10 % len(STYLES)])
    axes.set(xlabel="latency from when due, s", ylabel="share of the answers", ylim=(0, 1))
    axes.set_title("answers by latency")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.01, 0.5))
