"""Transfer Q* (arXiv 2405.20495): the next token by what an already aligned baseline would make of it.

    pi(z | s) ~ pi_sft(z | s) exp(Q(s z) / alpha),    Q(s z) from tau_1 … tau_M ~ rho_BL(. | x, s z)                (1)

pi_sft is the base or, with `guides`, their mixture; rho_BL is `baseline`, another mixture of the served members (an
aligned twin alone: {"twin": 1}). A rollout has at most `horizon` tokens, and what comes of it is scored as it stands;
none is drawn behind an end of sequence. With r_m the reward of the whole, s z tau_m:

| `value`    | Q                                              |                                                      |
|------------|------------------------------------------------|------------------------------------------------------|
| `mean`     | mean_m r_m                                     | direct transfer: the baseline is aligned to r        |
| `transfer` | sum_m w_m r_m, w = softmax((r_m - r'_m) / beta) | indirect: it is aligned to r', `baseline_reward`      |
| `soft`     | beta log mean_m exp(r_m / beta)                | with alpha = beta, M -> infinity, rho_BL = pi_sft and |
|            |                                                | no horizon (1) draws from pi_sft exp(r / beta) / Z   |

Neither `mean` nor `transfer` draws from that law, whatever the baseline: they go beyond it. `beta` is alpha unless said
otherwise. The authors' setting is `value: mean`, temperature 0, k = 10, horizon 20, one greedy rollout.

What makes it cheaper, each off by default and each an approximation: `min_p` leaves out unlikely candidates, and where
one is left, looks no further; `block` decides that many tokens at a time, those behind a candidate drawn from pi_sft.
With `rollout_temperature` 0 the chosen candidate's rollout is also that of the token it begins with, at the next
position, so it is carried on and not drawn again. A sampled one is not kept: chosen for what it was worth, it would
flatter that token.

Best so far: the tokens decided. Streams them as they are.
Cost per token: k M rollouts of `horizon` tokens, and as many scores.
Neutral value: k = 1 is greedy decoding of pi_sft; alpha -> infinity is top-k sampling of it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

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
    base_alone,
)
from trimtab.decoders.registry import NamesReward
from trimtab.decoders.shared.candidates import Guides, bound, derive_seed, softmax, temper
from trimtab.decoders.shared.rollouts import Answer, roll_out
from trimtab.decoders.shared.tokenwise import Block, Likeliest, MinP, Tokenwise, decision_cost

ROLLOUT = 1
"""Of the seeds, what tells rollouts from other draws at the same place."""


@dataclass(frozen=True, kw_only=True)
class TransferQ:
    """The next token by the reward of what an aligned baseline model would go on to say."""

    k: Likeliest = 10
    alpha: Annotated[float, Field(gt=0, le=1e6, description="temperature of the values, in the reward's units")] = 1.0
    value: Annotated[
        Literal["mean", "transfer", "soft"], Field(description="what the rewards of the rollouts come to")
    ] = "mean"
    beta: Annotated[
        float | None,
        Field(gt=0, le=1e6, description="temperature of transfer's weights and of soft's mean; alpha if not given"),
    ] = None
    baseline: Annotated[
        Mixture, Field(min_length=1, description="exponent per member that rollouts are drawn with")
    ] = field(default_factory=base_alone)
    baseline_reward: Annotated[
        Any, NamesReward(), Field(description="for transfer: what the baseline is aligned to, written as `reward` is")
    ] = None
    rollouts: Annotated[int, Field(ge=1, le=1024, description="M, per candidate")] = 1
    horizon: Annotated[
        int | None, Field(ge=0, le=1_000_000, description="longest rollout, tokens; none goes to the end of the answer")
    ] = 20
    rollout_temperature: Annotated[float, Field(ge=0, le=2, description="0 is greedy")] = 1.0
    min_p: MinP = 0.0
    block: Block = 1
    guides: Guides = field(default_factory=base_alone)

    def __post_init__(self) -> None:
        if (self.value == "transfer") != (self.baseline_reward is not None):
            raise ValueError('value "transfer" and baseline_reward go together: one was given without the other')
        if self.value == "transfer" and self.rollouts == 1:
            raise ValueError('value "transfer" weighs rollouts against each other; rollouts must be at least 2')
        if self.rollouts > 1 and self.rollout_temperature == 0:
            raise ValueError("rollouts above 1 need a rollout_temperature above 0: greedy ones are all the same")

    @property
    def rollout_mixture(self) -> Mixture:
        """rho_BL: the members that `baseline` names, and no other."""
        return {BASE: 0.0, **self.baseline}

    def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        greedy = self.rollout_temperature == 0
        ahead = replace(sampling, temperature=self.rollout_temperature, top_k=0, top_p=1.0)
        length = sampling.max_tokens if self.horizon is None else self.horizon
        known: dict[int, list[Answer]] = {}
        """The greedy rollouts of an answer's last decision."""

        async def worth(i: int, at: int, beginnings: Sequence[Answer]) -> list[tuple[float, float | None]]:
            begun = [
                next((whole for whole in known.get(i, ()) if whole[: len(answer)] == answer), answer)
                for answer in beginnings
            ]
            drawn = await roll_out(
                prompt,
                begun,
                ahead,
                engine,
                n=self.rollouts,
                limits=[len(answer) + length for answer in beginnings],
                guides=self.rollout_mixture,
                seeds=[derive_seed(sampling.seed, i, at, j, ROLLOUT) for j in range(len(begun))],
            )
            if greedy:
                known[i] = [answer for [answer] in drawn]
            rows = iter(await reward(prompt, [answer for answers in drawn for answer in answers]))
            rewards = [[next(rows) for _ in answers] for answers in drawn]
            scores = [
                r[0][0] if answers == [beginning] else None
                for r, answers, beginning in zip(rewards, drawn, beginnings, strict=True)
            ]
            return list(zip(map(self.q, rewards), scores, strict=True))

        search = Tokenwise(
            k=self.k,
            alpha=self.alpha,
            min_p=self.min_p,
            block=self.block,
            guides=self.guides,
            worth=worth,
            exact=greedy or length == 0,
        )
        return search.answers(prompt, sampling, engine, reward, n=n, include=include)

    def work(self, max_tokens: int, *, n: int, include: frozenset[str]) -> Work:
        horizon = max_tokens if self.horizon is None else self.horizon
        return decision_cost(
            max_tokens,
            k=self.k,
            min_p=self.min_p,
            block=self.block,
            rollouts=self.rollouts,
            horizon=horizon,
            n=n,
            mixtures={"": self.guides, "baseline": self.rollout_mixture},
        )

    def q(self, rows: Sequence[Sequence[float]]) -> float:
        """Q of (1) from the rewards [M, 1] of the rollouts, [M, 2] with the baseline's for transfer."""
        columns = bound(rows)
        if columns.shape[1] != (2 if self.value == "transfer" else 1):
            raise ValueError(f"value {self.value!r} cannot choose by {columns.shape[1]} rewards")
        r = columns[:, 0]
        beta = self.beta or self.alpha
        if self.value == "mean":
            return float(r.mean())
        if self.value == "transfer":
            return float(softmax((r - columns[:, 1]).tolist(), beta) @ r)
        return float(r.max() + beta * np.log(np.mean(np.exp(temper(r.tolist(), beta)))))
