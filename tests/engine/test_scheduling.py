"""A call of vLLM in its request's share: its priority, what is counted of it, and what is given back."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import pytest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from trimtab.engine.mixing import Mixing
from trimtab.engine.scheduling import schedule
from trimtab.engine.table import KEY, pack
from trimtab.engine.vllm_engine import VLLMEngine
from trimtab.runtime.shares import RequestShare, Shares
from trimtab.runtime.strategy_run import StrategyRun, current_run


def output(tokens: list[int], *, finished: bool = False, index: int = 0) -> RequestOutput:
    piece = CompletionOutput(index=index, text="", token_ids=tokens, cumulative_logprob=None, logprobs=None)
    return RequestOutput("id", None, [1], None, [piece], finished)


@pytest.mark.parametrize("kind", [RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY])
async def test_a_call_gives_back_what_it_did_not_draw(kind: RequestOutputKind) -> None:
    shares, given = Shares(), dict[str, Any]()

    async def generate(**context: Any) -> AsyncGenerator[RequestOutput, None]:
        given.update(context)
        if kind == RequestOutputKind.DELTA:
            yield output([1, 2])
            yield output([3], finished=True)
        else:
            yield output([1, 2, 3], finished=True)

    run = StrategyRun(share=RequestShare(shares=shares, caller="a"))
    params = SamplingParams(max_tokens=10, output_kind=kind)
    shares.now = 7
    async for _ in schedule(run, generate, params, visible=True, lora_request=None):
        pass
    assert given == {"lora_request": None, "priority": 7}
    assert shares.finish == {("a", False): 10, ("a", True): 10}
    assert (run.usage.visible, run.usage.cancelled_calls) == (3, 0)
    assert run.usage.sampled == 3, "what the client sees as it is, nobody else counts"
    assert run.usage.first_visible_at is not None


async def test_a_call_that_is_left_is_counted_and_given_back() -> None:
    async def generate(**context: Any) -> AsyncGenerator[RequestOutput, None]:
        assert not context  # without shares, vLLM's own order
        for token in range(9):
            yield output([token])

    run = StrategyRun()
    stream = schedule(run, generate, SamplingParams(max_tokens=10, output_kind=RequestOutputKind.DELTA))
    async for _ in stream:
        break
    await stream.aclose()
    assert (run.usage.visible, run.usage.cancelled_calls) == (0, 1)


@dataclass
class Client:
    """Remembers the priority of each call."""

    given: list[Any] = field(default_factory=list)

    async def generate(self, *args: Any, **context: Any) -> AsyncGenerator[RequestOutput, None]:
        self.given.append(context.get("priority"))
        yield output([1], finished=True)


async def test_a_reward_that_asks_the_base_waits_in_its_request_s_place() -> None:
    """Its engine is bound to no request, and a call without a priority would pass all others."""
    client, shares = Client(), Shares(now=7)
    unbound = VLLMEngine(client=client)
    for own, priority in (
        (None, None),
        (StrategyRun(share=RequestShare(shares=shares, caller="a")), 7),
        (StrategyRun(), None),
    ):
        token = current_run.set(own)
        params = SamplingParams(max_tokens=1, extra_args={KEY: pack([1.0])})
        assert [piece async for piece in unbound._run([1], params, Mixing({}, rows=3, room=1))]
        current_run.reset(token)
        assert client.given.pop() == priority
    assert shares.finish[("a", False)] == 7 + 3, "a token on three rows is three"
