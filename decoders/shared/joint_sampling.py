"""Negatively correlated sampling by prompt (Community Alignment, arXiv 2507.09650): several answers in one.

    z ~ q(. | x under INSTRUCTION(k)),   y_1 … y_k the parts of z                                                    (1)

q is the base or, with `guides`, their mixture. Asked to write k answers that follow different values, a base that obeys
makes them differ more than k draws do. ceil(N / k) of these are drawn side by side. A part is an answer to x itself:
its tokens are those of its text, and rewards read it under x. Where fewer parts came than were asked for, the rest are
drawn from q(. | x), and the response's warnings say how many. The wording is ours.

`max_tokens` bounds a part; z may have k times as many, and some for each heading.
Cost: as drawing N answers, and the instruction.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, final

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict  # of typing, pydantic takes it only from Python 3.12 on

from trimtab.decoders.protocols import Chunk, Engine, Mixture, Sampling, Tokens

INSTRUCTION = (
    "Write {k} different responses to the last message, each following other values than the rest, so that people who "
    "disagree about one may agree about another. Begin each with a line that says '# Response 1', '# Response 2' and "
    "so on, and write nothing but the responses."
)
HEADING = re.compile(r"^\W*response\W*\d+\W*$", re.IGNORECASE | re.MULTILINE)
HEADING_TOKENS = 16
"""Allowed for each heading."""


@final
class Jointly(TypedDict):
    """How a pool is drawn, several answers in one."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]

    together: Annotated[int, Field(ge=2, le=64, description="k, answers asked for in one; the paper has 4")]


def instruct(k: int) -> str:
    """What asks for k answers in one."""
    return INSTRUCTION.format(k=k)


def split_parts(text: str) -> list[str]:
    """What stands under the headings."""
    return [part.strip() for part in HEADING.split(text)[1:]]


def split_thoughts(completion: Tokens, engine: Engine) -> tuple[str, str]:
    """A completion's text up to its answer, marks of the thoughts' end included, and the answer: each of the answers in
    it is one behind these thoughts."""
    text, parts = engine.text(completion), engine.parts(completion)
    place = text.rfind(parts.answer) if parts.thoughts else 0
    return (text[:place], text[place:]) if place >= 0 else ("", parts.answer)


async def draw_jointly(
    prompt: Tokens, sampling: Sampling, engine: Engine, how: Jointly, *, n: int, guides: Mixture
) -> AsyncGenerator[Chunk, None]:
    """n answers, each one chunk; those drawn alone say so in their report. Raises ValueError for a bare prompt."""
    k = min(how["together"], n)
    whole = replace(sampling, max_tokens=k * (sampling.max_tokens + HEADING_TOKENS), stream=False)
    draws = -(-n // k)
    tokens: list[list[int]] = [[] for _ in range(draws)]
    finish = [""] * draws
    instructed = await engine.render_with_instruction(instruct(k))
    async with aclosing(engine.generate(instructed, whole, n=draws, guides=guides)) as chunks:
        async for chunk in chunks:
            tokens[chunk.index] += chunk.tokens
            finish[chunk.index] = chunk.finish or ""
    answers = [
        _answer(thoughts + part, finish[d] if j == len(sections) - 1 else "stop", sampling.max_tokens, engine)
        for d in range(draws)
        for thoughts, answer in [split_thoughts(tokens[d], engine)]
        for sections in [split_parts(answer)[:k]]
        for j, part in enumerate(sections)
        if part
    ][:n]
    for i, (ids, end) in enumerate(answers):
        yield Chunk(index=i, tokens=ids, finish=end)
    if missing := n - len(answers):
        alone = replace(sampling, stream=False)
        async with aclosing(engine.generate(prompt, alone, n=missing, guides=guides)) as chunks:
            async for chunk in chunks:
                yield replace(chunk, index=len(answers) + chunk.index, report={"alone": True})


def _answer(text: str, finish: str, max_tokens: int, engine: Engine) -> tuple[tuple[int, ...], str]:
    """A part's tokens, with an end of sequence where it ended by itself, and why it ended."""
    ids = tuple(engine.tokens(text))
    if finish == "stop":
        ids = (*ids, min(engine.eos_ids))
    return (ids[:max_tokens], "length") if len(ids) > max_tokens else (ids, finish)
