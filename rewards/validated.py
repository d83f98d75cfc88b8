"""A reward whose failures are errors, never scores."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trimtab.decoders.protocols import reads_final_answer
from trimtab.rewards.protocols import Question, ReadPart, Response, RewardError, Scorer, reads_conversation
from trimtab.rewards.turns import Clock, current_clock

log = logging.getLogger("trimtab")


@dataclass(frozen=True, kw_only=True)
class ValidatedScorer:
    """A scorer whose every row is K finite numbers.

    ValueError and vLLM's VLLMClientError (faults of the request) pass through; any other failure is raised as a
    RewardError with the reward's name. Clients read it, so it says nothing that an exception said: that is for the
    log.
    """

    scorer: Scorer
    name: str
    timeout: float
    """Seconds for which a call may stand still: without an answer to any part of it, or from what it waits for."""
    on: ReadPart = "answer"
    active_at: Callable[[], float] = lambda: -math.inf
    """When the engine that it asks last answered anybody, by `time.monotonic`: a call that waits for its turn there has
    not begun."""

    @property
    def labels(self) -> tuple[str, ...]:
        return self.scorer.labels

    @property
    def needs(self) -> frozenset[str]:
        return self.scorer.needs

    @property
    def reads_final_answer(self) -> bool:
        return reads_final_answer(self.scorer)

    @property
    def reads_conversation(self) -> bool:
        return reads_conversation(self.scorer)

    @property
    def records(self) -> bool:
        """Whether the scorer records what it reads by `Question.record`, and states it before."""
        return hasattr(self.scorer, "reads")

    def reads(self, prompt: int, response: int) -> int:
        """Tokens read for a response of so many to a prompt of so many, at the most: the response, where it states
        nothing else."""
        return int(self.scorer.reads(prompt, response)) if hasattr(self.scorer, "reads") else response

    async def __call__(self, question: Question, responses: Sequence[Response]) -> list[list[float]]:
        """Of whole responses, of which the scorer reads its part."""
        if missing := sorted(self.needs - set(question.given)):
            raise ValueError(f"the reward {self.name!r} needs {', '.join(missing)} to score against")
        try:
            rows = await self._ask(question, responses)
        except RewardError as error:
            raise RewardError(f"reward {self.name!r} failed: {error}") from error
        except (json.JSONDecodeError, UnicodeError) as error:  # of what it read, not of the request
            raise self._failure(error) from error
        except ValueError:
            raise
        except Exception as error:
            if any(kind.__name__ == "VLLMClientError" for kind in type(error).__mro__):
                raise  # vLLM's word for what a request may not ask of an engine: too many tokens, or none that it knows
            raise self._failure(error) from error
        if not isinstance(rows, Sequence) or len(rows) != len(responses):
            raise RewardError(f"reward {self.name!r} gave {describe_size(rows, 'rows')} for {len(responses)} responses")
        return [self._row(i, row) for i, row in enumerate(rows)]

    async def _ask(self, question: Question, responses: Sequence[Response]) -> object:
        """What the scorer gives; raises RewardError where it stands still for too long."""
        clock = Clock()
        before = current_clock.set(clock)
        call = asyncio.create_task(self.scorer(question, [response.read(self.on) for response in responses]))
        current_clock.reset(before)
        try:
            while not call.done():
                left = max(clock.at, self.active_at()) + self.timeout - time.monotonic()
                if left <= 0:
                    raise RewardError(f"timed out after {self.timeout:g} s (rewards.{self.name}.timeout_s)")
                await asyncio.wait({call}, timeout=left)
            return call.result()
        finally:
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    def _failure(self, error: Exception) -> RewardError:
        log.error("reward %r failed", self.name, exc_info=error)
        return RewardError(f"reward {self.name!r} failed: internal error")

    def _row(self, index: int, row: object) -> list[float]:
        at = f"reward {self.name!r}, response {index}"
        if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != len(self.labels):
            raise RewardError(f"{at}: {describe_size(row, 'columns')} for the {len(self.labels)} labels")
        for label, score in zip(self.labels, row, strict=True):
            if isinstance(score, bool) or not isinstance(score, int | float):
                raise RewardError(f"{at}, {label}: a {type(score).__name__} is no score")
            if not -sys.float_info.max <= score <= sys.float_info.max:
                raise RewardError(f"{at}, {label}: {score} is no score")
        return [float(score) for score in row]


def describe_size(value: object, things: str) -> str:
    return f"{len(value)} {things}" if isinstance(value, Sequence) else f"a {type(value).__name__} and no {things}"
