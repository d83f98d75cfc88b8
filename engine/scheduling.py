"""A call of vLLM in its request's share of the engine, counted as the request's."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from trimtab.runtime.strategy_run import StrategyRun


async def schedule(
    run: StrategyRun,
    generate: Callable[..., AsyncGenerator[RequestOutput, None]],
    params: SamplingParams,
    *,
    visible: bool = False,
    rows: int = 1,
    **context: Any,
) -> AsyncGenerator[RequestOutput, None]:
    """The call's outputs; `generate` gets `context`, and a priority where shares are kept.

    `rows`: of the batch, each of which counts. `visible`: whether the client gets the outputs as they are; what it does
    not is counted by the engine that draws it.
    """
    usage, deltas = run.usage, params.output_kind == RequestOutputKind.DELTA
    finished = False
    drawn: dict[int, int] = {}
    with run.share.schedule(rows * params.n * (params.max_tokens or 1)) as call:
        if call.priority is not None:
            context["priority"] = call.priority
        try:
            async with aclosing(generate(**context)) as outputs:
                async for output in outputs:
                    for piece in output.outputs:
                        tokens = len(piece.token_ids)
                        drawn[piece.index] = tokens + (drawn.get(piece.index, 0) if deltas else 0)
                        if visible:
                            usage.sampled += tokens
                            usage.record_visible(tokens)
                    call.record(rows * sum(drawn.values()))
                    finished = output.finished
                    yield output
        finally:
            usage.cancelled_calls += not finished
