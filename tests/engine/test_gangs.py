"""Gangs on vLLM's V1 runner against transformers, token by token.

Requests of every kind run side by side: a contrast of two prompts, three contexts, the base with an adapter of it, and
plain ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from tests.engine import family
from trimtab.engine.gangs import KEY, Follower, GangSpec, pack

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

pytestmark = pytest.mark.engine
TOKENS = 24
ADAPTER = ("aligned", 1, "")
"""Name, number and place."""


@dataclass(frozen=True)
class Row:
    weight: float
    prompt: list[int]
    adapted: bool = False


def draw_prompt(seed: int, length: int) -> list[int]:
    return torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def make_members(i: int) -> list[Row]:
    """Leader first. Of every third the followers' prompts are longer than a step's budget."""
    own = draw_prompt(i, 5 + i)
    longer, other = draw_prompt(100 + i, 40 if i % 3 else 80), draw_prompt(200 + i, 7)
    kinds = [
        [Row(1.5, [*longer, *own]), Row(-0.5, own)],
        [Row(1.0, own), Row(0.8, [*longer, *own]), Row(-0.8, [*other, *own])],
        [Row(1.0, own), Row(0.7, own, adapted=True)],
        [Row(1.0, own)],
    ]
    return kinds[i % 4]


def extra_args(members: Sequence[Row], *, scored: int = 0) -> dict[str, bytes] | None:
    if len(members) == 1:
        return None
    followers = [
        Follower(weight=row.weight, prompt=row.prompt, adapter=ADAPTER if row.adapted else None) for row in members[1:]
    ]
    return {KEY: pack(GangSpec(weight=members[0].weight, followers=followers, scored=scored))}


@torch.inference_mode()
def mixture(models: Mapping[bool, Any], members: Sequence[Row], answer: Sequence[int]) -> Tensor:
    """[T, V] log-probabilities before each token of the answer, by a plain recompute."""
    z = 0.0
    for row in members:
        logits = models[row.adapted](torch.tensor([[*row.prompt, *answer]])).logits[0].float()
        z = z + row.weight * logits[len(row.prompt) - 1 : -1]
    return torch.as_tensor(z).log_softmax(-1)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The base's, and that of its adapter."""
    folder = tmp_path_factory.mktemp("gangs")
    base = family.base(folder / "base")
    return {False: base, True: family.adapter(folder / ADAPTER[0], base)}


@pytest.fixture(scope="module")
def models(paths: dict[bool, Path]) -> dict[bool, Any]:
    """The base, and the base with its adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM as HF

    plain, adapted = (HF.from_pretrained(paths[False], dtype=torch.float32).eval() for _ in range(2))
    return {False: plain, True: PeftModel.from_pretrained(adapted, paths[True]).eval()}


OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": family.POSITIONS,
    "max_num_seqs": 24,
    "max_num_batched_tokens": 48,
    "block_size": 32,
}
SMALL, LARGE = 500 << 10, 8 << 20
"""Bytes of the cache: of the small one gangs are preempted."""


@pytest.fixture(scope="module", params=[(LARGE, True), (SMALL, True), (SMALL, False)], ids=str)
async def client(paths: dict[bool, Path], request: pytest.FixtureRequest) -> AsyncIterator[AsyncLLM]:
    """With a cache of so many bytes, and asynchronous steps or not."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from trimtab.engine.members import engine_args

    memory, asynchronous = request.param
    kind = "AsyncGangScheduler" if asynchronous else "GangScheduler"
    global ADAPTER
    ADAPTER = ("aligned", 1, str(paths[True]))
    more = {"scheduler_cls": f"trimtab.engine.gang_scheduler.{kind}", "async_scheduling": asynchronous}
    llm = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            **engine_args(
                str(paths[False]),
                {},
                adapters={"aligned": str(paths[True])},
                enable_lora=True,
                **OPTIONS,
                **more,
                kv_cache_memory_bytes=memory,
            )
        )
    )
    try:
        yield llm
    finally:
        llm.shutdown()


async def answer(client: AsyncLLM, name: str, rows: Sequence[Row], **more: Any) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    params = SamplingParams(
        max_tokens=TOKENS, logprobs=2, output_kind=RequestOutputKind.FINAL_ONLY, extra_args=extra_args(rows), **more
    )
    outputs = [output async for output in client.generate({"prompt_token_ids": rows[0].prompt}, params, name)]
    [only] = outputs[-1].outputs
    return only


async def test_every_token_is_the_mixtures(client: AsyncLLM, models: dict[bool, Any]) -> None:
    made = {f"r{i}": make_members(i) for i in range(16)}
    more = {"temperature": 0.0, "ignore_eos": True}
    answers = await asyncio.gather(*(answer(client, name, rows, **more) for name, rows in made.items()))
    for rows, found in zip(made.values(), answers, strict=True):
        logprobs = mixture(models, rows, found.token_ids)
        assert logprobs.argmax(-1).tolist() == list(found.token_ids)
        for at, listed in enumerate(found.logprobs):
            for token, logprob in listed.items():
                assert logprob.logprob == pytest.approx(float(logprobs[at, token]), abs=1e-4)


async def test_a_seed_draws_the_same_in_any_company(client: AsyncLLM) -> None:
    made = {f"s{i}": make_members(i) for i in range(9)}
    alone = [await answer(client, name, rows, seed=i) for i, (name, rows) in enumerate(made.items())]
    together = await asyncio.gather(
        *(answer(client, f"{name}+", rows, seed=i) for i, (name, rows) in enumerate(made.items()))
    )
    assert [one.token_ids for one in alone] == [one.token_ids for one in together]


async def score(client: AsyncLLM, name: str, rows: Sequence[Row], completion: list[int]) -> list[float]:
    """Of each token, as `VLLMEngine.score` reads them."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    longer = [replace(row, prompt=[*row.prompt, *completion[:-1]]) for row in rows]
    params = SamplingParams(
        max_tokens=1,
        temperature=0.0,
        logprobs=0,
        prompt_logprobs=0,
        allowed_token_ids=completion[-1:],
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=extra_args(longer, scored=len(completion)),
    )
    outputs = [output async for output in client.generate({"prompt_token_ids": longer[0].prompt}, params, name)]
    listed = [*outputs[-1].prompt_logprobs[len(rows[0].prompt) :], outputs[-1].outputs[0].logprobs[0]]
    return [logprobs[token].logprob for logprobs, token in zip(listed, completion, strict=True)]


async def test_a_completion_is_scored_in_one_pass(client: AsyncLLM, models: dict[bool, Any]) -> None:
    made = {f"c{i}": make_members(i) for i in range(12)}
    completions = [draw_prompt(300 + i, 1 + 5 * i) for i in range(12)]
    scores = await asyncio.gather(*map(partial(score, client), made, made.values(), completions))
    for rows, completion, found in zip(made.values(), completions, scores, strict=True):
        logprobs = mixture(models, rows, completion)
        expected = logprobs.gather(-1, torch.tensor(completion)[:, None])[:, 0].tolist()
        assert found == pytest.approx(expected, abs=1e-4)


async def test_the_small_cache_preempts(client: AsyncLLM) -> None:
    """Or nothing here is shown of it."""
    from prometheus_client import REGISTRY

    labels = {"engine": "0", "model_name": client.model_config.served_model_name}
    preempted = REGISTRY.get_sample_value("vllm:num_preemptions_total", labels) or 0
    assert (preempted > 5) == (client.vllm_config.cache_config.num_gpu_blocks < 100)
