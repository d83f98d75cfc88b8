"""Directional preference alignment (DPA, arXiv 2402.18571): a direction in reward space, as a prompt to a model
that obeys it.

    y ~ pi(. | x under s(v)),    v = w / |w|                                                                         (1)

s(v) is the server's preference prompt with v in its slots, and pi the member trained to read it, or the base. With the
published template, v = (cos theta, sin theta) over helpfulness and verbosity is told as round(100 v), and theta lies
within 45 degrees. `guides` multiply pi as in guided decoding.

Cost: a token drawn per token shown. What the prompt says before the client's own words is the same for all requests of
one direction, and comes from the prefix cache as far as it fills whole blocks of it.
Neutral value: none, for to say nothing is another prompt; the preference prompt written by hand and plain sampling give
the same answer, token for token.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import Field

from trimtab.decoders.protocols import Chunk, Engine, Mixture, Reward, Sampling, Tokens, Work
from trimtab.preferences.preference_direction import PreferenceDirection, Prompt

Guides = Annotated[Mixture, Field(description="exponent per guide that the answers are drawn with as well")]


@dataclass(frozen=True, kw_only=True)
class Directional:
    """A direction in reward space, as a prompt to a model that was trained to obey it."""

    direction: PreferenceDirection
    prompt: Prompt = None
    guides: Guides = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.direction.template is None:
            raise ValueError("this server has no preference prompt to say a direction with")

    @property
    def mixture(self) -> Mixture:
        return {**self.direction.reader_mixture, **self.guides}

    async def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        assert self.direction.template is not None
        text = self.direction.template.render(self.direction.v)
        instructed = await engine.render_with_instruction(text, role=self.direction.template.role)
        async with aclosing(engine.generate(instructed, sampling, n=n, guides=self.mixture)) as chunks:  # (1)
            async for chunk in chunks:
                yield replace(chunk, report={"preference_prompt": text}) if chunk.finish else chunk

    def work(self, max_tokens: int, *, n: int, include: frozenset[str]) -> Work:
        assert self.direction.template is not None
        return Work(
            candidates=n,
            sampled=n * max_tokens,
            instructed=1,
            instruction_bytes=self.direction.template.longest,
            mixtures={"": self.mixture},
        )
