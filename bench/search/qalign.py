"""`qalign`: steps of Markov chains per second, of F chains of one question side by side.

- trimtab: one request with `alignment`, its chains in the server.
- vLLM + HF: the same chains as coroutines of a client, each suffix a request of token ids to vLLM's server, each
  score by transformers in the client's process.
- quest-decoding (1.0.16): the authors' `Quest` with its `RLHFSuffixProposal`, in a process of its own, on its HF and
  its vLLM backend; what had to be adapted stands in bench/peers/quest.py. All chains wait for the slowest at each step.

A step is a suffix drawn and an answer scored. The first draws are in the time. The second table: tokens of prompts and
kept beginnings asked for and computed by the base, for a question of a few tokens and for a long conversation.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx

from bench.peers.hf_reward import HFReward
from bench.peers.loop import MAX_TOKENS, Conversation, Way, Work, peer, timed
from bench.report import hardware, table
from bench.search.common import (
    LABEL,
    OURS,
    PATH,
    block_size,
    clients_to,
    long_conversation,
    prefill,
    questions,
    rotated,
    times_faster,
)

BETA = 0.5
"""In the reward's own units: about half a spread."""


def inside(http: httpx.AsyncClient, model: str) -> Way:
    async def chains(conversation: Conversation, work: Work) -> list[str]:
        params = {"chains": work.clients, "steps": work.n, "beta": BETA, "answer": "last"}
        alignment = {"strategy": "qalign", "reward": f"rm-a.{LABEL}", "params": params}
        body = {"model": model, "messages": conversation, "max_tokens": MAX_TOKENS, "temperature": 1.0,
                "n": work.clients, "alignment": alignment}  # fmt: skip
        answer = await http.post(PATH, json=body)
        if answer.is_error:
            raise RuntimeError(answer.text)
        return [choice["message"]["content"] or "" for choice in answer.json()["choices"]]

    return timed(chains)


def outside(http: httpx.AsyncClient, model: str, reward: HFReward) -> Way:
    async def drawn(prompt: list[int], limit: int) -> list[int]:
        body = {"model": model, "prompt": prompt, "max_tokens": limit, "temperature": 1.0, "return_token_ids": True}
        answer = await http.post("/v1/completions", json=body)
        if answer.is_error:
            raise RuntimeError(answer.text)
        tokens: list[int] = answer.json()["choices"][0]["token_ids"]
        return tokens

    async def chain(conversation: Conversation, prompt: list[int], steps: int) -> str:
        async def scored(tokens: list[int]) -> tuple[float, str]:
            text = reward.tokenizer.decode(tokens, skip_special_tokens=True)
            read = [[*conversation, {"role": "assistant", "content": text}]]
            [score] = await asyncio.to_thread(reward, read)
            return score, text

        y = await drawn(prompt, MAX_TOKENS)
        r, text = await scored(y)
        for _ in range(steps):
            i = random.randrange(len(y))
            new = [*y[:i], *await drawn([*prompt, *y[:i]], MAX_TOKENS - i)]
            score, said = await scored(new)
            if math.log(random.random()) < (score - r) / BETA + math.log(len(y) / len(new)):
                y, r, text = new, score, said
        return text

    async def chains(conversation: Conversation, work: Work) -> list[str]:
        body = {"model": model, "messages": conversation, "add_generation_prompt": True}
        prompt = (await http.post("/tokenize", json=body)).json()["tokens"]
        return list(await asyncio.gather(*(chain(conversation, prompt, work.n) for _ in range(work.clients))))

    return timed(chains)


async def run(ours: str, theirs: str, model: str, args: argparse.Namespace) -> dict[str, Any]:
    reward = HFReward(args.reward, LABEL)
    figures: list[dict[str, Any]] = []
    saved: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        to_ours, to_theirs = await clients_to(ours, theirs, stack=stack)
        ways = {OURS: inside(to_ours, model), "vLLM + HF, a client's chains": outside(to_theirs, model, reward)}
        if args.quest_python:
            for backend in ("hf", "vllm"):
                arguments = (backend, args.base, str(args.reward), LABEL, str(BETA))
                log = Path(f"out/quest_{backend}.log")
                ways[f"quest-decoding, {backend}"] = await stack.enter_async_context(
                    peer(args.quest_python, "bench.peers.quest", *arguments, log=log)
                )
        asked = questions(args.seed)
        for chains in args.chains or ([1, 8, 32] if args.quick else [1, 8, 32, 64]):
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            means: dict[str, list[float]] = {name: [] for name in ways}
            for i in range((args.rounds or (2 if args.quick else 5)) + 1):
                conversation = next(asked)
                work = Work([conversation], 2 if i == 0 else args.steps, chains)
                for name in rotated(list(ways), i):
                    done = await ways[name](work)
                    if i:
                        read = [[*conversation, {"role": "assistant", "content": a}] for a in done.answers]
                        seconds[name].append(done.seconds)
                        means[name].append(statistics.mean(reward(read)))
            figures += [
                {
                    "chains": chains,
                    "way": name,
                    "steps_per_s": chains * args.steps / statistics.median(times),
                    "faster": times_faster(seconds[OURS], times),
                    "ratios": [b / a for a, b in zip(seconds[OURS], times, strict=True)],
                    "reward": statistics.mean(means[name]),
                    "seconds": times,
                }
                for name, times in seconds.items()
            ]
            print(f"{chains} chains: done", file=sys.stderr, flush=True)
        for what, conversation in (("a question", next(asked)), ("a long conversation", long_conversation(asked))):
            before = prefill((await to_ours.get("/metrics")).text)
            await ways[OURS](Work([conversation], args.steps, 32))
            spent = prefill((await to_ours.get("/metrics")).text).since(before)
            saved.append({"of": what, "asked": spent.asked, "computed": spent.computed, "saved": spent.saved})
        block = block_size((await to_ours.get("/metrics")).text)
    if not args.quest_python:
        print("skipped: quest-decoding, whose interpreter was not given")
    show(figures, saved, block)
    return {"steps": figures, "prefill": saved, "block_size": block}


def show(figures: list[dict[str, Any]], saved: list[dict[str, Any]], block: int) -> None:
    headers = ["chains", "way", "steps/s", "trimtab: times faster", "rounds", "mean reward"]
    rows = [
        [
            f["chains"],
            f["way"],
            f["steps_per_s"],
            f"{f['faster']:.2f}",
            f"{min(f['ratios']):.2f} … {max(f['ratios']):.2f}",
            f["reward"],
        ]
        for f in figures
    ]
    print(hardware() + "\n\n" + table(headers, rows) + "\n")
    print(f"Tokens before the suffixes of 32 chains, blocks of {block} tokens\n")
    rows = [[s["of"], f"{s['asked']:.0f}", f"{s['computed']:.0f}", f"{s['saved']:.0%}"] for s in saved]
    print(table(["of", "asked for", "computed", "saved"], rows))
