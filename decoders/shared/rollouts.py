"""Continuations drawn behind several beginnings of an answer at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

from trimtab.decoders.protocols import LIMIT_REASONS, Engine, LimitReached, Mixture, Sampling, Tokens
from trimtab.decoders.shared.candidates import stop_position
from trimtab.decoders.shared.gather import gather_or_cancel

Answer = tuple[int, ...]


def end_reason(tokens: Tokens, sampling: Sampling, engine: Engine) -> str | None:
    """How an answer has ended, stop strings apart; None: it has not."""
    if tokens and tokens[-1] in {*engine.eos_ids, *sampling.stop_token_ids}:
        return "stop"
    return "length" if len(tokens) >= sampling.max_tokens else None


async def roll_out(
    prompt: Tokens,
    beginnings: Sequence[Answer],
    sampling: Sampling,
    engine: Engine,
    *,
    n: int,
    limits: Sequence[int],
    guides: Mixture,
    seeds: Sequence[int | None],
) -> list[list[Answer]]:
    """[k][n] each beginning carried on to `limits[j]` tokens, or to its end, `sampling.max_tokens` being the answer's.

    One that has come so far already is given back alone and as it is. `seeds[j]` is of the j-th beginning.
    Raises LimitReached if a budget or deadline cut one.
    """

    async def behind(j: int, begun: Answer) -> list[Answer]:
        left = min(limits[j], sampling.max_tokens) - len(begun)
        if (
            left <= 0
            or end_reason(begun, sampling, engine)
            or stop_position(begun, 0, sampling.stop, engine) is not None
        ):
            return [begun]
        segment = replace(sampling, max_tokens=left, stream=False, seed=seeds[j], begun=len(begun))
        drawn = [begun] * n
        async with aclosing(engine.generate([*prompt, *begun], segment, n=n, guides=guides)) as chunks:
            async for chunk in chunks:
                drawn[chunk.index] += chunk.tokens
                if chunk.finish in LIMIT_REASONS:
                    raise LimitReached(chunk.finish)
        ends = [stop_position(answer, len(begun), sampling.stop, engine) for answer in drawn]
        return [answer[:end] for answer, end in zip(drawn, ends, strict=True)]

    return await gather_or_cancel(behind(j, begun) for j, begun in enumerate(beginnings))
