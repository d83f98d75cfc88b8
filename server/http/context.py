"""One HTTP request: what the client asked for, the run that answers it, and what the response says of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from opentelemetry.trace import Span

from trimtab.decoders.protocols import Split, Tokens, Work
from trimtab.runtime.strategy_run import StrategyRun
from trimtab.server.request.body import Json
from trimtab.server.request.cost import Extent
from trimtab.server.request.plan import Plan
from trimtab.server.request.reward_tree import explain
from trimtab.server.scoring import RequestReward

PARSED = "trimtab.parsed"
"""Key of the ASGI scope under which the app behind finds the request as it was parsed: vLLM's model of it, or an
`Enquiry`. FastAPI would parse the body a second time, and on the event loop."""


class Reader(Protocol):
    """vLLM's own reading of the bodies that its app answers."""

    @property
    def paths(self) -> frozenset[str]: ...

    @property
    def generating(self) -> frozenset[str]:
        """Those of the paths on which tokens are drawn."""
        ...

    def fields(self, path: str) -> frozenset[str]:
        """The top-level fields that the path's request model has."""
        ...

    def parse(self, path: str, document: Mapping[str, Any]) -> Any:
        """vLLM's model of the request; raises ApiError."""
        ...

    def extent(self, path: str, parsed: Any, size: int) -> Extent:
        """How much it asks for, its body having `size` bytes."""
        ...

    def check_text(self, length: int) -> None:
        """Raises ApiError for a text of so many characters that no tokenising makes it fit the context."""
        ...

    @property
    def context(self) -> int:
        """Tokens that the model reads at the most."""
        ...

    def longest_answer(self, bound: int | None) -> int:
        """Tokens of an answer that a request bounds so, at the most."""
        ...

    def split(self, path: str, parsed: Any) -> Split:
        """How the app takes the request's completions apart."""
        ...

    def split_written(self, document: Mapping[str, Any]) -> Split:
        """How completions that a client wrote come apart, by the tools that stand in the body."""
        ...

    async def render(self, path: str, document: Mapping[str, Any]) -> Tokens:
        """The prompt that the app makes of a body."""
        ...


@dataclass(kw_only=True)
class Enquiry(ABC):
    """One request to an endpoint of ours that answers with numbers: understood, and not yet worked on.

    It goes through the door as requests for text do: let in by its cost, run in its caller's share, counted and logged.
    """

    name: str
    """What it is counted under, where others have their strategy."""
    document: Json
    work: Work
    """The most that it can cost."""
    run: StrategyRun = field(default_factory=StrategyRun)

    abandoned: bool = False
    """Whether its client has left before it was answered."""

    @property
    def strategy(self) -> str:
        return self.name

    @abstractmethod
    async def answer(self) -> Json:
        """Raises ApiError, and RewardError where a reward fails."""

    @property
    def outcome(self) -> str:
        """How the request ended if it was answered."""
        return self.run.usage.limit or "ok"


@dataclass(kw_only=True)
class RequestContext:
    path: str
    raw: Any
    """Its `alignment`, over its preset's, as the client wrote it."""
    model: str | None
    """The model id as the client wrote it, where it is a preset's."""
    document: Json
    """The body as an object, without `alignment`."""
    parsed: Any
    """The body as vLLM's request model."""
    plan: Plan
    extent: Extent
    work: Work
    """The most that it can cost."""
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
