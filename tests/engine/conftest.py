"""One engine on CPU with every kind of guide, shared by the session, and a plain recompute of the same models."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from tests.engine import family
from tests.waiting import until
from trimtab.decoders.protocols import BASE, Mixture

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

    from trimtab.engine.vllm_engine import VLLMEngine

GUIDES = ("llama", "qwen", "windowed", "shorter", "lora")
OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": family.POSITIONS,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "block_size": 32,
    "kv_cache_memory_bytes": 4 << 20,
    "enforce_eager": True,
}
"""Little of everything, so that chunks, prefix hits, queueing, recycled rows and preemption all happen."""


UNCLOSED = ("Unclosed context", "unclosed context", "Unclosed socket", "unclosed socket")
"""What vLLM's client leaves to the garbage collector."""


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning")  # torch, vLLM and SWIG, at import
    for message in UNCLOSED:
        config.addinivalue_line("filterwarnings", f"ignore:{message}:ResourceWarning")
        warnings.filterwarnings("ignore", message, ResourceWarning)  # past the last test, pytest's own are gone


@pytest.fixture(scope="session")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """member -> its checkpoint's directory"""
    root = tmp_path_factory.mktemp("family")
    paths = {name: getattr(family, name)(root / name) for name in (BASE, *GUIDES[:-1])}
    return {**paths, "lora": family.adapter(root / "lora", paths[BASE])}


@dataclass(frozen=True)
class Plain:
    """What vLLM alone says of the base."""

    prompts: list[list[int]]
    temperatures: tuple[float, ...]
    answers: list[list[int]]


@pytest.fixture(scope="session")
async def plain_vllm(members: dict[str, Path]) -> Plain:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

    prompts, temperatures = [list(range(i, i + 40 + i)) for i in range(8)], (0.0, 1.0)
    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(members[BASE]), disable_log_stats=True, **OPTIONS))

    async def answer(i: int, temperature: float) -> list[int]:
        params = SamplingParams(
            max_tokens=24, temperature=temperature, seed=i, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
        )
        outputs = [o async for o in llm.generate({"prompt_token_ids": prompts[i]}, params, f"{i}-{temperature}")]
        return list(outputs[-1].outputs[0].token_ids)

    try:
        answers = [await answer(i, temperature) for i in range(len(prompts)) for temperature in temperatures]
    finally:
        llm.shutdown()
    return Plain(prompts, temperatures, answers)


@pytest.fixture(scope="session")
async def client(members: dict[str, Path], plain_vllm: Plain) -> AsyncIterator[AsyncLLM]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from trimtab.engine.members import engine_args

    arguments = engine_args(str(members[BASE]), {guide: str(members[guide]) for guide in GUIDES}, **OPTIONS)
    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    try:
        yield llm
    finally:
        llm.shutdown()


@pytest.fixture(scope="session")
def vllm_engine(client: AsyncLLM) -> VLLMEngine:
    from trimtab.engine.vllm_engine import VLLMEngine

    return VLLMEngine(client=client)


@pytest.fixture(scope="session")
def legal_tokens() -> range:
    """Ids that every member knows and that end nothing."""
    return range(190)


@pytest.fixture
def live(client: AsyncLLM) -> Callable[[], int]:
    """How many generations run right now."""
    return client.get_num_unfinished_requests


Together = Callable[..., Awaitable[list[Any]]]


@pytest.fixture(scope="session")
def together(client: AsyncLLM) -> Together:
    """As `asyncio.gather`, of answers that are one draw each; but the engine begins none before it has all.

    What a step holds is then the same on any machine, and with it how often requests are put back, and each rounding.
    """

    async def together(*answers: Coroutine[Any, Any, Any]) -> list[Any]:
        before = client.get_num_unfinished_requests()
        await client.pause_generation(mode="keep", clear_cache=False)
        tasks = [asyncio.ensure_future(answer) for answer in answers]
        try:
            await until(lambda: client.get_num_unfinished_requests() == before + len(tasks))
        finally:
            await client.resume_generation()
        return await asyncio.gather(*tasks)

    return together


@dataclass(frozen=True)
class Reference:
    """The members in Hugging Face's own code, one sequence at a time; fp64, so that the noise is ours alone."""

    models: Mapping[str, Any]

    @torch.no_grad()
    def logits(self, member: str, tokens: list[int]) -> Tensor:
        """[T, V_member]"""
        model = self.models[member]
        known = torch.tensor([tokens]).clamp(max=model.config.vocab_size - 1)
        return model(known).logits[0]

    def logprobs(self, tokens: list[int], mixture: Mixture) -> Tensor:
        """[T, V] of the next token after each."""
        V = family.PADDED
        z = torch.zeros(len(tokens), V, dtype=torch.float64)
        for member, weight in mixture.items():
            logprobs = self.logits(member, tokens).log_softmax(-1)
            z[:, : logprobs.shape[-1]] += weight * logprobs
            if weight != 0:
                z[:, logprobs.shape[-1] :] = float("-inf")
        return z.log_softmax(-1)

    def divergence(self, tokens: list[int], mixture: Mixture) -> Tensor:
        """[T] KL(mixture || base)"""
        p, q = self.logprobs(tokens, mixture), self.logprobs(tokens, {BASE: 1.0})
        return (p.exp() * (p - q)).nan_to_num(0.0).sum(-1)


def load(members: Mapping[str, Path | str]) -> dict[str, Any]:
    """The members in Hugging Face's code; the adapter merged by peft."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM as HF

    models = {name: HF.from_pretrained(path, dtype=torch.float64) for name, path in members.items() if name != "lora"}
    base = HF.from_pretrained(members[BASE], dtype=torch.float64)
    models["lora"] = PeftModel.from_pretrained(base, members["lora"]).merge_and_unload()
    return {name: model.eval() for name, model in models.items()}


@pytest.fixture(scope="session")
def reference(members: dict[str, Path]) -> Reference:
    return Reference(load(members))
