"""Cascade reward sampling, CARDS (arXiv 2406.16306): rejection sampling segment by segment, a segment being what the
model writes until it is uncertain.

    b = z_1 … z_m ~ pi(. | x, s),    m the first with  H(pi(. | x, s b)) >= entropy  or  m = block                   (1)
    rho(t) = r_0 + (target - r_0) min(t / rise, 1),    r_0 = r(x, the empty answer)                                  (2)
    s <- s b  where  u < exp((r(x, s b) - rho(|s b|)) / beta),    u ~ U[0, 1); else b is drawn again                 (3)

pi is the base or, with `guides`, their mixture; s the answer so far, |.| its length in tokens, and H the entropy of pi
before temperature, in nats. The cut of (1) lies before the uncertain token, which begins the next segment. r is the
reward, of a beginning as of a whole answer, or `prefix_reward` of a beginning. Of `tries` segments of which none was
accepted the one of the largest r stands, ties going to the first. At temperature 0 all would be the same: one is drawn.
Under a verifier a segment that `max_tokens` cuts is neither read nor accepted, and stands only if every try was cut.

A draw goes on behind a segment that is accepted, so that the answer is the request's own draw until one is rejected;
draws behind a rejection are of `block` tokens. `n` answers are independent. Best so far: the segments that stand, and
before the first of them the best that was seen. Streams each segment as it is accepted.
Cost: one score per segment drawn, and at the most `tries` segments drawn for each that stands. Entropies are a reading
of their own: of each draw behind a rejection, but of each chunk of the request's own draw.
Neutral value: tries = 1 is plain sampling, token for token; so is beta to infinity.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Annotated

import numpy as np
from pydantic import Field

from trimtab.decoders.protocols import (
    LIMIT_REASONS,
    Chunk,
    Engine,
    LimitReached,
    Reward,
    Sampling,
    Tokens,
    Work,
    base_alone,
    reads_final_answer,
)
from trimtab.decoders.report import Report
from trimtab.decoders.shared.blocks import Block, PartialAnswer, PrefixReward, score_beginnings
from trimtab.decoders.shared.candidates import Beta, Guides, derive_seed, make_generator, stop_position
from trimtab.decoders.shared.streams import merge

STREAM = 2406_16306


@dataclass(frozen=True, kw_only=True)
class Segments:
    """Segments that end where the model is uncertain, each drawn again until its reward is accepted."""

    entropy: Annotated[
        float, Field(ge=0, le=1000, description="a segment ends where the next token's reaches it, in nats")
    ] = 3.0
    block: Block = 32
    beta: Beta = 0.5
    target: Annotated[float, Field(ge=-1e6, le=1e6, description="reward from which on every segment is accepted")] = 1.0
    rise: Annotated[
        int, Field(ge=1, le=1_000_000, description="tokens over which the required reward rises to target")
    ] = 128
    tries: Annotated[int, Field(ge=1, le=4096, description="draws of a segment, at most; then their best stands")] = 8
    prefix_reward: PrefixReward = None
    guides: Guides = field(default_factory=base_alone)

    async def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        answers = [self._answer(i, prompt, sampling, engine, reward) for i in range(n)]
        async with aclosing(merge(answers)) as chunks:
            async for chunk in chunks:
                yield chunk

    def work(self, max_tokens: int, *, n: int, include: frozenset[str]) -> Work:
        """At the worst every segment is one token, that of the last try, and each try draws a whole block."""
        block = min(self.block, max_tokens)
        tried = self.tries * (block * max_tokens - block * (block - 1) // 2)
        begun = self.tries * max_tokens * (max_tokens - 1) // 2
        alone = self.tries == 1
        return Work(
            candidates=1,
            sampled=max_tokens if alone else max_tokens + tried,
            scored=0 if alone else max_tokens + tried,
            reward_tokens=max_tokens if alone else begun + tried,
            readings=1 if alone else self.tries * max_tokens,
            mixtures={"": self.guides},
        ).times(n)

    async def _answer(
        self, i: int, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward
    ) -> AsyncGenerator[Chunk, None]:
        tries = self.tries if sampling.temperature else 1
        growing = GrowingAnswer(
            strategy=self,
            prompt=prompt,
            sampling=replace(sampling, measured=tries > 1),
            engine=engine,
            reward=reward,
            tries=tries,
            rng=make_generator(sampling.seed, STREAM + i),
            seeds=(derive_seed(sampling.seed, i, k) if i or k else sampling.seed for k in count()),
        )
        answer, blocks = PartialAnswer(), 0
        try:
            while answer.finish is None:
                known = len(answer.tokens)
                answer = await growing.extend(answer)
                blocks += len(answer.tokens) > known
                report: Report = {}
                if answer.finish is not None:
                    if answer.value is None and answer.tokens:
                        with suppress(LimitReached):  # it stays without a value
                            [answer] = await score_beginnings(prompt, [answer], reward)
                    report = {"value": answer.value, "blocks": blocks, "proposals": growing.proposals}
                    report["acceptance_rate"] = growing.accepted / growing.proposals
                yield Chunk(index=i, tokens=answer.tokens[known:], finish=answer.finish, report=report)
        finally:
            await growing.close()


@dataclass(kw_only=True)
class GrowingAnswer:
    """How one answer is drawn, and what that took so far."""

    strategy: Segments
    prompt: Tokens
    sampling: Sampling
    engine: Engine
    reward: Reward
    tries: int
    rng: np.random.Generator
    seeds: Iterator[int | None]
    """Of its draws in turn."""
    segments: AsyncGenerator[PartialAnswer, None] | None = None
    """What the draw under way passes through; None: the next one begins another."""
    r_0: float | None = None
    proposals: int = 0
    accepted: int = 0

    async def extend(self, answer: PartialAnswer) -> PartialAnswer:
        """The answer with the next segment that stands, or as a budget or deadline leaves it."""
        best: PartialAnswer | None = None
        for _ in range(self.tries):
            if self.segments is None:
                self.segments = self.draw(answer)
            one = await anext(self.segments)
            self.proposals += 1
            if self.tries > 1 and one.finish in LIMIT_REASONS:
                left = answer if answer.tokens else best or one
                return replace(left, finish=left.finish or one.finish)
            stands = self.tries == 1 or len(one.tokens) == len(answer.tokens)  # there is nothing to compare
            if not stands and not (one.finish == "length" and reads_final_answer(self.reward)):
                try:
                    one = await self.score(one)
                except LimitReached as reached:
                    left = one if one.ended else answer if answer.tokens else best or one
                    return replace(left, finish=left.finish or str(reached))
                stands = self.rng.random() < self.chance(one)  # (3)
            if stands:
                self.accepted += 1
                return one
            if best is None or (one.value is not None and (best.value is None or one.value > best.value)):
                best = one
            await self.close()
        assert best is not None, "a segment was drawn"
        return best

    def chance(self, one: PartialAnswer) -> float:
        r_0 = self.r_0 or 0.0
        rho = r_0 + (self.strategy.target - r_0) * min(len(one.tokens) / self.strategy.rise, 1)  # (2)
        return math.exp(min((one.value or 0.0) - rho, 0) / self.strategy.beta)

    async def score(self, one: PartialAnswer) -> PartialAnswer:
        unscored = [one] if self.r_0 is not None else [one, PartialAnswer()]
        one, *empty = await score_beginnings(self.prompt, unscored, self.reward)
        if empty:
            self.r_0 = empty[0].value
        return one

    async def draw(self, answer: PartialAnswer) -> AsyncGenerator[PartialAnswer, None]:
        """What grows out of this beginning, segment by segment, until it ends."""
        strategy, sampling, engine = self.strategy, self.sampling, self.engine
        tokens, known, finish = list(answer.tokens), len(answer.tokens), answer.finish

        def grown() -> PartialAnswer:
            end = stop_position(tokens, known, sampling.stop, engine)
            return PartialAnswer(tokens=tuple(tokens[:end]), finish=finish if end is None else "stop")

        while finish is None:
            whole = self.proposals == 0  # the request's own draw, as far as it is followed
            left = sampling.max_tokens - len(tokens)
            limit = left if whole else min(strategy.block, left)
            part = replace(sampling, max_tokens=limit, stream=whole, seed=next(self.seeds), begun=len(tokens))
            full = len(tokens) + part.max_tokens
            async with aclosing(engine.generate([*self.prompt, *tokens], part, n=1, guides=strategy.guides)) as chunks:
                async for chunk in chunks:
                    entropies = chunk.entropies or (0.0,) * len(chunk.tokens)
                    for token, entropy in zip(chunk.tokens, entropies, strict=True):
                        length = len(tokens) - known
                        if length and (entropy >= strategy.entropy or length == strategy.block):  # (1)
                            yield grown()
                            known = len(tokens)
                        tokens.append(token)
                    finish = chunk.finish
                    if finish == "length" and len(tokens) == full < sampling.max_tokens:
                        finish = None
                    if finish is None and len(tokens) - known == strategy.block:
                        yield grown()
                        known = len(tokens)
        yield grown()

    async def close(self) -> None:
        """End the draw under way."""
        if self.segments is not None:
            await self.segments.aclose()
            self.segments = None
