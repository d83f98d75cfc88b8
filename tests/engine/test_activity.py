"""What is seen of an engine's work: whoever it is for, and nothing while it does none."""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

from tests.waiting import until
from trimtab.decoders.protocols import BASE, Sampling
from trimtab.engine.activity import Activity


def state(tokens: int | None) -> Any:
    return SimpleNamespace(detokenizer=None if tokens is None else SimpleNamespace(num_output_tokens=lambda: tokens))


def test_a_token_or_an_end_is_a_sign_of_life_and_a_newcomer_is_none() -> None:
    states: dict[str, Any] = {}
    activity = Activity(client=SimpleNamespace(output_processor=SimpleNamespace(request_states=states)))
    assert activity() == -math.inf
    states.update(drawing=state(0), pooling=state(None))
    assert activity() == activity() == -math.inf
    states["drawing"] = state(1)
    first = activity()
    assert first > -math.inf
    assert activity() == first
    del states["pooling"]
    second = activity()
    assert second > first
    states["newcomer"] = state(3)
    assert activity() == second
    assert Activity(client=SimpleNamespace())() == -math.inf, "an engine that shows nothing"


async def test_it_sees_vllm_draw_for_others_and_stand_still(vllm_engine, client) -> None:
    activity = Activity(client=client)
    activity()
    sampling = Sampling(max_tokens=200, seed=1, stream=False)
    async with aclosing(vllm_engine.generate([1, 2, 3], sampling, n=2, guides={BASE: 1.0})) as chunks:
        drawing = asyncio.ensure_future(anext(chunks))
        await until(lambda: activity() > -math.inf)
        drawing.cancel()
        await asyncio.gather(drawing, return_exceptions=True)
    still = activity()
    await asyncio.sleep(0.1)
    assert activity() == still
