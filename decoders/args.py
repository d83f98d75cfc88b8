"""ARGS (arXiv 2402.01694): the next token by the reward of the answer up to it.

    z ~ softmax over the k likeliest of [log pi(z | x, s) + weight * r(x, s z)]                                      (1)

pi is the base or, with `guides`, their mixture; the request's temperature acts on (1), and 0 takes the best of it, as
the authors' greedy variant does. With a reward that foretells what a beginning will be worth, such as a value head, (1)
is tokenwise controlled decoding (arXiv 2310.17022); one of whole answers reads each beginning as if it were one.

Best so far: the tokens decided. Streams them as they are.
Cost per token: one token, and k beginnings scored.
Neutral value: weight = 0 is top-k sampling of pi, and greedy decoding at temperature 0.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

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
from trimtab.decoders.shared.candidates import Guides, score_all
from trimtab.decoders.shared.rollouts import Answer
from trimtab.decoders.shared.tokenwise import Likeliest, MinP, Tokenwise, decision_cost


@dataclass(frozen=True, kw_only=True)
class Args:
    """The next token by the base's log-probability and the reward of the answer so far."""

    k: Likeliest = 10
    weight: Annotated[float, Field(ge=0, le=1e6, description="of the reward against the log-probability")] = 1.0
    min_p: MinP = 0.0
    guides: Guides = field(default_factory=base_alone)

    def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:

        async def worth(i: int, at: int, beginnings: Sequence[Answer]) -> list[tuple[float, float | None]]:
            return [(self.weight * r, r) for r in await score_all(reward, prompt, beginnings)]

        search = Tokenwise(worth=worth, k=self.k, alpha=1.0, min_p=self.min_p, guides=self.guides)
        return search.answers(prompt, sampling, engine, reward, n=n, include=include)

    def work(self, max_tokens: int, *, n: int, include: frozenset[str]) -> Work:
        return decision_cost(max_tokens, k=self.k, min_p=self.min_p, n=n, mixtures={"": self.guides})
