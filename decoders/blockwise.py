"""Blockwise controlled decoding (arXiv 2310.17022): of K ways to go on for M tokens, the one that promises most.

    b_1 … b_K ~ pi(. | x, s), each of at most M tokens;    s <- s b*,    b* = argmax_i V(x, s b_i)                   (1)

pi is the base or, with `guides`, their mixture, and V the reward, of a beginning as of a whole answer: best a value
head trained to foretell it. With `beta` b* is drawn from softmax(V / beta) instead; for V the exact soft value of the
beginnings (of r at beta) and K -> infinity that draws from pi(y) exp(r / beta) / Z, whatever M.

Ties go to the block drawn first. Under a verifier blocks that `max_tokens` cut count only where no other was drawn.
`n` answers are searched for independently. Best so far: the blocks chosen, and of a block cut short whichever of K
ended or, if none did, promises most; before the first of them was scored, the first drawn. Streams each block as it is
chosen.
Cost: K tokens drawn per token, K scores per block. KL(y || pi) <= blocks * (log K - (K - 1) / K).
Neutral value: n = 1 is plain sampling, and M >= max_tokens best of n, both token for token.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
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
from trimtab.decoders.shared.blocks import (
    Block,
    PartialAnswer,
    PrefixReward,
    Step,
    drop_unread,
    expand,
    expansion_cost,
    rank,
)
from trimtab.decoders.shared.candidates import Guides, Pool, derive_seed, make_generator, softmax
from trimtab.decoders.shared.streams import merge

STREAM = 2310_17022


@dataclass(frozen=True, kw_only=True)
class Blockwise:
    """An answer of blocks, each the best of n by the reward of the answer up to it."""

    n: Pool = 4
    block: Block = 16
    step: Step = ""
    prefix_reward: PrefixReward = None
    beta: Annotated[
        float, Field(ge=0, le=1e6, description="draw a block by softmax(reward / beta); 0 takes the best")
    ] = 0.0
    guides: Guides = field(default_factory=base_alone)

    async def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        answers = [self._answer(i, prompt, sampling, engine, reward) for i in range(n)]
        async with aclosing(merge(answers)) as chunks:
            async for chunk in chunks:
                yield chunk

    def work(self, max_tokens: int, *, n: int, include: frozenset[str]) -> Work:
        alone = self.n == 1
        block, step = (max_tokens, "") if alone else (self.block, self.step)
        return expansion_cost(self.n, max_tokens, block, step, guides=self.guides).times(n)

    async def _answer(
        self, i: int, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward
    ) -> AsyncGenerator[Chunk, None]:
        rng = make_generator(sampling.seed, STREAM + i)
        block = self.block if self.n > 1 else sampling.max_tokens
        answer, blocks, finish = PartialAnswer(), 0, None
        while finish is None:
            prefix_length = len(answer.tokens)
            partials, finish = await expand(
                prompt,
                [answer],
                sampling,
                engine,
                reward,
                n=self.n,
                block=block,
                step=self.step if self.n > 1 else "",
                guides=self.guides,
                seeds=[derive_seed(sampling.seed, i, prefix_length) if i or prefix_length else sampling.seed],
            )
            scored = [one for one in drop_unread(partials, reward) if one.value is not None]
            if scored:
                answer, blocks = self._chosen(rank(scored)[:1] if finish else scored, rng), blocks + 1
                finish = answer.finish or finish
            else:  # cut, or the context has no room for a token
                answer = next(iter(rank(one for one in [answer, *partials] if one.tokens)), partials[0])
                finish = answer.finish or finish
            report: Report = {}
            if finish is not None:
                report = {"value": answer.value, "blocks": blocks}
                if not self.beta:
                    report["kl_bound"] = blocks * (math.log(self.n) - (self.n - 1) / self.n)
            yield Chunk(index=i, tokens=answer.tokens[prefix_length:], finish=finish, report=report)

    def _chosen(self, blocks: list[PartialAnswer], rng: np.random.Generator) -> PartialAnswer:
        values = [one.value or 0.0 for one in blocks]
        if self.beta:
            return blocks[int(rng.choice(len(blocks), p=softmax(values, self.beta)))]
        return blocks[int(np.argmax(values))]  # (1)
