"""An engine that hangs is seen, and so is one that goes on."""

import asyncio
import logging
import os
import signal
from contextlib import aclosing

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError

from tests.waiting import until
from trimtab.decoders.protocols import BASE, Sampling
from trimtab.engine.aligned_client import AlignedClient
from trimtab.engine.heartbeat import Heartbeat


async def test_it_is_stalled_while_an_answer_is_overdue(monkeypatch, caplog):
    now, timeout = 0.0, 0.02  # only the log goes by the real clock
    monkeypatch.setattr("trimtab.engine.heartbeat.PERIOD_S", 0.01)
    monkeypatch.setattr("trimtab.engine.heartbeat.monotonic", lambda: now)
    caplog.set_level(logging.INFO, "trimtab")
    moving = asyncio.Event()
    heartbeat = Heartbeat(name="base", call=moving.wait, timeout_s=lambda: timeout)
    running = asyncio.create_task(heartbeat.run())
    try:
        await until(lambda: "has not answered for 0.02 s" in caplog.text)
        assert not heartbeat.stalled
        now = 0.03
        assert heartbeat.stalled
        timeout = 1.0  # as a reload may set it
        assert not heartbeat.stalled
        now = 2.0
        assert heartbeat.stalled
        moving.set()
        await until(lambda: "answers again" in caplog.text)
        await until(lambda: not heartbeat.stalled)
        assert caplog.text.count("has not answered") == 1
    finally:
        running.cancel()


async def test_it_ends_with_a_dead_engine():
    async def call() -> None:
        raise EngineDeadError

    heartbeat = Heartbeat(name="base", call=call, timeout_s=lambda: 1.0)
    await asyncio.wait_for(heartbeat.run(), 5)
    assert not heartbeat.stalled  # that it is dead is known otherwise


@pytest.mark.engine
async def test_a_stopped_engine_stalls_and_goes_on(client, vllm_engine, live, monkeypatch):
    """In the middle of an answer, which then ends as if nothing had been."""
    monkeypatch.setattr("trimtab.engine.heartbeat.PERIOD_S", 0.01)
    ping, answered = AlignedClient(client, lambda _: vllm_engine).ping, 0
    processes = [process.pid for process in client.engine_core.resources.engine_manager.processes]
    sampling = Sampling(max_tokens=60, seed=3, engine_params=SamplingParams(ignore_eos=True))

    async def call() -> None:
        nonlocal answered
        await ping()
        answered += 1

    async def draw(stopped: asyncio.Event | None = None) -> list[int]:
        tokens: list[int] = []
        async with aclosing(vllm_engine.generate(list(range(40)), sampling, n=1, guides={BASE: 1.0})) as chunks:
            async for chunk in chunks:
                tokens += chunk.tokens
                if stopped is not None and not stopped.is_set() and len(tokens) >= 10:
                    stopped.set()
                    for pid in processes:
                        os.kill(pid, signal.SIGSTOP)
        return tokens

    undisturbed, stopped = await draw(), asyncio.Event()
    heartbeat = Heartbeat(name="base", call=call, timeout_s=lambda: 1.0)
    running = asyncio.create_task(heartbeat.run())
    try:
        await until(lambda: answered > 1)
        answer = asyncio.create_task(draw(stopped))
        await stopped.wait()
        await until(lambda: heartbeat.stalled)
        assert live() == 1
        assert not answer.done()
        for pid in processes:
            os.kill(pid, signal.SIGCONT)
        assert await answer == undisturbed
        await until(lambda: not heartbeat.stalled)
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)
        running.cancel()
