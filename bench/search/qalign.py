"""`qalign`: steps of Markov chains per second, with F chains of one question at once.

- trimtab: one request with `alignment`; the chains run in the server.
- vLLM + HF: the same chains as coroutines of a client, each suffix a request of token ids to vLLM's server, each
  score by transformers in the client's process.
- quest-decoding (1.0.16): the authors' `Quest` with its `RLHFSuffixProposal`, in its own process, on its HF and its
  vLLM backend; bench/peers/quest.py lists what had to be adapted. All chains wait for the slowest at each step.

A step draws a suffix and scores an answer. The time includes the first draws. The second table: tokens of prompts and
prefixes requested from and computed by the base, for a question of a few tokens and for a long conversation.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx

from trimtab.bench.peers.hf_reward import HFReward
from trimtab.bench.peers.loop import MAX_TOKENS, Conversation, Task, Way, peer, time_answers
from trimtab.bench.search.common import (
    LABEL,
    OURS,
    Prefill,
    block_size,
    choices,
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

BETA = 0.5
"""In the reward's own units: about half a spread."""


def inside(http: httpx.AsyncClient, model: str) -> Way:
    async def chains(conversation: Conversation, task: Task) -> list[str]:
        params = {"chains": task.clients, "steps": task.n, "beta": BETA, "answer": "last"}
        alignment = {"strategy": "qalign", "reward": f"rm-a.{LABEL}", "params": params}
        return await draw(http, model, conversation, n=task.clients, alignment=alignment)

    return time_answers(chains)


def outside(http: httpx.AsyncClient, model: str, reward: HFReward) -> Way:
    async def complete(prompt: list[int], limit: int) -> list[int]:
        body = {"model": model, "prompt": prompt, "max_tokens": limit, "return_token_ids": True}
        [choice] = await choices(http, "/v1/completions", **body)
        tokens: list[int] = choice["token_ids"]
        return tokens

    async def chain(conversation: Conversation, prompt: list[int], steps: int) -> str:
        async def score_tokens(tokens: list[int]) -> tuple[float, str]:
            text = reward.tokenizer.decode(tokens, skip_special_tokens=True)
            read = [[*conversation, {"role": "assistant", "content": text}]]
            [score] = await asyncio.to_thread(reward, read)
            return score, text

        y = await complete(prompt, MAX_TOKENS)
        r, text = await score_tokens(y)
        for _ in range(steps):
            i = random.randrange(len(y))
            new = [*y[:i], *await complete([*prompt, *y[:i]], MAX_TOKENS - i)]
            score, new_text = await score_tokens(new)
            if math.log(random.random()) < (score - r) / BETA + math.log(len(y) / len(new)):
                y, r, text = new, score, new_text
        return text

    async def chains(conversation: Conversation, task: Task) -> list[str]:
        body = {"model": model, "messages": conversation, "add_generation_prompt": True}
        prompt = (await http.post("/tokenize", json=body)).json()["tokens"]
        return list(await asyncio.gather(*(chain(conversation, prompt, task.n) for _ in range(task.clients))))

    return time_answers(chains)


async def run(ours: str, theirs: str, model: str, args: argparse.Namespace) -> dict[str, Any]:
    reward = HFReward(args.reward, LABEL)
    figures: list[dict[str, Any]] = []
    saved: dict[str, Prefill] = {}
    steps = args.steps or (8 if args.quick else 16)
    async with AsyncExitStack() as stack:
        to_ours, to_theirs = await clients_to(ours, theirs, stack=stack)
        ways = {OURS: inside(to_ours, model), "vLLM + HF, a client's chains": outside(to_theirs, model, reward)}
        if args.quest_python:
            for backend in ("hf", "vllm"):
                arguments = (backend, args.base, str(args.reward), LABEL, str(BETA))
                log = Path(f"out/quest_{backend}.log")
                ways[f"quest-decoding, {backend}"] = await stack.enter_async_context(
                    peer(args.quest_python, "trimtab.bench.peers.quest", *arguments, log=log)
                )
        stream = questions(args.seed)
        for chains in args.chains or ([1, 8, 32] if args.quick else [1, 8, 32, 64]):
            rounds = args.rounds or (2 if args.quick else 5)
            tasks = [Task([next(stream)], 2 if i == 0 else steps, chains) for i in range(rounds + 1)]
            figures += compare(await measure(ways, tasks, reward), chains * steps, chains=chains)
            print(f"{chains} chains: done", file=sys.stderr, flush=True)
        for what, conversation in (("a question", next(stream)), ("a long conversation", long_conversation(stream))):
            before = prefill((await to_ours.get("/metrics")).text)
            await ways[OURS](Task([conversation], steps, 32))
            saved[what] = prefill((await to_ours.get("/metrics")).text).since(before)
        block = block_size((await to_ours.get("/metrics")).text)
    if not args.quest_python:
        print("skipped: quest-decoding, whose interpreter was not given")
    show("steps", figures, "chains")
    prefilled = show_prefill("Tokens before the suffixes of 32 chains", "of", saved, block)
    return {"steps": figures, "prefill": prefilled, "block_size": block}
