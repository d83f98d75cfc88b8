"""Requests that end early, wait, are preempted, and follow one another in the same place."""

import asyncio
from contextlib import aclosing

import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import PrometheusStatLogger

from tests.engine.conftest import GUIDES, OPTIONS
from tests.engine.test_parity import TOLERANCE, Case, answer, check
from tests.waiting import until
from trimtab.decoders.protocols import BASE, Sampling
from trimtab.engine.table import cache_salt

PROMPT = list(range(40))
LONG = Sampling(max_tokens=200, seed=0, engine_params=SamplingParams(ignore_eos=True))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("after", [0, 1, 5])
async def test_an_early_close_leaves_nothing(vllm_engine, live, n, after):
    chunks = vllm_engine.generate(PROMPT, LONG, n=n, guides={BASE: 1.0, "llama": 0.5})
    async with aclosing(chunks):
        for _ in range(after):
            await anext(chunks)
    assert live() == 0


async def test_a_cancelled_caller_leaves_nothing(vllm_engine, live):
    """At whatever moment: the delays fall before, in and after registering the request."""

    async def consume():
        async with aclosing(vllm_engine.generate(PROMPT, LONG, n=2, guides={BASE: 1.0, "llama": 0.5})) as chunks:
            async for _ in chunks:
                pass

    for turns in (*range(12), 50, 500):
        task = asyncio.create_task(consume())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert live() == 0, turns


async def test_a_cancelled_score_leaves_nothing(vllm_engine, live):
    task = asyncio.create_task(vllm_engine.score(list(range(100)), [1] * 100, guides={BASE: 1.0}))
    await until(live)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert live() == 0


async def test_no_row_outlives_its_request(vllm_engine, client, together, reference):
    """Heavily guided requests come and go in every place; the plain ones after and among them are the base's own."""
    heavy = Case(PROMPT, {BASE: 0.1, "llama": 3.0, "qwen": -2.0})
    plain = SamplingParams(
        max_tokens=12, temperature=0.0, logprobs=5, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
    )

    async def direct(i: int):
        prompt = [i, *PROMPT]
        async for output in client.generate({"prompt_token_ids": prompt}, plain, f"plain-{i}"):
            done = output.outputs[0]
        return check(reference, Case(prompt, {BASE: 1.0}), list(done.token_ids), done.logprobs, greedy=True)

    places = OPTIONS["max_num_seqs"]
    await together(*(answer(vllm_engine, heavy, seed=i) for i in range(2 * places)))
    assert max(await together(*(direct(i) for i in range(2 * places)))) <= TOLERANCE
    mixed = [job for i in range(2 * places) for job in (answer(vllm_engine, heavy, seed=i), direct(100 + i))]
    assert max((await together(*mixed))[1::2]) <= TOLERANCE


def count_preemptions(client: AsyncLLM) -> float:
    """By the engine's own counter: the registry of the process has that of the engine that began last."""
    [statistics] = [each for each in client.logger_manager.stat_loggers if isinstance(each, PrometheusStatLogger)]
    return statistics.counter_num_preempted_reqs[0]._value.get()


async def test_preemption(vllm_engine, together, reference):
    """More tokens at once than the cache holds: whoever is put back and resumed keeps its weights, and its seed."""
    cases = [Case([i, *PROMPT], {BASE: 1.0, GUIDES[i % 3]: 0.3 * i}) for i in range(8)]
    sampling = Sampling(max_tokens=120, seed=5, engine_params=SamplingParams(ignore_eos=True, logprobs=5))

    async def whole(case: Case) -> tuple[list[int], list[dict]]:
        tokens, logprobs = [], []
        async with aclosing(vllm_engine.generate(case.prompt, sampling, n=1, guides=case.mixture)) as chunks:
            async for chunk in chunks:
                tokens += chunk.tokens
                logprobs += chunk.engine_output.outputs[0].logprobs
        return tokens, logprobs

    alone = [await whole(case) for case in cases]
    before = count_preemptions(vllm_engine.client)
    told = await together(*(whole(case) for case in cases))
    assert count_preemptions(vllm_engine.client) > before, "the cache was large enough: nothing was tested"
    assert [tokens for tokens, _ in told] == [tokens for tokens, _ in alone]
    for case, (tokens, logprobs) in zip(cases, told, strict=True):
        assert check(reference, case, tokens, logprobs, greedy=False) <= TOLERANCE


async def test_a_request_s_context_reaches_vllm(vllm_engine):
    """Ids, salts and vLLM's own arguments."""
    seen = {}

    class Client:
        model_config = vllm_engine.client.model_config

        async def generate(self, prompt, params, request_id, **context):
            seen.update(prompt=prompt, id=request_id, **context)
            raise RuntimeError("enough")
            yield

        async def abort(self, request_id):
            seen["aborted"] = request_id

    bound = type(vllm_engine)(client=Client()).for_request(
        "chat-7", cache_salt="s", priority=3, trace_headers={"a": "b"}
    )
    with pytest.raises(RuntimeError, match="enough"):
        await bound.score([1], [2], guides={BASE: 1.0})
    assert seen["prompt"]["cache_salt"] == cache_salt("s")
    assert seen["id"].startswith("chat-7-")
    assert (seen["priority"], seen["trace_headers"], seen["aborted"]) == (3, {"a": "b"}, seen["id"])
