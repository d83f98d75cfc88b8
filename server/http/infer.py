"""POST /v1/alignment/infer: a person's preference weights from what they chose, rated or rewrote, and what to ask next.

Nothing is kept: the answer's `weights` go into the person's next request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trimtab.decoders.protocols import Split
from trimtab.decoders.shared.gather import gather_or_cancel
from trimtab.preferences.bradley_terry import Person, Vector, choices_from_ratings, infer_person
from trimtab.rewards.turns import READINGS
from trimtab.runtime.usage import Usage
from trimtab.server.config import Config
from trimtab.server.errors import ApiError
from trimtab.server.http.context import Enquiry, Reader
from trimtab.server.http.score import MAX_RESPONSES, estimate, refuse_beside_prompt, score_texts
from trimtab.server.request.body import Json
from trimtab.server.request.messages import CHAT, COMPLETIONS
from trimtab.server.request.reward_tree import Spec, standardise_objective
from trimtab.server.scoring import RequestReward, Scoring
from trimtab.server.wording import explain_validation, suggest

MAX_ITEMS = 256
"""Comparisons, ratings, edits, and conversations to choose the next question from."""
ITEMS = ("comparisons", "edits", "ratings", "candidates")
"""Keys of what is about a conversation."""
TOOLS = ("tools", "tool_choice")
"""Keys beside messages, as in a chat request."""


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PromptBody(StrictModel):
    """Messages, with tools where there are any, or a bare prompt."""

    messages: list[dict[str, Any]] = Field(default=[], min_length=1)
    tools: list[Any] | None = None
    tool_choice: Any = None
    prompt: str = Field(default="", min_length=1)
    finished: bool = True
    """Whether the responses are whole, and not beginnings."""


class Comparison(PromptBody):
    chosen: str
    rejected: str


class Edit(PromptBody):
    before: str
    after: str


class Rating(PromptBody):
    response: str
    rating: float = Field(allow_inf_nan=False)


class Candidates(PromptBody):
    responses: list[str] = Field(min_length=2, max_length=32)


class Prior(StrictModel):
    """What is thought of a person before they choose: independent normal laws."""

    mean: dict[str, float] = {}
    std: float = Field(default=2.0, gt=0, le=1e3, allow_inf_nan=False)


class InferRequest(StrictModel):
    model: str = ""
    objectives: list[str] = Field(default=[], min_length=1, max_length=64)
    comparisons: list[Comparison] = Field(default=[], max_length=MAX_ITEMS)
    edits: list[Edit] = Field(default=[], max_length=MAX_ITEMS)
    ratings: list[Rating] = Field(default=[], max_length=MAX_ITEMS)
    candidates: list[Candidates] = Field(default=[], max_length=MAX_ITEMS)
    prior: Prior = Prior()


@dataclass(kw_only=True)
class InferEnquiry(Enquiry):
    request: InferRequest
    collected: dict[str, tuple[PromptBody, dict[str, None]]]
    """`collect_answers` of the request."""
    objectives: list[str]
    specs: tuple[Spec, ...]
    """[K], one for each objective"""
    scoring: Scoring
    splits: Mapping[str, Split]
    """By `conversation_key`."""
    max_tokens: int

    @classmethod
    def of(cls, document: Json, scoring: Scoring, reader: Reader) -> InferEnquiry:
        """Raises ApiError for what cannot be inferred from, and for too many answers."""
        request = parse_request(document)
        objectives = select_objectives(request, scoring.config)
        specs = tuple(standardise_objective(name, scoring.config) for name in objectives)
        for spec in specs:
            scoring.check(spec, {}, at="objectives")
        for key in ITEMS:
            for i, item in enumerate(getattr(request, key)):
                scoring.check_conversation(specs, CHAT, as_document(item), at=f"{key}.{i}.", written=True)
        max_tokens = reader.longest_answer(None)
        collected = collect_answers(request)
        conversations = [(as_document(item), list(texts)) for item, texts in collected.values()]
        return cls(
            name="infer",
            document=document,
            work=estimate(specs, conversations, scoring, reader, max_tokens),
            request=request,
            collected=collected,
            objectives=objectives,
            specs=specs,
            scoring=scoring,
            splits={key: reader.split_written(as_document(item)) for key, (item, _) in collected.items()},
            max_tokens=max_tokens,
        )

    async def answer(self) -> Json:
        """Weights of length 1 per objective, how sure they are, and of the candidates the pair that would tell most."""
        request, usage = self.request, self.run.usage
        mean = [request.prior.mean.get(name, 0.0) for name in self.objectives]
        answers = await ScoredAnswers.of(self, usage)

        def conclude() -> dict[str, Any]:
            person = infer_person(*answers.choices(request), mean_K=mean, std=request.prior.std)
            silent = ["nothing speaks for a direction: the weights are all equal"] if person.direction is None else []
            ask = answers.next(request.candidates, person)
            return {**describe(person, self.objectives), "ask": ask, "warnings": silent}

        return {
            "object": "alignment.weights",
            "model": self.scoring.config.model_name,
            **await asyncio.to_thread(conclude),
            "choices": len(request.comparisons) + len(request.edits) + max(len(request.ratings) - 1, 0),
            "scored_tokens": usage.scored,
        }


def parse_request(document: dict[str, Any]) -> InferRequest:
    """Raises ApiError naming the key."""
    parts: dict[str, type[StrictModel]] = {
        "comparisons": Comparison, "edits": Edit, "ratings": Rating, "candidates": Candidates, "prior": Prior,
    }  # fmt: skip
    try:
        request = InferRequest.model_validate(document)
    except ValidationError as error:
        model = parts.get(str(error.errors()[0]["loc"][0]), InferRequest)
        raise explain_validation(error, at="", fields=model.model_fields) from None
    for key in ITEMS:
        for i, item in enumerate(getattr(request, key)):
            if bool(item.messages) == bool(item.prompt):
                message = f"{key}.{i}: give either messages or prompt"
                raise ApiError(message, param=f"{key}.{i}.messages", code="missing_required_parameter")
            for name in TOOLS:
                if item.prompt and getattr(item, name) is not None:
                    raise refuse_beside_prompt(name, f"{key}.{i}.")
    return request


def select_objectives(request: InferRequest, config: Config) -> list[str]:
    """Raises ApiError for objectives that no reward scores, or that the prior names beside them."""
    scored = [name for name, objective in config.objectives.items() if objective.reward is not None]
    if not scored:
        raise ApiError("this server has no objective with a reward", param="objectives")
    for name in request.objectives:
        if name not in scored:
            raise ApiError(suggest("objective with a reward", name, scored), param="objectives")
    objectives = list(dict.fromkeys(request.objectives)) or scored
    for name, value in request.prior.mean.items():
        if name not in objectives:
            raise ApiError(suggest("objective", name, objectives), param=f"prior.mean.{name[:64]}")
        if not abs(value) <= 1e3:
            raise ApiError(f"prior.mean.{name} must lie in [-1000, 1000]; got {value:g}", param=f"prior.mean.{name}")
    return objectives


def collect_answers(request: InferRequest) -> dict[str, tuple[PromptBody, dict[str, None]]]:
    """conversation -> its body, and the different answers to it that there are; raises ApiError for too many."""
    collected: dict[str, tuple[PromptBody, dict[str, None]]] = {}
    for item, texts in (
        *((c, (c.chosen, c.rejected)) for c in request.comparisons),
        *((e, (e.before, e.after)) for e in request.edits),
        *((r, (r.response,)) for r in request.ratings),
        *((c, tuple(c.responses)) for c in request.candidates),
    ):
        collected.setdefault(conversation_key(item), (item, {}))[1].update(dict.fromkeys(texts))
    if (count := sum(len(texts) for _, texts in collected.values())) > MAX_RESPONSES:
        message = f"a request may hold {MAX_RESPONSES} different answers; this one has {count}"
        raise ApiError(message, param="candidates")
    return collected


def as_document(item: PromptBody) -> Json:
    if not item.messages:
        return {"prompt": item.prompt}
    return {"messages": item.messages} | {key: value for key in TOOLS if (value := getattr(item, key)) is not None}


class ScoredAnswers:
    """Rewards of every answer that a request holds, each scored once."""

    def __init__(self, rows: Mapping[tuple[str, str], Sequence[float]], k: int) -> None:
        self.rows = rows
        self.k = k

    @classmethod
    async def of(cls, enquiry: InferEnquiry, usage: Usage) -> ScoredAnswers:
        """Raises ApiError, and RewardError where a reward fails."""
        collected = enquiry.collected
        turns = asyncio.Semaphore(READINGS)

        async def score(item: PromptBody, texts: Sequence[str]) -> list[list[float]]:
            document = as_document(item)
            path = CHAT if item.messages else COMPLETIONS
            reward = RequestReward.of_document(
                path,
                document,
                scoring=enquiry.scoring,
                specs=enquiry.specs,
                given={},
                usage=usage,
                max_tokens=enquiry.max_tokens,
                split=enquiry.splits[conversation_key(item)],
                turns=turns,
            )
            return await score_texts(document, texts, reward, finished=item.finished)

        tables = await gather_or_cancel(score(item, list(texts)) for item, texts in collected.values())
        rows = {
            (k, text): row
            for (k, (_, texts)), table in zip(collected.items(), tables, strict=True)
            for text, row in zip(texts, table, strict=True)
        }
        return cls(rows, len(enquiry.specs))

    def choices(self, request: InferRequest) -> tuple[Vector, list[float]]:
        """[N, K] r(better) - r(worse), and [N] what each counts."""
        pairs: list[tuple[Sequence[float], Sequence[float], float]] = []
        pairs += [(self._row(c, c.chosen), self._row(c, c.rejected), 1.0) for c in request.comparisons]
        pairs += [(self._row(e, e.after), self._row(e, e.before), 1.0) for e in request.edits]
        rated = [self._row(r, r.response) for r in request.ratings]
        pairs += [
            (rated[i], rated[j], count) for i, j, count in choices_from_ratings([r.rating for r in request.ratings])
        ]
        differences = np.array([np.subtract(better, worse) for better, worse, _ in pairs]).reshape(-1, self.k)
        return differences, [count for *_, count in pairs]

    def next(self, candidates: Sequence[Candidates], person: Person) -> dict[str, Any] | None:
        """The pair of one conversation's answers whose comparison would tell most of the person."""
        places = [(i, a, b) for i, c in enumerate(candidates) for a, b in combinations(range(len(c.responses)), 2)]
        if not places:
            return None
        rows = [[self._row(c, text) for text in c.responses] for c in candidates]
        differences = np.array([np.subtract(rows[i][a], rows[i][b]) for i, a, b in places])
        nats = person.information(differences)
        best = int(np.argmax(nats))
        i, a, b = places[best]
        [p] = person.probability(differences[best : best + 1])
        return {"candidate": i, "responses": [a, b], "information_nats": float(nats[best]), "first_preferred": float(p)}

    def _row(self, item: PromptBody, text: str) -> Sequence[float]:
        return self.rows[conversation_key(item), text]


def conversation_key(item: PromptBody) -> str:
    return json.dumps([as_document(item), item.finished], sort_keys=True)


def describe(person: Person, objectives: Sequence[str]) -> dict[str, Any]:
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
