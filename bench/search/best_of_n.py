"""`best_of_n`: answers per second.

Every way answers the same held-out questions with the best of N answers of the same base, drawn at temperature 1 and
scored by the same reward model; both servers run with the same engine arguments. Closed loop: c clients, each of which
sends its next question when its last is answered. The mean reward of the answers is a check: among equivalent ways it
differs by chance alone.

- trimtab: one request with `alignment`. The server draws, scores and chooses.
- vLLM + HF: a client draws from vLLM's server (N requests at once, or one with n = N), scores the answers in one batch
  with transformers in its own process, and chooses. "in turn" is the simplest script: a request and a score, N times.
- its_hub (1.2): `BestOfN` with its OpenAI-compatible language model and no limit on concurrency. It has no reward model
  for a classification head, so the same transformers code implements its `AbstractOutcomeRewardModel`, in one batch, in
  a thread.
- optillm (0.4): `best_of_n_sampling`, the function of its `bon` approach, without its proxy. It has no reward model:
  the base rates the answers in one request each, one after another. It allows 256 tokens for a rating; here 4, enough
  for a base that follows instructions, which the demo base does not.

The second table: prompt tokens requested from and computed by the base while it answers a long conversation, from the
servers' `vllm:prompt_tokens_by_source`. vLLM reuses whole blocks of a prompt; on CPU a block has 128 tokens by default,
see `--set engine.block_size=32`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from trimtab.bench.peers.hf_reward import HFReward
from trimtab.bench.peers.loop import Answer, Conversation, Task, Way, in_closed_loop, peer
from trimtab.bench.search.common import (
    LABEL,
    OURS,
    Prefill,
    block_size,
    clients_to,
    compare,
    draw,
    long_conversation,
    measure,
    prefill,
    questions,
    show,
    show_prefill,
)

IN_TURN = "vLLM + HF, N requests in turn"


def best(answers: Sequence[str], scores: Sequence[float]) -> str:
    """The first of those with the highest score."""
    return answers[max(range(len(answers)), key=scores.__getitem__)]


@dataclass(frozen=True, kw_only=True)
class Outside:
    """Best of N around vLLM's server."""

    http: httpx.AsyncClient
    model: str
    reward: HFReward

    async def draw(self, conversation: Conversation, n: int) -> list[str]:
        return await draw(self.http, self.model, conversation, n=n)

    async def choose_best(self, conversation: Conversation, answers: list[str]) -> str:
        conversations = [[*conversation, {"role": "assistant", "content": answer}] for answer in answers]
        return best(answers, await asyncio.to_thread(self.reward, conversations))

    async def at_once(self, conversation: Conversation, n: int) -> str:
        answers = await asyncio.gather(*(self.draw(conversation, 1) for _ in range(n)))
        return await self.choose_best(conversation, [answer for [answer] in answers])

    async def as_one(self, conversation: Conversation, n: int) -> str:
        return await self.choose_best(conversation, await self.draw(conversation, n))

    async def in_turn(self, conversation: Conversation, n: int) -> str:
        answers, scores = [], []
        for _ in range(n):
            answers += await self.draw(conversation, 1)
            whole = [*conversation, {"role": "assistant", "content": answers[-1]}]
            scores += await asyncio.to_thread(self.reward, [whole])
        return best(answers, scores)


def inside(http: httpx.AsyncClient, model: str, reward: str) -> Answer:
    async def answer(conversation: Conversation, n: int) -> str:
        alignment = {"strategy": "best_of_n", "reward": reward, "params": {"n": n}}
        [text] = await draw(http, model, conversation, alignment=alignment)
        return text

    return answer


async def measure_prefill(
    ways: dict[str, tuple[Way, httpx.AsyncClient]], conversations: list[Conversation], n: int
) -> dict[str, Prefill]:
    """Every way has its own conversations, so that none finds another's in the cache."""
    figures = {}
    share = len(conversations) // len(ways)
    for i, (name, (way, http)) in enumerate(ways.items()):
        before = prefill((await http.get("/metrics")).text)
        await way(Task(conversations[i * share : (i + 1) * share], n, clients=1))
        figures[name] = prefill((await http.get("/metrics")).text).since(before)
    return figures


async def run(ours: str, theirs: str, model: str, args: argparse.Namespace) -> dict[str, Any]:
    reward = HFReward(args.reward, LABEL)
    rounds = args.rounds or (3 if args.quick else 5)
    per_client = args.per_client or (1 if args.quick else 2)
    async with AsyncExitStack() as stack:
        to_ours, to_theirs = await clients_to(ours, theirs, stack=stack)
        outside = Outside(http=to_theirs, model=model, reward=reward)
        ways = {
            OURS: in_closed_loop(inside(to_ours, model, f"rm-a.{LABEL}")),
            "vLLM + HF, N requests at once": in_closed_loop(outside.at_once),
            "vLLM + HF, one request with n = N": in_closed_loop(outside.as_one),
        }
        mine = {name: (way, to_ours if name == OURS else to_theirs) for name, way in ways.items()}
        if args.its_hub_python:
            arguments = (theirs, model, str(args.reward), LABEL)
            ways["its_hub"] = await stack.enter_async_context(
                peer(args.its_hub_python, "trimtab.bench.peers.its_hub", *arguments, log=Path("out/its_hub.log"))
            )
        if args.optillm_python:
            ways["optillm"] = await stack.enter_async_context(
                peer(args.optillm_python, "trimtab.bench.peers.optillm", theirs, model, log=Path("out/optillm.log"))
            )
        ways[IN_TURN] = in_closed_loop(outside.in_turn)
        stream, figures = questions(args.seed), []
        for n, clients in itertools.product(args.n or ([4, 16] if args.quick else [4, 16, 64]), args.clients or [4, 1]):
            at_hand = {name: way for name, way in ways.items() if name != IN_TURN or n <= args.in_turn_up_to}
            tasks = [Task([next(stream) for _ in range(per_client * clients)], n, clients) for _ in range(rounds + 1)]
            cells = await measure(at_hand, tasks, reward)
            figures += compare(cells, per_client * clients, n=n, clients=clients)
            print(f"N = {n}, {clients} clients: done", file=sys.stderr, flush=True)
        n = 16
        long = [long_conversation(stream) for _ in range(4 * len(mine))]
        saved = await measure_prefill(mine, long, n)
        block = block_size((await to_theirs.get("/metrics")).text)
    for name, python in (("its_hub", args.its_hub_python), ("optillm", args.optillm_python)):
        if not python:
            print(f"skipped: {name}, whose interpreter was not given")
    show("answers", figures, "n", "clients")
    prefilled = show_prefill(f"Prefill of a long conversation, N = {n}", "way", saved, block)
    return {"answers": figures, "prefill": prefilled, "block_size": block}
