"""What the searches' measurements share: questions, requests, the counters of a server, and ratios of rounds."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx

from bench.peers.loop import MAX_TOKENS, Conversation
from recipes.corpus import heldout_prompts

LABEL = "helpfulness"
OURS = "trimtab"
PATH = "/v1/chat/completions"
LONG_TURNS = 25
"""Messages of the long conversation: some 400 tokens."""


@dataclass(frozen=True)
class Prefill:
    asked: float
    computed: float

    @property
    def saved(self) -> float:
        return 1 - self.computed / self.asked

    def since(self, before: Prefill) -> Prefill:
        return Prefill(self.asked - before.asked, self.computed - before.computed)


def samples(metrics: str, name: str) -> list[tuple[dict[str, str], float]]:
    """(labels, value) of a metric in Prometheus's text format."""
    found = []
    for line in metrics.splitlines():
        if match := re.fullmatch(rf"{re.escape(name)}(?:\{{(.*)\}})? (\S+)", line):
            found.append((dict(re.findall(r'(\w+)="([^"]*)"', match[1] or "")), float(match[2])))
    return found


def prefill(metrics: str) -> Prefill:
    """Tokens of prompts since the server's start."""
    sources = samples(metrics, "vllm:prompt_tokens_by_source_total")
    return Prefill(
        asked=sum(value for _, value in sources),
        computed=sum(value for labels, value in sources if labels["source"] == "local_compute"),
    )


def block_size(metrics: str) -> int:
    [(labels, _)] = samples(metrics, "vllm:cache_config_info")
    return int(labels["block_size"])


def times_faster(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def rotated(names: Sequence[str], by: int) -> list[str]:
    by %= len(names)
    return [*names[by:], *names[:by]]


def questions(seed: int) -> Iterator[Conversation]:
    return itertools.cycle([p.messages for p in heldout_prompts(2000, seed)])


def long_conversation(short: Iterator[Conversation]) -> Conversation:
    texts = [next(short)[-1]["content"] for _ in range(LONG_TURNS)]
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


async def drawn(http: httpx.AsyncClient, model: str, conversation: Conversation, **more: Any) -> list[str]:
    body = {"model": model, "messages": conversation, "max_tokens": MAX_TOKENS, "temperature": 1.0, **more}
    answer = await http.post(PATH, json=body)
    if answer.is_error:
        raise RuntimeError(answer.text)
    return [choice["message"]["content"] or "" for choice in answer.json()["choices"]]


async def clients_to(*urls: str, stack: AsyncExitStack) -> list[httpx.AsyncClient]:
    # uvicorn hangs up on a connection after 5 idle seconds, at times just as a request is sent on it
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2)
    return [
        await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=3600, limits=limits)) for url in urls
    ]
