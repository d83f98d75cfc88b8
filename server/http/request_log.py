"""An HTTP request's end, in the metrics and in the log."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from trimtab.decoders import STRATEGIES
from trimtab.server import metrics
from trimtab.server.config import Config
from trimtab.server.http.context import Enquiry, RequestContext
from trimtab.server.json_log import replace_nonfinite
from trimtab.server.request.reward_tree import explain

log = logging.getLogger("trimtab.request")


@dataclass(kw_only=True)
class Ending:
    """How a request ends; `count` is called once for each, whatever happens to it."""

    strategy: str = "none"
    outcome: str = "client_abort"

    def refuse(self, status: int) -> None:
        """It was answered before any work."""
        self.outcome = outcome_of_refusal(status)

    def count(self) -> None:
        metrics.REQUESTS.labels(self.strategy, self.outcome).inc()


def outcome_of_refusal(status: int) -> str:
    return "rejected" if status in (429, 503) else "invalid" if status < 500 else "engine_error"


def record_end(
    context: RequestContext | Enquiry, ending: Ending, config: Config, *, began: float, now: float
) -> dict[str, Any]:
    """Measure it, and give what there is to say of it in a log: names and numbers, nothing that anybody wrote."""
    strategy, outcome, usage = ending.strategy, ending.outcome, context.run.usage
    metrics.DURATION.labels(strategy).observe(now - began)
    if usage.first_visible_at is not None:
        metrics.FIRST_TOKEN.labels(strategy).observe(usage.first_visible_at - began)
    tokens = {kind: getattr(usage, kind) for kind in ("prompt", "visible", "sampled", "scored")}
    for kind, count in tokens.items():
        metrics.TOKENS.labels(kind).inc(count)
    metrics.CANCELLED.inc(usage.cancelled_calls)
    for report in context.run.reports.values():
        _observe(strategy, report)
        for name, score in explain(report.get("value")).get("transformed", {}).items():
            if name in config.objectives:
                metrics.REWARD.labels(name).observe(score)
    line = {"strategy": strategy, "outcome": outcome, "seconds": round(now - began, 4)}
    line |= {f"{kind}_tokens": count for kind, count in tokens.items()}
    if isinstance(context, Enquiry):
        return line
    params = {} if context.run.degraded else loggable_params(context.plan.name, context.plan.params)
    return line | ({"params": params} if params else {})


def write_line(request_id: str, path: str, fields: dict[str, Any]) -> None:
    """A request's line in the log."""
    words = " ".join(
        f"{key}={json.dumps(replace_nonfinite(value)) if isinstance(value, dict) else value}"
        for key, value in fields.items()
    )
    log.info("%s %s %s", request_id, path, words, extra={"fields": {"request_id": request_id, "path": path, **fields}})


def loggable_params(strategy: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Those that hold nothing that a client wrote in words: numbers, booleans, and choices among a strategy's own."""
    choices = enumerated_params(strategy)
    return {
        name: value
        for name, value in params.items()
        if isinstance(value, int | float) or (isinstance(value, str) and value in choices.get(name, ()))
    }


@cache
def enumerated_params(strategy: str) -> dict[str, frozenset[str]]:
    """parameter -> the words that it may be, where these are listed"""
    properties = STRATEGIES[strategy].parameters.model_json_schema(by_alias=True).get("properties", {})
    return {
        name: frozenset(word for option in (schema, *schema.get("anyOf", ())) for word in option.get("enum", ()))
        for name, schema in properties.items()
    }


def _observe(strategy: str, report: Mapping[str, Any]) -> None:
    kl = report.get("kl_exact")
    if isinstance(trace := report.get("trace"), Mapping) and "kl_exact" in trace:
        kl = sum(trace["kl_exact"])
    if isinstance(kl, float) and math.isfinite(kl):
        metrics.GUIDANCE_KL.labels(strategy).observe(kl)
    if isinstance(rate := report.get("acceptance_rate"), float) and "chains" in report:
        metrics.ACCEPTANCE.observe(rate)
