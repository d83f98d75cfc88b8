from __future__ import annotations

import asyncio
from typing import Any

from trimtab.rewards import KINDS
from trimtab.rewards.protocols import Question, Response, Scorer


def question(text: str = "Well?", **fields: Any) -> Question:
    return Question(messages=({"role": "user", "content": text},), prompt=(9,), given=fields)


def response(text: str, tokens: tuple[int, ...] = ()) -> Response:
    return Response(text=text, tokens=tokens)


def scores(scorer: Scorer, *texts: str, **fields: Any) -> list[float]:
    """The one column, for a test that is no coroutine."""
    return [score for [score] in asyncio.run(rows(scorer, *texts, **fields))]


async def rows(scorer: Scorer, *texts: str, **fields: Any) -> list[list[float]]:
    return await scorer(question(**fields), [response(text) for text in texts])


def rule(kind: str, **params: Any) -> Scorer:
    """As a server's config builds it."""
    scorer: Scorer = KINDS[kind].build(params)
    return scorer
