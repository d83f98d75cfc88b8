"""A reward whose failures are errors, never scores."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.rewards.protocols import Question, Response, RewardError, Scorer


@dataclass(frozen=True, kw_only=True)
class ValidatedScorer:
    """A scorer whose every row is K finite numbers.

    ValueError (a fault of the request) passes through; any other failure is raised as a RewardError with the reward's
    name.
    """

    scorer: Scorer
    name: str
    timeout: float
    """Seconds for one call."""

    @property
    def labels(self) -> tuple[str, ...]:
        return self.scorer.labels

    @property
    def needs(self) -> frozenset[str]:
        return self.scorer.needs

    async def __call__(self, question: Question, responses: Sequence[Response]) -> list[list[float]]:
        if missing := sorted(self.needs - set(question.given)):
            raise ValueError(f"the reward {self.name!r} needs {', '.join(missing)} to score against")
        deadline = asyncio.timeout(self.timeout)
        try:
            async with deadline:
                rows = await self.scorer(question, responses)
        except ValueError:
            raise
        except RewardError as error:
            raise RewardError(f"reward {self.name!r}: {error}") from error
        except Exception as error:
            if deadline.expired():
                raise RewardError(f"reward {self.name!r} took longer than {self.timeout:g} s") from error
            raise RewardError(f"reward {self.name!r} failed: {type(error).__name__}: {error}") from error
        if not isinstance(rows, Sequence) or len(rows) != len(responses):
            raise RewardError(f"reward {self.name!r} gave {describe_size(rows, 'rows')} for {len(responses)} responses")
        return [self._row(i, row) for i, row in enumerate(rows)]

    def _row(self, index: int, row: object) -> list[float]:
        at = f"reward {self.name!r}, response {index}"
        if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != len(self.labels):
            raise RewardError(f"{at}: {describe_size(row, 'columns')} for the {len(self.labels)} labels")
        for label, score in zip(self.labels, row, strict=True):
            if isinstance(score, bool) or not isinstance(score, int | float):
                raise RewardError(f"{at}, {label}: a {type(score).__name__} is no score")
            if not -math.inf < score < math.inf:
                raise RewardError(f"{at}, {label}: {score} is no score")
        return [float(score) for score in row]


def describe_size(value: object, things: str) -> str:
    return f"{len(value)} {things}" if isinstance(value, Sequence) else f"a {type(value).__name__} and no {things}"
