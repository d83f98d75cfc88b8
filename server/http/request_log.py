"""An HTTP request's end, in the metrics and in the log."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from trimtab.runtime.shares import Turn
from trimtab.server import metrics
from trimtab.server.config import Config
from trimtab.server.http.response import Call

log = logging.getLogger("trimtab.request")


def refused(strategy: str, status: int) -> None:
    """A request that was answered before any work."""
    metrics.REQUESTS.labels(strategy, "rejected" if status in (429, 503) else "invalid").inc()


def ended(call: Call, turn: Turn, outcome: str, config: Config, *, began: float, now: float) -> dict[str, Any]:
    """Count it, and give what there is to say of it in a log: names and numbers, nothing that anybody wrote."""
    strategy = call.strategy
    metrics.REQUESTS.labels(strategy, outcome).inc()
    metrics.DURATION.labels(strategy).observe(now - began)
    if turn.first is not None:
        metrics.FIRST_TOKEN.labels(strategy).observe(turn.first - began)
    meter = call.run.meter if call.run is not None else None
    spent = {
        "prompt": turn.prompt,
        "visible": turn.visible,
        "sampled": turn.visible if meter is None else meter.sampled,
        "scored": 0 if meter is None else meter.scored,
    }
    for kind, tokens in spent.items():
        metrics.TOKENS.labels(kind).inc(tokens)
    metrics.CANCELLED.inc(turn.cancelled)
    if call.run is not None:
        for report in call.run.reports.values():
            _reported(strategy, report)
    if call.run is not None and call.scores is not None:
        for answer in call.run.answers.values():
            for name, score in call.scores.of(answer).get("transformed", {}).items():
                if name in config.objectives:
                    metrics.REWARD.labels(name).observe(score)
    told = {"strategy": strategy, "outcome": outcome, "seconds": round(now - began, 4)}
    return told | {f"{kind}_tokens": tokens for kind, tokens in spent.items()}


def write(request_id: str, path: str, told: dict[str, Any]) -> None:
    """A request's line in the log."""
    numbers = " ".join(f"{key}={value}" for key, value in told.items())
    log.info("%s %s %s", request_id, path, numbers, extra={"told": {"request_id": request_id, "path": path, **told}})


def _reported(strategy: str, report: Mapping[str, Any]) -> None:
    kl = report.get("kl")
    if isinstance(trace := report.get("trace"), Mapping) and "kl" in trace:
        kl = math.fsum(trace["kl"])
    if isinstance(kl, float) and math.isfinite(kl):
        metrics.GUIDANCE_KL.labels(strategy).observe(kl)
    if isinstance(rate := report.get("acceptance_rate"), float) and "chains" in report:
        metrics.ACCEPTANCE.observe(rate)
