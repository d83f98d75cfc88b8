"""The identity strategy: answers of the frozen model as they are."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from trimtab.decoders.protocols import BASE, Chunk, Engine, Reward, Sampling, Tokens, Work


@dataclass(frozen=True, kw_only=True)
class Plain:
    """y ~ p_base(. | x)."""

    def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        return engine.generate(prompt, sampling, n=n, guides={BASE: 1})

    def work(self, max_tokens: int, *, n: int, include: frozenset[str]) -> Work:
        return Work(candidates=n, sampled=n * max_tokens)
