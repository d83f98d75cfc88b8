"""A closed loop of clients, in this process or in another interpreter over its standard input."""

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
class Task:
    """What every way does in one measurement.

    best_of_n: answers each conversation once, best of n, `clients` at a time. qalign: n steps of `clients` chains.
    """

    conversations: list[Conversation]
    n: int
    clients: int


@dataclass(frozen=True)
class Measurement:
    seconds: float
    answers: list[str]


Way = Callable[[Task], Awaitable[Measurement]]


async def closed_loop(answer: Answer, task: Task) -> Measurement:
    """Each client sends its next request when its last is answered."""
    left = iter(range(len(task.conversations)))
    answers = [""] * len(task.conversations)

    async def client() -> None:
        for i in left:
            answers[i] = await answer(task.conversations[i], task.n)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(task.clients)))
    return Measurement(time.perf_counter() - began, answers)


def in_closed_loop(answer: Answer) -> Way:
    async def way(task: Task) -> Measurement:
        return await closed_loop(answer, task)

    return way


def time_answers(answers: Callable[[Conversation, Task], Awaitable[list[str]]]) -> Way:
    """A way with one conversation, which `answers` answers as the task says."""

    async def way(task: Task) -> Measurement:
        [conversation] = task.conversations
        began = time.perf_counter()
        texts = await answers(conversation, task)
        return Measurement(time.perf_counter() - began, texts)

    return way


def claim_output() -> TextIO:
    """Standard output for us alone: what libraries and their processes print goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


async def serve(way: Way, out: TextIO) -> None:
    """In a peer's interpreter: reads a task a line, writes a measurement a line, until the input ends."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        done = await way(Task(**json.loads(line)))
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

    async def way(task: Task) -> Measurement:
        into.write(json.dumps(asdict(task)).encode() + b"\n")
        if not (line := await out.readline()):
            raise RuntimeError(f"{module} ended; see {log}")
        return Measurement(**json.loads(line))

    try:
        yield way
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
