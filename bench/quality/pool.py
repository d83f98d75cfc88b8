"""Pools of answers that are drawn once and chosen from many times: proxies, gold, and means over subsets.

Of M answers ranked by a proxy, the one of rank i (1 the worst) is the best of a random subset of N with probability

    C(i - 1, N - 1) / C(M, N)                                                                                        (1)
"""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openai import AsyncOpenAI

from trimtab.recipes.corpus import DOMAINS, Prompt, heldout_prompts
from trimtab.recipes.gold import GOLD
from trimtab.rewards.combine import Combine, Mean, Min, Uwo, Weighted

OBJECTIVE, OTHER = "helpfulness", "brevity"
AT_ONCE = 64
"""Answers scored by one request."""

FINAL = r"Answer: (-?\d+)"
"""The pattern of a word problem's answer."""

SUBSETS = 200
"""Random subsets per prompt and N, where the mean over all of them has no closed form."""

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Pool:
    """M answers of the base to one prompt: gold by objective, and each proxy's values."""

    prompt: Prompt
    texts: Sequence[str]
    tokens: float
    """Mean per answer."""
    gold: Mapping[str, Vector]
    raw: Mapping[str, Vector]
    """Scores of the server by name."""
    proxies: Mapping[str, Vector]


def best_of(values: Vector, other: Vector, n: int) -> float:
    """The mean, over all subsets of n, of `other` at the largest of `values`; the first drawn wins a tie."""
    m = len(values)
    order = np.lexsort((-np.arange(m), values))  # worst first; of equals the first drawn last
    log_c = np.array([_log_choose(i, n - 1) for i in range(m)]) - _log_choose(m, n)
    return float(np.exp(log_c) @ other[order])  # (1)


def vote_accuracy(pool: Pool, weight: Vector, n: int, rng: random.Random) -> float:
    """Share of random subsets of n whose weighted vote is right."""
    answers = [numbers[-1] if (numbers := re.findall(FINAL, text)) else None for text in pool.texts]
    right = 0
    for _ in range(SUBSETS):
        count: Counter[str] = Counter()
        for i in rng.sample(range(len(answers)), n):
            if (answer := answers[i]) is not None:
                count[answer] += weight[i]
        right += bool(count) and int(count.most_common(1)[0][0]) == pool.prompt.answer
    return right / SUBSETS


def mbr_gold(similarity_MM: Vector, weight: Vector, gold: Vector, n: int, rng: random.Random) -> float:
    """The mean, over random subsets of n, of `gold` at the answer most like all by weight.

    `similarity_MM` has 1 on its diagonal: an answer's own weight counts for it.
    """
    total = 0.0
    for _ in range(SUBSETS):
        subset = rng.sample(range(len(weight)), n)
        total += gold[subset[int(np.argmax(similarity_MM[np.ix_(subset, subset)] @ weight[subset]))]]
    return total / SUBSETS


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) if k <= n else -math.inf


def proxies(rows: Sequence[Mapping[str, Vector]]) -> list[dict[str, Vector]]:
    """prompt -> proxy -> [M] values, from the served scores by name; standardised over all prompts' answers."""

    def standard(leaf: str) -> list[Vector]:
        whole = np.concatenate([row[leaf] for row in rows])
        return [(row[leaf] - whole.mean()) / whole.std() for row in rows]

    members = [standard(f"{rm}.{OBJECTIVE}") for rm in ("rm-a", "rm-b")]
    both = [members[0], standard(f"rm-a.{OTHER}")]

    def combined(columns: Sequence[Vector], combine: Combine) -> Vector:
        return np.array([value for [value] in combine(np.stack(columns, axis=1).tolist())])

    return [
        {
            "one RM": members[0][i],
            "other RM": members[1][i],
            "ensemble mean": combined([m[i] for m in members], Mean()),
            "ensemble min": combined([m[i] for m in members], Min()),
            "ensemble UWO": combined([m[i] for m in members], Uwo()),
            "both, sum": combined([m[i] for m in both], Weighted()),
            "both, LSC": row[f"lsc(rm-a.{OBJECTIVE})"] + row[f"lsc(rm-a.{OTHER})"],
            "both, PAR": row[f"par(rm-a.{OBJECTIVE})"] + row[f"par(rm-a.{OTHER})"],
        }
        for i, row in enumerate(rows)
    ]


def reward_expression() -> dict[str, Any]:
    """A reward with all parts that `proxies` needs, so that each model reads each answer once."""
    leaves = [f"rm-a.{OBJECTIVE}", f"rm-a.{OTHER}"]
    transformed = [{"of": leaf, "transform": {kind: {"references": 8}}} for leaf in leaves for kind in ("lsc", "par")]
    return {"of": [*transformed, *leaves, f"rm-b.{OBJECTIVE}"]}


async def draw_answers(
    client: AsyncOpenAI, model: str, prompts: Sequence[Prompt], size: int, gate: asyncio.Semaphore
) -> list[tuple[list[str], float]]:
    """prompt -> `size` answers of the base, and the mean of their tokens"""

    async def one(seed: int, prompt: Prompt) -> tuple[list[str], float]:
        messages: Any = list(prompt.messages)
        async with gate:
            answer = await client.chat.completions.create(
                model=model, messages=messages, temperature=1.0, max_tokens=200, n=size, seed=seed * size
            )
        texts = [choice.message.content or "" for choice in answer.choices]
        return texts, (answer.usage.completion_tokens if answer.usage else math.nan) / size

    return list(await asyncio.gather(*(one(i, prompt) for i, prompt in enumerate(prompts))))


async def score_answers(
    client: AsyncOpenAI, prompt: Prompt, texts: Sequence[str], gate: asyncio.Semaphore
) -> dict[str, Vector]:
    """name -> [M] of rewards, raw and transformed"""
    rows: list[dict[str, Any]] = []
    async with gate:
        for start in range(0, len(texts), AT_ONCE):
            part = list(texts[start : start + AT_ONCE])
            body = {"messages": list(prompt.messages), "responses": part, "reward": reward_expression()}
            answer: Any = await client.post("/alignment/score", cast_to=object, body=body)
            rows += [s["rewards"] | s["transformed"] for s in answer["scores"]]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


async def pools(
    client: AsyncOpenAI, model: str, chosen: Sequence[Prompt], size: int, gate: asyncio.Semaphore
) -> list[Pool]:
    answers = await draw_answers(client, model, chosen, size, gate)
    rows = await asyncio.gather(*(score_answers(client, p, t, gate) for p, (t, _) in zip(chosen, answers, strict=True)))
    return [
        Pool(
            prompt=prompt,
            texts=texts,
            tokens=tokens,
            gold={name: np.array([score(prompt.text, text) for text in texts]) for name, score in GOLD.items()},
            raw=row,
            proxies=values,
        )
        for prompt, (texts, tokens), row, values in zip(chosen, answers, rows, proxies(rows), strict=True)
    ]


def held_out(prompts: int) -> tuple[list[Prompt], list[Prompt]]:
    """Mixed prompts, and word problems."""
    mixed = tuple(domain for domain in DOMAINS if domain != "arithmetic")
    return heldout_prompts(prompts, seed=1, domains=mixed), heldout_prompts(prompts, seed=1, domains=("arithmetic",))
