"""POST /v1/alignment/infer: a person's preference weights from what they chose, rated or rewrote, and what to ask next.

Nothing is kept: the answer's `weights` go into the person's next request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trimtab.preferences.bradley_terry import Person, Vector, choices_from_ratings, infer_person
from trimtab.rewards.gather import gather_or_cancel
from trimtab.runtime.usage import Usage
from trimtab.server.config import Config
from trimtab.server.errors import ApiError, explained, unknown
from trimtab.server.http.score import MOST as MOST_ANSWERS
from trimtab.server.http.score import encode_completions, render_prompt
from trimtab.server.request.reward_tree import Spec, standard
from trimtab.server.scoring import RequestReward, Scoring

MOST = 256
"""Comparisons, ratings, edits, and conversations to choose the next question from."""


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Asked(Part):
    """A conversation, or a bare prompt."""

    messages: list[dict[str, Any]] = Field(default=[], min_length=1)
    prompt: str = Field(default="", min_length=1)


class Comparison(Asked):
    chosen: str
    rejected: str


class Edit(Asked):
    before: str
    after: str


class Rating(Asked):
    response: str
    rating: float = Field(allow_inf_nan=False)


class Candidates(Asked):
    responses: list[str] = Field(min_length=2, max_length=32)


class Prior(Part):
    """What is thought of a person before they choose: independent normal laws."""

    mean: dict[str, float] = {}
    std: float = Field(default=2.0, gt=0, le=1e3, allow_inf_nan=False)


class InferRequest(Part):
    model: str = ""
    objectives: list[str] = Field(default=[], min_length=1, max_length=64)
    comparisons: list[Comparison] = Field(default=[], max_length=MOST)
    edits: list[Edit] = Field(default=[], max_length=MOST)
    ratings: list[Rating] = Field(default=[], max_length=MOST)
    candidates: list[Candidates] = Field(default=[], max_length=MOST)
    prior: Prior = Prior()


async def infer(document: dict[str, Any], scoring: Scoring) -> dict[str, Any]:
    """Weights of length 1 per objective, how sure they are, and of the candidates the pair that would tell most.

    Raises ApiError, and RewardError where a reward fails.
    """
    asked = checked(document)
    objectives = chosen_objectives(asked, scoring.config)
    specs = [standard(name, scoring.config) for name in objectives]
    for spec in specs:
        scoring.check(spec, {}, at="objectives")
    mean = [asked.prior.mean.get(name, 0.0) for name in objectives]
    usage = Usage()
    told = await Told.of(asked, specs, scoring, usage)

    def concluded() -> dict[str, Any]:
        person = infer_person(*told.choices(asked), mean_K=mean, std=asked.prior.std)
        silent = ["nothing speaks for a direction: the weights are all equal"] if person.direction is None else []
        return {**described(person, objectives), "ask": told.next(asked.candidates, person), "warnings": silent}

    return {
        "object": "alignment.weights",
        "model": scoring.config.model_name,
        **await asyncio.to_thread(concluded),
        "choices": len(asked.comparisons) + len(asked.edits) + max(len(asked.ratings) - 1, 0),
        "scored_tokens": usage.scored,
    }


def checked(document: dict[str, Any]) -> InferRequest:
    """Raises ApiError naming the key."""
    parts: dict[str, type[Part]] = {
        "comparisons": Comparison, "edits": Edit, "ratings": Rating, "candidates": Candidates, "prior": Prior,
    }  # fmt: skip
    try:
        asked = InferRequest.model_validate(document)
    except ValidationError as error:
        model = parts.get(str(error.errors()[0]["loc"][0]), InferRequest)
        raise explained(error, at="", fields=model.model_fields) from None
    for key in ("comparisons", "edits", "ratings", "candidates"):
        for i, item in enumerate(getattr(asked, key)):
            if bool(item.messages) == bool(item.prompt):
                message = f"{key}.{i}: give either messages or prompt"
                raise ApiError(message, param=f"{key}.{i}.messages", code="missing_required_parameter")
    return asked


def chosen_objectives(asked: InferRequest, config: Config) -> list[str]:
    """Raises ApiError for objectives that no reward scores, or that the prior names beside them."""
    scored = [name for name, objective in config.objectives.items() if objective.reward is not None]
    if not scored:
        raise ApiError("this server has no objective with a reward", param="objectives")
    for name in asked.objectives:
        if name not in scored:
            raise ApiError(unknown("objective with a reward", name, scored), param="objectives")
    objectives = list(dict.fromkeys(asked.objectives)) or scored
    for name, value in asked.prior.mean.items():
        if name not in objectives:
            raise ApiError(unknown("objective", name, objectives), param=f"prior.mean.{name[:64]}")
        if not abs(value) <= 1e3:
            raise ApiError(f"prior.mean.{name} must lie in [-1000, 1000]; got {value:g}", param=f"prior.mean.{name}")
    return objectives


class Told:
    """Rewards of every answer that a request holds, each scored once."""

    def __init__(self, rows: Mapping[tuple[str, str], Sequence[float]], k: int) -> None:
        self.rows = rows
        self.k = k

    @classmethod
    async def of(cls, asked: InferRequest, specs: Sequence[Spec], scoring: Scoring, usage: Usage) -> Told:
        """Raises ApiError for too many answers, RewardError where a reward fails."""
        wanted: dict[str, dict[str, None]] = {}
        by_key: dict[str, Asked] = {}
        for item, texts in (
            *((c, (c.chosen, c.rejected)) for c in asked.comparisons),
            *((e, (e.before, e.after)) for e in asked.edits),
            *((r, (r.response,)) for r in asked.ratings),
            *((c, tuple(c.responses)) for c in asked.candidates),
        ):
            by_key[key(item)] = item
            wanted.setdefault(key(item), {}).update(dict.fromkeys(texts))
        if (count := sum(map(len, wanted.values()))) > MOST_ANSWERS:
            raise ApiError(
                f"a request may hold {MOST_ANSWERS} different answers; this one has {count}", param="candidates"
            )

        async def scored(item: Asked, texts: Sequence[str]) -> list[list[float]]:
            document = {"messages": item.messages} if item.messages else {"prompt": item.prompt}
            reward = RequestReward.of_document(document, scoring=scoring, specs=tuple(specs), given={}, usage=usage)
            return await reward(render_prompt(document, reward), encode_completions(texts, reward))

        tables = await gather_or_cancel(scored(by_key[k], list(texts)) for k, texts in wanted.items())
        rows = {
            (k, text): row
            for (k, texts), table in zip(wanted.items(), tables, strict=True)
            for text, row in zip(texts, table, strict=True)
        }
        return cls(rows, len(specs))

    def choices(self, asked: InferRequest) -> tuple[Vector, list[float]]:
        """[N, K] r(better) - r(worse), and [N] what each counts."""
        pairs: list[tuple[Sequence[float], Sequence[float], float]] = []
        pairs += [(self._of(c, c.chosen), self._of(c, c.rejected), 1.0) for c in asked.comparisons]
        pairs += [(self._of(e, e.after), self._of(e, e.before), 1.0) for e in asked.edits]
        rated = [self._of(r, r.response) for r in asked.ratings]
        pairs += [
            (rated[i], rated[j], count) for i, j, count in choices_from_ratings([r.rating for r in asked.ratings])
        ]
        differences = np.array([np.subtract(better, worse) for better, worse, _ in pairs]).reshape(-1, self.k)
        return differences, [count for *_, count in pairs]

    def next(self, candidates: Sequence[Candidates], person: Person) -> dict[str, Any] | None:
        """The pair of one conversation's answers whose comparison would tell most of the person."""
        places = [(i, a, b) for i, c in enumerate(candidates) for a, b in combinations(range(len(c.responses)), 2)]
        if not places:
            return None
        rows = [[self._of(c, text) for text in c.responses] for c in candidates]
        differences = np.array([np.subtract(rows[i][a], rows[i][b]) for i, a, b in places])
        nats = person.information(differences)
        best = int(np.argmax(nats))
        i, a, b = places[best]
        [p] = person.probability(differences[best : best + 1])
        return {"candidate": i, "responses": [a, b], "information_nats": float(nats[best]), "first_preferred": float(p)}

    def _of(self, item: Asked, text: str) -> Sequence[float]:
        return self.rows[key(item), text]


def key(item: Asked) -> str:
    return json.dumps([item.messages, item.prompt], sort_keys=True)


def described(person: Person, objectives: Sequence[str]) -> dict[str, Any]:
    """Weights, and per objective the middle 95 % of what they may be."""
    drawn = person.draw_directions()
    direction = person.direction
    if direction is None:
        direction = np.full(len(objectives), len(objectives) ** -0.5)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    std = np.sqrt(np.diag(person.covariance))
    return {
        "weights": dict(zip(objectives, map(float, direction), strict=True)),
        "interval": {name: [float(a), float(b)] for name, a, b in zip(objectives, low, high, strict=True)},
        "expected_cosine": float((drawn @ direction).mean()),
        "coefficients": {
            name: {"mean": float(m), "std": float(s)} for name, m, s in zip(objectives, person.mean, std, strict=True)
        },
    }
