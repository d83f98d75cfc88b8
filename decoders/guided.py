"""Guided decoding: next tokens from a product of language models, one exponent each.

    z_t = sum_i w_i log p_i(. | x, y_<t),    y_t ~ softmax(z_t / T)                                                 (1)

One kernel, many papers; they differ only in what w is:

| function        | paper             | mixture                                            |
|-----------------|-------------------|----------------------------------------------------|
| `genarm`        | arXiv 2410.08193  | base: 1, ARM_i: alpha * w_i (= 1 / beta_i)          |
| `dera`          | arXiv 2402.02992  | base: 1 - lambda, aligned: lambda                   |
| `mod`           | arXiv 2406.18853  | aligned_i: w_i, sum w_i = 1, reverse KL             |
| `proxy_tuning`  | arXiv 2401.08565  | base: 1, expert: alpha, antiexpert: -alpha          |
| `contrastive`   | arXiv 2210.15097  | base: 1, amateur: -1, on the plausible tokens only  |

Sampled this way, a sequence is *not* a draw from p_base prod_i p_i^w_i / Z, because (1) is normalised at each step:

    Z_t = sum_z p_base(z) prod_i p_i(z)^w_i,    log Z_t = sum_i w_i log p_i(y_t) - log q(y_t)                       (2)

with q the mixture. Weighting each sample by prod_t Z_t makes it one, and the trace gives that weight.
Cost: one token of every member per token shown; a trace scores each answer once per member and twice more.
Neutral value: no guides, or every exponent 0, is the base, token for token.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from trimtab.decoders.protocols import (
    BASE,
    Chunk,
    Engine,
    LimitReached,
    Mixture,
    Reward,
    Sampling,
    Tokens,
    Work,
    member_alone,
)
from trimtab.decoders.registry import NamesModel
from trimtab.decoders.shared.gather import gather_or_cancel


@dataclass(frozen=True, kw_only=True)
class Guided:
    """Any mixture: log p_base + sum_i w_i log p_i, the exponents as they stand."""

    guides: Annotated[Mixture, Field(description="exponent w per guide; the base's is 1 unless it is named too")]
    plausibility: Annotated[
        float, Field(ge=0, le=1, description="draw only tokens with p_base >= plausibility * max p_base; 0 is off")
    ] = 0.0

    @property
    def mixture(self) -> Mixture:
        return {BASE: 1.0, **self.guides}

    async def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        sampling = replace(sampling, plausibility=self.plausibility)
        answers: list[list[int]] = [[] for _ in range(n)]
        last: list[Chunk] = []
        async with aclosing(engine.generate(prompt, sampling, n=n, guides=self.mixture)) as chunks:
            async for chunk in chunks:
                if "trace" not in include:
                    yield chunk
                    continue
                answers[chunk.index] += chunk.tokens
                if chunk.finish:
                    last.append(chunk)
                else:
                    yield chunk
        for chunk in await gather_or_cancel(self._traced(c, prompt, answers[c.index], sampling, engine) for c in last):
            yield chunk

    def work(self, max_tokens: int, *, n: int, include: frozenset[str]) -> Work:
        traced = 2 + len(self.mixture) if "trace" in include else 0
        return Work(candidates=n, sampled=n * max_tokens, scored=n * max_tokens * traced, mixtures={"": self.mixture})

    async def _traced(self, last: Chunk, prompt: Tokens, answer: Tokens, sampling: Sampling, engine: Engine) -> Chunk:
        """The answer's last chunk with its trace, unless the deadline passes first."""
        try:
            trace = await self._trace(prompt, answer, sampling, engine)
        except LimitReached:
            return last
        return replace(last, report={**last.report, "trace": trace})

    async def _trace(self, prompt: Tokens, answer: Tokens, sampling: Sampling, engine: Engine) -> dict[str, Any]:
        """Per token of `tokens`: `kl_exact`, KL(q || base), and log Z_t, in nats; `log_weight` = sum_t log Z_t.

        Both are of the mixture itself, at temperature 1. `log_weight` is null where tokens were drawn otherwise, since
        (2) is then not the weight of the draw.
        """
        members = {m: w for m, w in self.mixture.items() if w}
        kl, drawn, *scores = await gather_or_cancel(
            [
                engine.divergence(prompt, answer, guides=self.mixture),
                engine.score(prompt, answer, guides=self.mixture),
                *(engine.score(prompt, answer, guides=member_alone(m)) for m in members),
            ]
        )
        weighted = [[w * logprob for logprob in score] for w, score in zip(members.values(), scores, strict=True)]
        log_z = [sum(step) - q for step, q in zip(zip(*weighted, strict=True), drawn, strict=True)]  # (2)
        weight = sum(log_z) if sampling.exact else None
        return {"tokens": list(answer), "kl_exact": kl, "log_z": log_z, "log_weight": weight}


Exponent = Annotated[float, Field(description="how far the guide pulls; 0 is the base")]
Member = Annotated[str, Field(description="a guide that is a model or an adapter, by name"), NamesModel()]


def add_exponents(*terms: tuple[str, float]) -> Mixture:
    """Each member's exponents summed: a paper's model may be the base too."""
    total: dict[str, float] = {}
    for member, w in terms:
        total[member] = total.get(member, 0.0) + w
    return total


def genarm(
    *,
    guides: Annotated[Mixture, Field(description="preference weight per autoregressive reward model")],
    alpha: Exponent = 1.0,
) -> Guided:
    """GenARM, one or many objectives: log p_base + alpha sum_i w_i log p_i, with alpha = 1 / beta."""
    return Guided(guides={guide: alpha * w for guide, w in guides.items()})


def dera(
    *,
    aligned: Member,
    lambda_: Annotated[float, Field(alias="lambda", description="0 is the base, 1 the aligned model, above 1 beyond")],
) -> Guided:
    """Decoding-time realignment: (1 - lambda) log p_base + lambda log p_aligned; beta becomes beta / lambda."""
    return Guided(guides=add_exponents((BASE, 1 - lambda_), (aligned, lambda_)))


def mod(*, guides: Annotated[Mixture, Field(description="weight per aligned model; they sum to 1")]) -> Guided:
    """Multi-objective decoding, reverse KL: sum_i w_i log p_i over aligned models, without the base.

    Raises ValueError unless the weights sum to 1.
    """
    if abs(math.fsum(guides.values()) - 1) > 1e-6:
        raise ValueError(f"guides must sum to 1 under 'mod'; these sum to {math.fsum(guides.values()):g}")
    return Guided(guides={BASE: 0.0, **guides})


def proxy_tuning(*, expert: Member, antiexpert: Member, alpha: Exponent = 1.0) -> Guided:
    """Proxy tuning: log p_base + alpha (log p_expert - log p_antiexpert).

    Raises ValueError for one guide in both places.
    """
    if expert == antiexpert:
        raise ValueError("expert and antiexpert must be two guides")
    return Guided(guides=add_exponents((BASE, 1.0), (expert, alpha), (antiexpert, -alpha)))


def contrastive(
    *,
    amateur: Member,
    alpha: Annotated[float, Field(ge=0, le=1, description="plausibility: p_base >= alpha * max p_base")] = 0.1,
) -> Guided:
    """Contrastive decoding, the base as the expert: log p_base - log p_amateur on the plausible tokens only."""
    return Guided(guides=add_exponents((BASE, 1.0), (amateur, -1.0)), plausibility=alpha)
