"""Majority and weighted vote, self-consistency (arXiv 2203.11171): draw N responses, return one of those that give the
answer given most often.

    a* = argmax_a sum_{i: a(y_i) = a} v_i,    y_1 … y_N ~ pi                                                         (1)

pi is the base or, with `guides`, their mixture; a(y) is read off the response's answer, or its calls of
tools, by `extractor`.

| `weighting` | v_i                                            | from                              |
|-------------|------------------------------------------------|-----------------------------------|
| uniform     | 1, and no reward is asked                      | self-consistency                  |
| softmax     | exp(r_i / beta) / sum_j exp(r_j / beta)        | QAlign's weighted vote, 2504.03790 |
| reward      | r_i as it stands; for rewards that are not < 0 | search-and-learn                  |

Responses without an answer form no class and have no vote, and where some ended by themselves, nor have those cut at
`max_tokens`: `unfinished` counts them. Shown is the best response of the winning class by reward,
the first where there is none. Ties between classes go to the one whose first response was drawn first. `n` answers are
one from each of the n best classes; where there are fewer classes, the best of the remaining responses follow, since
whether candidates differ is not for the client to know. Where no response has an answer, the best one by reward, or the
first, is shown, with `extracted` 0. Best so far: the vote of the responses that have ended.
Cost: N responses drawn, and N scored unless uniform.
Neutral value: N = 1 is plain sampling, token for token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from math import fsum
from typing import Annotated, Literal

from pydantic import Field

from trimtab.decoders.protocols import (
    Chunk,
    Engine,
    Reward,
    Sampling,
    Tokens,
    Work,
    base_alone,
)
from trimtab.decoders.report import Report
from trimtab.decoders.shared.answers import Extractor, make_reader
from trimtab.decoders.shared.candidates import (
    Beta,
    Candidate,
    Guides,
    Pool,
    PoolMethod,
    bound,
    check_answers,
    draw,
    draw_cost,
    fill_up,
    rank,
    select_finished,
    select_scored,
    show_chosen,
    softmax,
)


@dataclass(frozen=True, kw_only=True)
class Vote:
    """The answer that most of n candidates give, each with one vote or as many as its reward is worth."""

    n: Pool = 16
    extractor: Annotated[
        Extractor,
        Field(
            description='what a candidate answers: "number", "answer" (a number, a letter or words), each read as the '
            'verifier reads it, "text" (all of it), {"regex": …}, {"json": path}; or the tools that it calls, '
            '"tool_call" (names and arguments) or {"tool_call": "name"}'
        ),
    ] = "number"
    weighting: Annotated[
        Literal["uniform", "softmax", "reward"],
        Field(description="a candidate's vote: 1, exp(reward / beta) or reward"),
    ] = "uniform"
    beta: Beta = 1.0
    guides: Guides = field(default_factory=base_alone)
    diverse: PoolMethod = None

    def __post_init__(self) -> None:
        make_reader(self.extractor)

    async def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        check_answers(n, self.n)
        scorer = None if self.weighting == "uniform" else reward
        pool = await draw(prompt, sampling, engine, scorer, n=self.n, guides=self.guides, diverse=self.diverse)
        answers = await self._answers(pool, engine)
        classes: dict[str, list[Candidate]] = {}
        for candidate in pool:
            if candidate.index in answers:
                classes.setdefault(answers[candidate.index], []).append(candidate)
        votes = self._votes([c for c in pool if c.index in answers])
        totals = {a: fsum(votes.get(c.index, 0.0) for c in members) for a, members in classes.items()}
        winners = sorted(classes, key=lambda a: -totals[a])  # (1), stable: a tie stays in the order drawn
        chosen = fill_up([rank(classes[a])[0] for a in winners], pool, n)

        def report(candidate: Candidate) -> Report:
            report: Report = {"value": candidate.value, "candidate": candidate.index, "extracted": len(answers)}
            if (answer := answers.get(candidate.index)) is not None:
                share = len(classes[answer]) / len(answers)
                report.update({"answer": answer, "share": share, "votes": totals[answer]})
            return report

        ballots = [
            {"answer": answers[c.index], "vote": votes.get(c.index, 0.0)} if c.index in answers else {} for c in pool
        ]
        async with aclosing(show_chosen(chosen, pool, include, [report(c) for c in chosen], more=ballots)) as chunks:
            async for chunk in chunks:
                yield chunk

    def work(self, max_tokens: int, *, n: int, include: frozenset[str]) -> Work:
        work = draw_cost(self.n, max_tokens, self.diverse, guides=self.guides)
        return replace(work, reward_tokens=0) if self.weighting == "uniform" else work

    async def _answers(self, pool: Sequence[Candidate], engine: Engine) -> dict[int, str]:
        """candidate -> a(y), of those that have one."""
        voters, read = select_finished(pool), make_reader(self.extractor)
        completions = [engine.parts(c.tokens) for c in voters]
        report = await asyncio.to_thread(lambda: [read(parts) for parts in completions])  # many may take a while
        return {c.index: answer for c, answer in zip(voters, report, strict=True) if answer is not None}

    def _votes(self, voters: Sequence[Candidate]) -> dict[int, float]:
        """candidate -> v_i, of those that were scored where that takes a reward."""
        if self.weighting == "uniform":
            return {c.index: 1.0 for c in voters}
        voters, rewards = select_scored(voters)
        weights = softmax(rewards, self.beta) if self.weighting == "softmax" else bound(rewards)
        return {c.index: v for c, v in zip(voters, weights.tolist(), strict=True)}
