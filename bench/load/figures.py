"""Figures of a run: a row for each entry of the mix and one for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from trimtab.bench.load.exchange import Exchange, Outcome
from trimtab.bench.load.run import LoadRun
from trimtab.bench.report import table

TOTAL = "total"
LATE = 0.010
"""Seconds of the generator's own lateness, at the 95th percentile, above which a warning is printed."""
FAILED = (Outcome.ERROR, Outcome.UNEXPECTED, Outcome.CONNECTION)
NO_GOAL = (Outcome.EXPECTED, Outcome.DISCONNECTED)
"""Outcomes that do not count for goodput."""
NONE = "–"
HEADERS = (
    *("entry", "requests", "ok", "p50 s", "p95 s", "p99 s", "visible p50 s", "visible p95 s"),
    *("visible tok/s", "total tok/s", "goodput", "429", "errors", "incomplete"),
)

Row = dict[str, Any]


def figures(run: LoadRun, deadline: float | None) -> dict[str, Any]:
    """For JSON: seconds, tokens per second, requests per second; None without data."""
    names = list(dict.fromkeys(one.request.entry.name for one in run.exchanges))
    rows = [
        row(name, [one for one in run.exchanges if one.request.entry.name == name], run.span, deadline)
        for name in sorted(names)
    ]
    return {
        "load": asdict(run.load),
        "span": run.span,
        "deadline": deadline,
        "lateness": percentiles(known_values(run.exchanges, lambda one: one.lateness)),
        "entries": rows,
        TOTAL: row(TOTAL, run.exchanges, run.span, deadline),
        "requests": [single(one, run.start) for one in run.exchanges],
    }


def row(name: str, exchanges: Sequence[Exchange], span: float, deadline: float | None) -> Row:
    """Slow readers are left out of the times, which would measure their own pace."""
    outcomes = Counter(one.outcome for one in exchanges)
    quick = [one for one in exchanges if not one.request.slow]
    timed = [one for one in quick if one.outcome in (Outcome.OK, Outcome.LIMITED, Outcome.DEGRADED)]
    timed = timed or [one for one in quick if one.outcome is Outcome.EXPECTED]
    rated = [one for one in quick if one.outcome not in NO_GOAL]
    good = [one for one in rated if one.outcome is Outcome.OK and (one.latency or 0.0) <= (deadline or 0.0)]
    refused = [one for one in exchanges if one.outcome is Outcome.REFUSED]
    return {
        "name": name,
        "requests": len(exchanges),
        "slow": len(exchanges) - len(quick),
        "outcomes": {outcome: outcomes[outcome] for outcome in Outcome},
        "statuses": dict(Counter(str(one.status or "none") for one in exchanges)),
        "retry_after": dict(Counter(one.retry_after or "none" for one in refused)),
        "failures": dict(Counter(one.failure for one in exchanges if one.failure is not None).most_common(5)),
        "latency": percentiles(known_values(timed, lambda one: one.latency)),
        "service": percentiles(known_values(timed, lambda one: one.service)),
        "until_visible": percentiles(known_values(timed, lambda one: one.until_visible)),
        "visible_tokens_per_s": sum(one.visible_tokens or 0 for one in exchanges) / span if span else None,
        "total_tokens_per_s": sum(one.total_tokens or 0 for one in exchanges) / span if span else None,
        "without_usage": sum(one.outcome is Outcome.OK and one.visible_tokens is None for one in exchanges),
        "goodput_per_s": None if deadline is None or not span else len(good) / span,
        "goodput_share": None if deadline is None or not rated else len(good) / len(rated),
    }


def known_values(exchanges: Sequence[Exchange], of: Callable[[Exchange], float | None]) -> list[float]:
    return [value for one in exchanges if (value := of(one)) is not None]


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Interpolated between the nearest two; None without values."""
    if not values:
        return None
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "max": max(values)}


def single(one: Exchange, start: float) -> Row:
    """One request; `intended` is in seconds from the start of counting."""
    return {
        "entry": one.request.entry.name,
        "intended": one.intended - start,
        "lateness": one.lateness,
        "latency": one.latency,
        "service": one.service,
        "until_visible": one.until_visible,
        "outcome": one.outcome,
        "status": one.status,
        "slow": one.request.slow,
        "visible_tokens": one.visible_tokens,
        "total_tokens": one.total_tokens,
    }


def render(figures: dict[str, Any]) -> str:
    """Two tables, of times and of outcomes, with notes on them."""
    rows = [*figures["entries"], figures[TOTAL]]
    outcomes = [outcome for outcome in Outcome if figures[TOTAL]["outcomes"][outcome]]
    columns = ["statuses", *(["retry_after"] if figures[TOTAL]["retry_after"] else [])]
    ends = [
        [r["name"], *(r["outcomes"][outcome] for outcome in outcomes), *(counts(r[column]) for column in columns)]
        for r in rows
    ]
    parts = [
        table(HEADERS, [cells(r) for r in rows]),
        table(["entry", *outcomes, *columns], ends),
        *notes(figures),
    ]
    return "\n\n".join(parts)


def cells(r: Row) -> list[object]:
    times, visible, ends = r["latency"] or {}, r["until_visible"] or {}, r["outcomes"]
    good = NONE if r["goodput_per_s"] is None else f"{r['goodput_per_s']:.2f}/s"
    share = "" if r["goodput_share"] is None else f" ({r['goodput_share']:.0%})"
    return [
        *(r["name"], r["requests"], ends[Outcome.OK]),
        *(times.get(p, NONE) for p in ("p50", "p95", "p99")),
        *(visible.get(p, NONE) for p in ("p50", "p95")),
        *(NONE if r[key] is None else f"{r[key]:.1f}" for key in ("visible_tokens_per_s", "total_tokens_per_s")),
        *(good + share, ends[Outcome.REFUSED], sum(ends[o] for o in FAILED), ends[Outcome.INCOMPLETE]),
    ]


def counts(of: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(of.items())) or NONE


def notes(figures: dict[str, Any]) -> list[str]:
    late, total = figures["lateness"], figures[TOTAL]
    lines = []
    if late is not None:
        lines.append("generator's own lateness: " + ", ".join(f"{p} {1000 * s:.1f} ms" for p, s in late.items()))
        if late["p95"] > LATE:
            limit = f"{1000 * LATE:.0f} ms"
            lines.append(f"warning: the generator was late by more than {limit} at p95: it needs a faster machine")
    if total["without_usage"]:
        lines.append(f"warning: {total['without_usage']} answers told no usage, and count as no tokens")
    lines += [f"{count} x {failure}" for failure, count in total["failures"].items()]
    return lines
