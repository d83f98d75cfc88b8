"""How far one HTTP request is whose answers are searched for: its prompts' searches as one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from trimtab.decoders.report import SearchProgress, Stage


@dataclass(kw_only=True)
class RequestProgress:
    prompts: int = 1
    """Of the request, each with a search of its own."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by whatever is new; whoever has read it clears it."""
    stages: dict[Stage, dict[int, SearchProgress]] = field(default_factory=dict)
    """stage, the first begun first -> prompt -> the last that its search has reported there"""
    latest: dict[int, SearchProgress] = field(default_factory=dict)
    """prompt -> the last that its search has reported"""

    def record(self, prompt: int, progress: SearchProgress) -> None:
        if self.latest.get(prompt) == progress:
            return
        self.latest[prompt] = progress
        self.stages.setdefault(progress.stage, {})[prompt] = progress
        self.changed.set()

    def total(self) -> SearchProgress:
        """The searches' progress; of several the sum at the stage that the last of them is at, and no best one."""
        if self.prompts == 1:
            return self.latest[0]
        at = {progress.stage for progress in self.latest.values()}
        stage = next(stage for stage in self.stages if stage in at)
        reached = self.stages[stage].values()
        return SearchProgress(stage=stage, done=sum(one.done for one in reached), of=sum(one.of for one in reached))
