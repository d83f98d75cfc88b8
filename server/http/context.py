"""One HTTP request: what the client asked for, the run that answers it, and what the response says of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.trace import Span

from trimtab.runtime.strategy_run import StrategyRun
from trimtab.server.request.body import Json
from trimtab.server.request.plan import Plan
from trimtab.server.request.reward_tree import explain
from trimtab.server.scoring import RequestReward


@dataclass(kw_only=True)
class RequestContext:
    path: str
    body: bytes
    """What vLLM's app gets to read."""
    model: str | None
    """The model id as the client wrote it, where it is a preset's."""
    document: Json
    """The body as an object, without `alignment`."""
    plan: Plan
    warnings: list[str]
    run: StrategyRun = field(default_factory=StrategyRun)
    reward: RequestReward | None = None
    """The run's; None where its strategy takes none."""

    @property
    def strategy(self) -> str:
        """The strategy that ran."""
        return "plain" if self.run.degraded else self.plan.name

    @property
    def outcome(self) -> str:
        """How the request ended if it was answered."""
        return "degraded" if self.run.degraded else self.run.usage.limit or "ok"

    def trace(self, span: Span) -> None:
        """Calls of the engine and of rewards become spans under the request's, where that is recorded."""
        if span.is_recording() and not self.run.native:
            self.run.span = span
            if self.reward is not None:
                self.reward.span = span

    def alignment_object(self, usage: Mapping[str, Any]) -> Json:
        """The response's `alignment`; `usage` is the response's own."""
        alignment = self.plan.described() | {"strategy": self.strategy} | self.token_counts(usage)
        if self.run.degraded:
            alignment.pop("params", None)  # they are of the strategy that failed
        if self.outcome != "ok":
            alignment["outcome"] = self.outcome
        choices: list[Json] = [{"index": i} | self._choice(i) for i in sorted({*self.run.reports, *self.run.answers})]
        for choice in choices:
            self.warnings += [text for text in choice.pop("warnings", ()) if text not in self.warnings]
        if any(len(choice) > 1 for choice in choices):
            alignment["choices"] = choices
        if self.reward is not None:
            self.warnings += [text for text in self.reward.warnings if text not in self.warnings]
        self.warnings += [text for text in self.run.warnings if text not in self.warnings]
        if self.run.degraded:
            self.warnings.append(f"answered plainly, because {self.run.failure}")
        if self.warnings:
            alignment["warnings"] = self.warnings
        return alignment

    def token_counts(self, usage: Mapping[str, Any]) -> dict[str, int]:
        """What it took; of an answer that vLLM gave by itself, by the response's own usage, if it has one."""
        if not self.run.native:
            return {"sampled_tokens": self.run.usage.sampled, "scored_tokens": self.run.usage.scored}
        visible = usage.get("completion_tokens") or usage.get("output_tokens")
        return {} if visible is None else {"sampled_tokens": visible, "scored_tokens": 0}

    def _choice(self, index: int) -> Json:
        """Of one answer: the strategy's report, its rewards, and of the candidates what was asked for."""
        choice: Json = dict(self.run.reports.get(index, {}))
        if self.reward is None:
            return choice
        choice |= explain(choice.get("value"))
        if "candidates" in choice:
            choice["candidates"] = [self._candidate(candidate) for candidate in choice["candidates"]]
        return choice

    def _candidate(self, candidate: Mapping[str, Any]) -> Json:
        shown = {key: value for key, value in candidate.items() if key != "tokens"}
        if "rewards" in self.plan.include:
            shown |= explain(candidate["value"])
        return shown
