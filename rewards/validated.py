"""A reward that cannot fail quietly."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.rewards.protocols import Question, Response, RewardError, Scorer


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A scorer whose every row is K finite numbers, or which raises.

    ValueError is the request's fault and passes; anything else that goes wrong is a RewardError that names the reward.
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
            raise RewardError(f"reward {self.name!r} gave {counted(rows, 'rows')} for {len(responses)} responses")
        return [self._row(i, row) for i, row in enumerate(rows)]

    def _row(self, index: int, row: object) -> list[float]:
        at = f"reward {self.name!r}, response {index}"
        if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != len(self.labels):
            raise RewardError(f"{at}: {counted(row, 'columns')} for the {len(self.labels)} labels")
        for label, score in zip(self.labels, row, strict=True):
            if isinstance(score, bool) or not isinstance(score, int | float):
                raise RewardError(f"{at}, {label}: a {type(score).__name__} is no score")
            if not -math.inf < score < math.inf:
                raise RewardError(f"{at}, {label}: {score} is no score")
        return [float(score) for score in row]


def counted(given: object, things: str) -> str:
    return f"{len(given)} {things}" if isinstance(given, Sequence) else f"a {type(given).__name__} and no {things}"


def checked(scorer: Scorer, *, name: str, timeout: float) -> Scorer:
    return Checked(scorer=scorer, name=name, timeout=timeout)
