"""A closed loop of clients, in this process or behind the standard input of another interpreter."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parent.parent.parent
MAX_TOKENS = 200

Conversation = Sequence[dict[str, str]]
Answer = Callable[[Conversation, int], Awaitable[str]]
"""(conversation, N) -> the best of N answers."""


@dataclass(frozen=True)
class Work:
    """What one measurement asks of every way.

    best_of_n: each conversation answered once from n, `clients` of them at a time. qalign: n steps of `clients` chains.
    """

    conversations: list[Conversation]
    n: int
    clients: int


@dataclass(frozen=True)
class Done:
    seconds: float
    answers: list[str]


Way = Callable[[Work], Awaitable[Done]]


async def closed_loop(answer: Answer, work: Work) -> Done:
    """Each client sends its next request when the last one is answered."""
    left = iter(range(len(work.conversations)))
    answers = [""] * len(work.conversations)

    async def client() -> None:
        for i in left:
            answers[i] = await answer(work.conversations[i], work.n)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(work.clients)))
    return Done(time.perf_counter() - began, answers)


def looped(answer: Answer) -> Way:
    async def way(work: Work) -> Done:
        return await closed_loop(answer, work)

    return way


def timed(answers: Callable[[Conversation, Work], Awaitable[list[str]]]) -> Way:
    """A way that has one conversation and answers it as the work says."""

    async def way(work: Work) -> Done:
        [conversation] = work.conversations
        began = time.perf_counter()
        found = await answers(conversation, work)
        return Done(time.perf_counter() - began, found)

    return way


def claimed_output() -> TextIO:
    """Standard output for us alone: what libraries and their processes print goes where errors go."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


async def serve(way: Way, out: TextIO) -> None:
    """In a peer's interpreter: a line of work in, a line of what was done out, until the input ends."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        done = await way(Work(**json.loads(line)))
        out.write(json.dumps(asdict(done)) + "\n")
        out.flush()


@asynccontextmanager
async def peer(python: Path, module: str, *arguments: str, log: Path) -> AsyncIterator[Way]:
    """A module of this package that calls `serve`, under another interpreter."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stderr:
        process = await asyncio.create_subprocess_exec(
            python, "-m", module, *arguments, cwd=ROOT, stdin=PIPE, stdout=PIPE, stderr=stderr, limit=1 << 24
        )
    assert process.stdin is not None
    assert process.stdout is not None
    into, out = process.stdin, process.stdout

    async def way(work: Work) -> Done:
        into.write(json.dumps(asdict(work)).encode() + b"\n")
        if not (line := await out.readline()):
            raise RuntimeError(f"{module} ended; see {log}")
        return Done(**json.loads(line))

    try:
        yield way
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
