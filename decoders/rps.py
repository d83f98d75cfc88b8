"""Robust preference selection (RPS, arXiv 2510.20498): draw along a direction's neighbours too, choose by the direction
itself.

    v_1 … v_k within theta_max of v,    y_ij ~ pi(. | x, v_i),    y* = argmax_ij v . r(x, y_ij)                      (1)

with r the objectives' rewards in spreads of the base's own answers. A model obeys best where its training was dense, so
neighbours of a direction at the edge may serve it better than the direction itself. What carries v_i out (`over`):

| `prompts` | the preference prompt says v_i to the model that reads it (DPA)                             |
| `guides`  | the base times prod_j p_j^(alpha g_j max(v_ij, 0)), g_j the gain of objective j's guide      |
| `both`    | the model that reads the prompt, times the guides                                            |

The published code does not sample: it takes the five of {-40, -35 … 40} degrees nearest to the target
(`grid_reference`), so a target of 45 degrees is never asked for itself. `selection`: `argmax` is (1); `soft` draws y
with probability proportional to exp(v . r / lambda); `consensus` is ours: each v_i votes for argmax_y v_i . r(x, y),
and the answer with most votes is chosen, ties by v . r. All select by the target, never by a candidate's own direction.

`n` answers are the n best. Best so far: (1) over the answers that have ended.
Cost: k m answers drawn, k m scored. Directions that round to one prompt are drawn as one.
Neutral value: theta_max = 0 is best of k m under the target's prompt, and k = m = 1 with it `directional`, token for
token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from trimtab.decoders.protocols import (
    BASE,
    Chunk,
    Engine,
    Mixture,
    Reward,
    Sampling,
    Tokens,
    Work,
    reads_final_answer,
)
from trimtab.decoders.report import Report
from trimtab.decoders.shared.candidates import (
    Candidate,
    Guides,
    Vector,
    bound,
    check_answers,
    derive_seed,
    draw_cost,
    fill_up,
    make_generator,
    perturb,
    rank,
    score_as_drawn,
    select_scored,
    show_chosen,
)
from trimtab.decoders.shared.streams import merge
from trimtab.preferences.preference_direction import PreferenceDirection, Prompt, angle_between, choose_neighbours

STREAM = 2510_20498
SOFT = STREAM + 1


@dataclass(frozen=True, kw_only=True)
class Rps:
    """Answers under k directions around the target, and of these the one that the target itself prefers."""

    direction: PreferenceDirection
    k: Annotated[int, Field(ge=1, le=1024, description="directions")] = 5
    m: Annotated[int, Field(ge=1, le=1024, description="answers per direction")] = 1
    theta_max: Annotated[float, Field(ge=0, le=180, description="farthest direction, in degrees")] = 30.0
    mode: Annotated[
        Literal["sample", "grid_relative", "grid_reference"],
        Field(description="how directions are chosen: at random, a grid around the target, or the published code's"),
    ] = "sample"
    over: Annotated[Literal["prompts", "guides", "both"], Field(description="what carries a direction out")] = "prompts"
    alpha: Annotated[float, Field(ge=0, le=1e6, description="over guides: exponent at a share of 1, in gains")] = 1.0
    selection: Annotated[
        Literal["argmax", "soft", "consensus"], Field(description="how one of the answers is chosen")
    ] = "argmax"
    lambda_: Annotated[
        float,
        Field(alias="lambda", gt=0, le=1e6, description="for soft: temperature of v . r, in spreads of the rewards"),
    ] = 0.5
    prompt: Prompt = None
    guides: Guides = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.over != "guides" and self.direction.template is None:
            raise ValueError("this server has no preference prompt: params.over must be 'guides'")
        unguided = set(self.direction.objectives) - (self.direction.guides or {}).keys()
        if self.over != "prompts" and unguided:
            raise ValueError(f"params.over {self.over!r}: objective {min(unguided)!r} has no guide on this server")

    @property
    def mixture(self) -> Mixture:
        """The target's."""
        return self._mixture(np.array(self.direction.v))

    @property
    def farthest(self) -> Mixture:
        """The largest exponents that a direction can have."""
        pulls = (self.direction.guides or {}).values() if self.over != "prompts" else ()
        return {guide: self.alpha * gain for pull in pulls for guide, gain in pull.items()}

    async def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        check_answers(n, self.k * self.m)
        rng = make_generator(sampling.seed, STREAM)
        directions = choose_neighbours(self.direction, self.k, self.theta_max, rng, mode=self.mode)
        columns = Columns(reward)
        answers = self._drawn(prompt, directions, sampling, engine)
        pool = await score_as_drawn(prompt, answers, engine, columns, n=self.k * self.m)
        candidates, values = select_scored(pool)
        chosen, votes = candidates, Counter[int]()
        if self.selection == "soft":
            order = np.argsort(-perturb(values, self.lambda_, make_generator(sampling.seed, SOFT)), kind="stable")
            chosen = [candidates[i] for i in order]
        elif self.selection == "consensus":
            votes = Counter(self._votes(candidates, columns, directions))
            chosen = sorted(rank(candidates), key=lambda c: -votes[c.index])
        else:
            chosen = rank(candidates)  # (1)
        best = fill_up(chosen, pool, n)
        places = [self._place(c.index, directions) for c in pool]
        reports: list[Report] = [{"value": c.value, "candidate": c.index, **places[c.index]} for c in best]
        for report in reports:
            if votes and report["value"] is not None:
                report["votes"] = votes[report["candidate"]]
        async with aclosing(show_chosen(best, pool, include, reports, more=places)) as chunks:
            async for chunk in chunks:
                yield chunk

    def work(self, max_tokens: int, *, n: int, include: frozenset[str]) -> Work:
        work = draw_cost(self.k * self.m, max_tokens, guides=self.mixture)
        template = self.direction.template if self.over != "guides" else None
        return replace(
            work,
            instructed=self.k if template else 0,
            instruction_bytes=template.longest if template else 0,
            mixtures={**work.mixtures, "alpha": {BASE: 1.0, **self.farthest}},
            terms={"candidates": "k * m"},
        )

    async def _drawn(
        self, prompt: Tokens, directions: Sequence[Vector], sampling: Sampling, engine: Engine
    ) -> AsyncGenerator[Chunk, None]:
        """m answers per direction, the i-th direction's being i m … i m + m - 1."""
        together: dict[tuple[str, tuple[tuple[str, float], ...]], list[int]] = {}
        for i, v in enumerate(directions):
            template = self.direction.template if self.over != "guides" else None
            key = template.render(v) if template else "", tuple(sorted(self._mixture(v).items()))
            together.setdefault(key, []).append(i)
        streams = []
        for g, ((text, mixture), members) in enumerate(together.items()):
            instructed = prompt
            if text:
                assert self.direction.template is not None
                instructed = await engine.render_with_instruction(text, role=self.direction.template.role)
            seed = derive_seed(sampling.seed, STREAM, g) if g else sampling.seed
            whole = replace(sampling, stream=False, seed=seed)
            places = [i * self.m + j for i in members for j in range(self.m)]
            drawn = engine.generate(instructed, whole, n=len(places), guides=dict(mixture))
            streams.append(renumber(drawn, places))
        async with aclosing(merge(streams)) as chunks:
            async for chunk in chunks:
                yield chunk

    def _mixture(self, v: Vector) -> Mixture:
        mixture = {BASE: 1.0} if self.over == "guides" else dict(self.direction.reader_mixture)
        if self.over != "prompts":
            for objective, share in zip(self.direction.objectives, v, strict=True):
                for guide, gain in (self.direction.guides or {})[objective].items():
                    mixture[guide] = mixture.get(guide, 0.0) + self.alpha * gain * max(float(share), 0.0)
        return {**mixture, **self.guides}

    def _votes(self, candidates: Sequence[Candidate], columns: Columns, directions: Sequence[Vector]) -> list[int]:
        """[k] what each direction would choose; its ties go to what the target likes better."""
        if not candidates:
            return []
        rewards_NK = bound([columns.rows[c.tokens] for c in candidates])
        order = sorted(range(len(candidates)), key=lambda i: -rewards_NK[i, 0])
        best = [int(np.argmax(rewards_NK[order, 1:] @ v)) for v in directions]
        return [candidates[order[i]].index for i in best]

    def _place(self, index: int, directions: Sequence[Vector]) -> Report:
        v = directions[index // self.m]
        return {
            "direction": self.direction.by_objective(v),
            "degrees_from_target": round(angle_between(self.direction.v, v), 4),
        }


@dataclass
class Columns:
    """A reward of [N, 1 + d] as one of [N, 1], the first column; the whole rows are remembered."""

    reward: Reward
    rows: dict[tuple[int, ...], list[float]] = field(default_factory=dict)

    @property
    def reads_final_answer(self) -> bool:
        return reads_final_answer(self.reward)

    async def __call__(self, prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        scores = await self.reward(prompt, completions)
        self.rows.update((tuple(tokens), row) for tokens, row in zip(completions, scores, strict=True))
        return [row[:1] for row in scores]


async def renumber(chunks: AsyncGenerator[Chunk, None], places: Sequence[int]) -> AsyncGenerator[Chunk, None]:
    """Its i-th answer as the answer `places[i]`."""
    async with aclosing(chunks):
        async for chunk in chunks:
            yield replace(chunk, index=places[chunk.index])
