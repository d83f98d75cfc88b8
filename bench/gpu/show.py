"""Outcomes of the cases as tables, and the problems among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.bench import report
from trimtab.bench.gpu import speed

DONE, FAILED, HUNG, LEFT = "done", "failed", "timed out", "not run"
"""States of a case."""

Outcomes = Mapping[str, Mapping[str, Any]]
"""name of a case -> its state, and its result so far"""


def results(outcomes: Outcomes, step: str) -> dict[str, Any]:
    """case -> its result"""
    return {
        name.partition(".")[2]: job["result"]
        for name, job in outcomes.items()
        if name.partition(".")[0] == step and "result" in job
    }


def figures(outcomes: Outcomes, *, quick: bool) -> dict[str, Any]:
    """For the JSON: all outcomes, and the speed rows that are computed from them."""
    rows = speed.rows(results(outcomes, "speed"), quick=quick)
    return {"quick": quick, "cases": outcomes, "speed": [vars(row) for row in rows]}


def problems(outcomes: Outcomes) -> list[str]:
    """Reasons for exit status 1."""
    why = [f"{name}: {job['state']}" for name, job in outcomes.items() if job["state"] != DONE]
    for case, result in results(outcomes, "parity").items():
        if case.startswith("float32") and result["engine"]["mismatches"]:
            why.append(f"parity.{case}: {result['engine']['mismatches']} mismatches")
    why += [f"demo: {result['failed']} failed" for result in results(outcomes, "demo").values() if result.get("failed")]
    return why


def tables(outcomes: Outcomes, *, quick: bool) -> str:
    timed = results(outcomes, "speed")
    parts = [
        report.hardware(),
        *parity_table(results(outcomes, "parity")),
        *device_line(timed.get(speed.DEVICE)),
        *speed_tables(speed.rows(timed, quick=quick), quick=quick),
        *(search_table(figures) for figures in results(outcomes, "search").values()),
        *("tests/engine: " + join_counts(counts) for counts in results(outcomes, "demo").values()),
        *(f"WRONG: {why}" for why in problems(outcomes)),
    ]
    return "\n\n".join(parts)


def join_counts(counts: Mapping[str, object]) -> str:
    return ", ".join(f"{kind}: {count}" for kind, count in counts.items())


def cell(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def parity_table(by_case: Mapping[str, Any]) -> list[str]:
    if not by_case:
        return []
    headers = ["parity", "runner", "graphs", "tokens", "mismatches", "ties", "worst |Δ|", "HF in bf16", "cached"]
    lines = []
    for case, result in by_case.items():
        ours, theirs = result["engine"], result["hugging_face"]
        runner = f"{'V2' if result['v2'] else 'V1'}, {'async' if result['async'] else 'sync'}"
        rounded = f"{theirs['mismatches']}, {theirs['worst']:.1e}" if theirs["tokens"] else ""
        counts = (ours["tokens"], ours["mismatches"], ours["ties"], f"{ours['worst']:.1e}")
        lines.append([case, runner, result["graphs"], *counts, rounded, result["cached"]])
    return [report.table(headers, lines)]


def device_line(limits: Mapping[str, float] | None) -> list[str]:
    if limits is None:
        return []
    read, moved = limits["sum_bytes_per_s"] / 1e9, limits["copy_bytes_per_s"] / 1e9
    return [
        f"memory: {read:.1f} GB/s by a sum, {moved:.1f} by a copy with both ways counted; "
        f"bf16 products: {limits['flops'] / 1e12:.2f} Tflop/s"
    ]


def speed_tables(rows: list[speed.SpeedRow], *, quick: bool) -> list[str]:
    """Of the decode steps, and of the kernels of slow ones."""
    if not rows:
        return []
    headers = ["engine", "batch", "requests", "ms a step", "tokens/s", "prefill/s"]
    headers += ["members in turn", "of base", "of floor", "of bound"]
    lines = []
    for r in rows:
        rates = cell(r.step and r.step * 1000, ".2f"), cell(r.tokens_per_s, ".0f"), cell(r.prefill_per_s, ".0f")
        ratios = cell(r.ratio, ".3f"), cell(r.of_base, ".3f"), cell(r.share, ".1%"), cell(r.share_of_bound, ".1%")
        lines.append([r.engine, r.batch, r.requests, *rates, *ratios])
    shapes = "tiny shapes in their places (--quick)" if quick else "Llama-3.1-8B and Llama-3.2-1B shapes"
    slow = [r for r in rows if r.share is not None and r.share < speed.ENOUGH]
    parts = [f"decode: {shapes}, random weights, bf16\n" + report.table(headers, lines)]
    parts += [f"{r.engine}, batch {r.batch}, {r.requests}: {r.left_out}" for r in rows if r.left_out]
    parts += [kernel_table(r, r.profile) for r in slow if r.profile]
    if any(not r.profile for r in slow):
        parts.append(f"{len(slow)} of {len(rows)} are under {speed.ENOUGH:.0%} of the floor's rate; see --profile")
    return parts


def kernel_table(row: speed.SpeedRow, profile: Mapping[str, Any]) -> str:
    """The five most expensive kernels; the JSON has more."""
    span, busy = profile["span_ms"], profile["busy_ms"]
    lines = [[k["name"][:80], f"{k['ms']:.2f}", k["calls"], f"{k['ms'] / busy:.1%}"] for k in profile["top"][:5]]
    title = f"{row.engine}, batch {row.batch}, {row.requests}: {span:.1f} ms of decode steps, {busy:.1f} in kernels"
    return title + "\n" + report.table(["kernel", "ms", "calls", "of kernels"], lines)


def search_table(figures: list[Mapping[str, Any]]) -> str:
    headers = ["search", "seconds", "tokens drawn", "tokens/s", "GPU busy"]
    lines = [
        [f["search"], f"{f['seconds']:.2f}", f["drawn"], f"{f['tokens_per_s']:.0f}", cell(f["busy"], ".0%")]
        for f in figures
    ]
    return report.table(headers, lines)
