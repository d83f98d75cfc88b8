"""A setting, its answers over HTTP, and their gold scores, on prompts that no model was trained on."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openai import AsyncOpenAI

from trimtab.bench.intervals import half
from trimtab.recipes.corpus import Prompt
from trimtab.recipes.gold import GOLD, fluency


@dataclass(frozen=True)
class Point:
    """Scores of the answers of one setting."""

    alignment: Mapping[str, Any]
    scores: Mapping[str, tuple[float, ...]]
    """gold scores, fluency and words, per prompt"""
    kl: tuple[float, ...]
    """per prompt, sum_t KL(guided || base) along the answer, in nats"""

    def mean(self, name: str) -> float:
        return statistics.fmean(self.scores[name])

    def figures(self) -> dict[str, Any]:
        scores = {**self.scores, "kl": self.kl}
        means = {name: {"mean": statistics.fmean(values), "half_ci95": half(values)} for name, values in scores.items()}
        return {"alignment": dict(self.alignment), **means}


@dataclass(frozen=True)
class Bench:
    """A served model, and the prompts and seeds that all points share."""

    client: AsyncOpenAI
    model: str
    prompts: Sequence[Prompt]
    gate: asyncio.Semaphore
    max_tokens: int = 200

    async def point(self, alignment: Mapping[str, Any]) -> Point:
        """One draw per prompt at temperature 1, with a trace where there is a guide."""
        answers = await asyncio.gather(*(self._answer(seed, alignment) for seed in range(len(self.prompts))))
        pairs = [(prompt.text, text) for prompt, (text, _) in zip(self.prompts, answers, strict=True)]
        scores = {name: tuple(gold(question, text) for question, text in pairs) for name, gold in GOLD.items()}
        scores["fluency"] = tuple(fluency(text) for _, text in pairs)
        scores["words"] = tuple(float(len(text.split())) for _, text in pairs)
        return Point(alignment=alignment, scores=scores, kl=tuple(kl for _, kl in answers))

    async def ask(self, place: int, alignment: Mapping[str, Any], *, seed: int) -> Any:
        """The answer to the prompt at `place`."""
        messages: Any = list(self.prompts[place].messages)
        async with self.gate:
            return await self.client.chat.completions.create(
                model=self.model,
                messages=messages,
                temperature=1.0,
                max_tokens=self.max_tokens,
                seed=seed,
                extra_body={"alignment": dict(alignment)} if alignment else {},
            )

    async def _answer(self, seed: int, alignment: Mapping[str, Any]) -> tuple[str, float]:
        traced = {**alignment, "return": ["trace"]} if alignment else {}
        answer = await self.ask(seed, traced, seed=seed)
        report = (answer.model_extra or {})["alignment"]
        return answer.choices[0].message.content or "", math.fsum(
            report["choices"][0]["trace"]["kl_exact"]
        ) if traced else 0.0
