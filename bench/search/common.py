"""Shared by the searches: questions, requests, rounds of ways and their ratios, a server's counters."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx

from trimtab.bench.peers.hf_reward import HFReward
from trimtab.bench.peers.loop import MAX_TOKENS, Conversation, Task, Way
from trimtab.bench.report import hardware, table
from trimtab.recipes.corpus import heldout_prompts

LABEL = "helpfulness"
OURS = "trimtab"
PATH = "/v1/chat/completions"
LONG_TURNS = 25
"""Messages of the long conversation, about 400 tokens."""


@dataclass(frozen=True)
class Prefill:
    requested: float
    computed: float

    @property
    def saved(self) -> float:
        return 1 - self.computed / self.requested

    def since(self, before: Prefill) -> Prefill:
        return Prefill(self.requested - before.requested, self.computed - before.computed)


def samples(metrics: str, name: str) -> list[tuple[dict[str, str], float]]:
    """(labels, value) of a metric in Prometheus's text format."""
    rows = []
    for line in metrics.splitlines():
        if match := re.fullmatch(rf"{re.escape(name)}(?:\{{(.*)\}})? (\S+)", line):
            rows.append((dict(re.findall(r'(\w+)="([^"]*)"', match[1] or "")), float(match[2])))
    return rows


def prefill(metrics: str) -> Prefill:
    """Tokens of prompts since the server's start."""
    sources = samples(metrics, "vllm:prompt_tokens_by_source_total")
    return Prefill(
        requested=sum(value for _, value in sources),
        computed=sum(value for labels, value in sources if labels["source"] == "local_compute"),
    )


def block_size(metrics: str) -> int:
    [(labels, _)] = samples(metrics, "vllm:cache_config_info")
    return int(labels["block_size"])


@dataclass(frozen=True)
class Cell:
    """One way in one cell of the table: seconds of each task, and the mean reward of its answers."""

    seconds: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)


async def measure(ways: Mapping[str, Way], tasks: Iterable[Task], reward: HFReward) -> dict[str, Cell]:
    """Every way does each task, one after another and each time in another order; the first task warms up."""
    cells = {name: Cell() for name in ways}
    names = list(ways)
    for i, task in enumerate(tasks):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            done = await ways[name](task)
            if i > 0:
                conversations = itertools.cycle(task.conversations)
                answered = [
                    [*c, {"role": "assistant", "content": a}] for c, a in zip(conversations, done.answers, strict=False)
                ]
                cells[name].seconds.append(done.seconds)
                cells[name].rewards.append(statistics.mean(reward(answered)))
    return cells


def compare(cells: Mapping[str, Cell], amount: float, **about: Any) -> list[dict[str, Any]]:
    """A row for each way: `amount` over its median time, and by round its time over trimtab's."""
    rows = []
    for name, cell in cells.items():
        ratios = [theirs / ours for ours, theirs in zip(cells[OURS].seconds, cell.seconds, strict=True)]
        rows.append(
            {
                **about,
                "way": name,
                "per_s": amount / statistics.median(cell.seconds),
                "faster": statistics.median(ratios),
                "ratios": ratios,
                "reward": statistics.mean(cell.rewards),
                "seconds": cell.seconds,
            }
        )
    return rows


def show(unit: str, rows: Sequence[Mapping[str, Any]], *about: str) -> None:
    """The table of `compare`, with the columns `about` before it."""
    headers = [*about, "way", f"{unit}/s", "trimtab: times faster", "rounds", "mean reward"]
    shown = [
        [*(r[a] for a in about), r["way"], r["per_s"], f"{r['faster']:.2f}",
         f"{min(r['ratios']):.2f} … {max(r['ratios']):.2f}", r["reward"]]
        for r in rows
    ]  # fmt: skip
    print(hardware() + "\n\n" + table(headers, shown) + "\n")


def show_prefill(what: str, first: str, saved: Mapping[str, Prefill], block: int) -> list[dict[str, Any]]:
    """Prints requested and computed tokens, and returns them."""
    print(f"{what}, blocks of {block} tokens\n")
    rows = [[name, f"{p.requested:.0f}", f"{p.computed:.0f}", f"{p.saved:.0%}"] for name, p in saved.items()]
    print(table([first, "asked for", "computed", "saved"], rows))
    return [{"of": name, "asked": p.requested, "computed": p.computed, "saved": p.saved} for name, p in saved.items()]


def questions(seed: int) -> Iterator[Conversation]:
    return itertools.cycle([p.messages for p in heldout_prompts(2000, seed)])


def long_conversation(short: Iterator[Conversation]) -> Conversation:
    texts = [next(short)[-1]["content"] for _ in range(LONG_TURNS)]
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


async def choices(http: httpx.AsyncClient, path: str, **body: Any) -> Any:
    """Choices of one request at temperature 1; raises RuntimeError with the server's error."""
    answer = await http.post(path, json={"temperature": 1.0, **body})
    if answer.is_error:
        raise RuntimeError(answer.text)
    return answer.json()["choices"]


async def draw(http: httpx.AsyncClient, model: str, conversation: Conversation, **more: Any) -> list[str]:
    drawn = await choices(http, PATH, model=model, messages=conversation, max_tokens=MAX_TOKENS, **more)
    return [choice["message"]["content"] or "" for choice in drawn]


async def clients_to(*urls: str, stack: AsyncExitStack) -> list[httpx.AsyncClient]:
    # uvicorn hangs up on a connection after 5 idle seconds, at times just as a request is sent on it
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2)
    return [
        await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=3600, limits=limits)) for url in urls
    ]
