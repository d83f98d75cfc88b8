"""`transfer_q`: seconds per answer, with c questions at once.

Direct transfer, greedy throughout, so that all ways give the same answers but for ties:

- trimtab: one request per question, the authors' settings (k = 10, one greedy rollout of 20 tokens); and the same with
  `min_p`, an approximation that skips the look-ahead where one token is that much likelier than all others.
- HF loop: the published algorithm written around transformers (bench/peers/hf_transfer_q.py), one answer at a time.

The second table: trimtab alone at other k, rollouts (sampled, where there are several), horizons and shortcuts. The
server counts the tokens sampled and scored per token of the answer.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx

from trimtab.bench.peers.hf_reward import HFReward
from trimtab.bench.peers.hf_transfer_q import HFTransferQ
from trimtab.bench.peers.loop import MAX_TOKENS, Answer, Conversation, Task, in_closed_loop
from trimtab.bench.report import table
from trimtab.bench.search.common import LABEL, OURS, PATH, clients_to, compare, measure, questions, show

BASELINE = "aligned"
K, HORIZON, ALPHA = 10, 20, 1.0
MIN_P = 0.05
SHORTCUT = f"trimtab, min_p {MIN_P:g}"
WARM: Conversation = [{"role": "user", "content": "Hello!"}]
QUICK = (f"k {K}, horizon {HORIZON}", "k 5", "min_p 0.05", "block 4, min_p 0.05")
SCALES: dict[str, dict[str, Any]] = {
    f"k {K}, horizon {HORIZON}": {},
    "k 5": {"k": 5},
    "k 20": {"k": 20},
    "horizon 5": {"horizon": 5},
    "horizon 40": {"horizon": 40},
    "4 rollouts": {"rollouts": 4, "rollout_temperature": 1.0},
    "min_p 0.05": {"min_p": 0.05},
    "min_p 0.2": {"min_p": 0.2},
    "block 4": {"block": 4},
    "block 4, min_p 0.05": {"block": 4, "min_p": 0.05},
}
"""Settings of the second table."""


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of each answer."""

    answered: list[int] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)


def inside(http: httpx.AsyncClient, model: str, counts: TokenCounts, **params: Any) -> Answer:
    settings = {"k": K, "horizon": HORIZON, "alpha": ALPHA, "rollout_temperature": 0.0, "baseline": {BASELINE: 1.0}}
    alignment = {"strategy": "transfer_q", "reward": f"rm-a.{LABEL}", "params": settings | params}

    async def answer(conversation: Conversation, n: int) -> str:
        body = {"model": model, "messages": conversation, "max_tokens": MAX_TOKENS, "temperature": 0.0,
                "seed": 0, "alignment": alignment}  # fmt: skip
        response = await http.post(PATH, json=body)
        if response.is_error:
            raise RuntimeError(response.text)
        document = response.json()
        counts.answered.append(document["usage"]["completion_tokens"])
        counts.sampled.append(document["alignment"]["sampled_tokens"])
        counts.scored.append(document["alignment"]["scored_tokens"])
        text: str = document["choices"][0]["message"]["content"]
        return text

    return answer


async def run(ours: str, theirs: str, model: str, args: argparse.Namespace) -> dict[str, Any]:
    reward = HFReward(args.reward, LABEL)
    loop = HFTransferQ(args.base, args.baseline, reward)
    rounds = args.rounds or (1 if args.quick else 3)

    async def looping(conversation: Conversation, n: int) -> str:
        return await loop(conversation, k=K, horizon=HORIZON, alpha=ALPHA)

    async with AsyncExitStack() as stack:
        [http] = await clients_to(ours, stack=stack)
        stream, figures = questions(args.seed), list[dict[str, Any]]()
        ways = {
            OURS: in_closed_loop(inside(http, model, TokenCounts())),
            SHORTCUT: in_closed_loop(inside(http, model, TokenCounts(), min_p=MIN_P)),
            "HF loop": in_closed_loop(looping),
        }
        for clients in args.clients or ([1, 4] if args.quick else [1, 4, 16]):
            tasks = [Task([next(stream) for _ in range(clients)], 1, clients) for _ in range(rounds)]
            warm = Task([WARM], 1, 1)
            figures += compare(await measure(ways, [warm, *tasks], reward), clients, clients=clients)
            print(f"{clients} clients: done", file=sys.stderr, flush=True)
        same = [next(stream) for _ in range(2 if args.quick else 4)]
        varied = {name: params for name, params in SCALES.items() if not args.quick or name in QUICK}
        scales = [await measure_setting(http, model, name, params, same) for name, params in varied.items()]
    show("answers", figures, "clients")
    headers = [f"{len(same)} clients", "s per answer", "tokens of an answer", "sampled per token", "scored per token"]
    rows = [[r["name"], r["seconds"], r["answered"], r["sampled_per_token"], r["scored_per_token"]] for r in scales]
    print(table(headers, rows))
    return {"answers": figures, "scales": scales}


async def measure_setting(
    http: httpx.AsyncClient, model: str, name: str, params: dict[str, Any], conversations: list[Conversation]
) -> dict[str, Any]:
    counts = TokenCounts()
    done = await in_closed_loop(inside(http, model, counts, **params))(Task(conversations, 1, len(conversations)))
    tokens = sum(counts.answered)
    return {
        "name": name,
        "params": params,
        "seconds": done.seconds / len(conversations),
        "answered": statistics.mean(counts.answered),
        "sampled_per_token": sum(counts.sampled) / tokens,
        "scored_per_token": sum(counts.scored) / tokens,
    }
