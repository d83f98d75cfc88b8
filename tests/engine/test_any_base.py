"""Bases that cannot run in lock-step with guides: without any they are vLLM's own models, under every search.

Hybrids keep a recurrent state, and speculation reads or writes more than one step's rows. What is drawn and scored is
compared with Hugging Face's own code.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM as HF
from vllm.sampling_params import SamplingParams

from tests.contracts import Specimen, no_guides_are_the_base
from tests.engine import family
from tests.engine.conftest import OPTIONS
from trimtab.decoders import STRATEGIES
from trimtab.decoders.protocols import BASE, Sampling
from trimtab.preferences.preference_direction import DPA, Cone, PreferenceDirection, Template

if TYPE_CHECKING:
    from trimtab.engine.vllm_engine import VLLMEngine

pytestmark = pytest.mark.engine

KINDS = ("granite", "mamba2", "ngram", "draft", "eagle")
PROMPTS = (list(range(3, 12)), list(range(50, 90)), [*range(20, 60), *range(20, 60)])
TOLERANCE = 2e-3
"""On log-probs, in nats: kernels for float32 in another order."""


@dataclass(frozen=True)
class Served:
    kind: str
    engine: VLLMEngine
    model: Any
    """The base in Hugging Face's code."""

    @torch.no_grad()
    def logprobs(self, tokens: list[int]) -> torch.Tensor:
        """[T, V] of the next token after each."""
        logprobs: torch.Tensor = self.model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
        return logprobs

    async def draw(self, prompt: list[int], sampling: Sampling, n: int = 1) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in range(n)]
        async for chunk in self.engine.generate(prompt, sampling, n=n, guides={BASE: 1.0}):
            answers[chunk.index] += chunk.tokens
        return answers


@pytest.fixture(scope="module", params=KINDS)
async def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from trimtab.engine.members import engine_args
    from trimtab.engine.vllm_engine import VLLMEngine

    kind, root = request.param, tmp_path_factory.mktemp(request.param)
    path = family.base(root / "base") if kind in ("ngram", "draft", "eagle") else getattr(family, kind)(root / "base")
    options: dict[str, Any] = {
        "ngram": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}},
        "draft": {"speculative_config": {"num_speculative_tokens": 2, "model": str(root / "draft")}},
        "eagle": {
            "speculative_config": {"method": "eagle", "num_speculative_tokens": 2, "model": str(root / "eagle")},
        },
    }.get(kind, {"block_size": None})
    if kind == "draft":
        family.llama(root / "draft")
    if kind == "eagle":
        family.eagle(root / "eagle", path)
    llm = AsyncLLM.from_engine_args(
        # Its statistics would take the place of the shared engine's.
        AsyncEngineArgs(**engine_args(str(path), {}, **{**OPTIONS, "disable_log_stats": True, **options}))
    )
    try:
        yield Served(kind, VLLMEngine(client=llm), load(path))
    finally:
        llm.shutdown()


def load(path: Path) -> Any:
    return HF.from_pretrained(path, dtype=torch.float32).eval()


async def test_greedy_answers_are_the_model_s(served: Served) -> None:
    """All but where two tokens are as good as alike."""
    sampling = Sampling(max_tokens=16, temperature=0.0, engine_params=SamplingParams(ignore_eos=True), stream=False)
    answers = await asyncio.gather(*(served.draw(prompt, sampling) for prompt in PROMPTS))
    for prompt, [answer] in zip(PROMPTS, answers, strict=True):
        assert len(answer) == 16
        rows = served.logprobs([*prompt, *answer])[len(prompt) - 1 : -1]
        drawn = rows[range(16), answer]
        torch.testing.assert_close(drawn, rows.max(-1).values, atol=TOLERANCE, rtol=0)


async def test_scores_are_the_model_s(served: Served) -> None:
    """Of several answers at once, drawn with seeds."""
    sampling = Sampling(max_tokens=12, seed=5, engine_params=SamplingParams())
    answers = [await served.draw(prompt, sampling, n=2) for prompt in PROMPTS]
    pairs = [(prompt, answer) for prompt, two in zip(PROMPTS, answers, strict=True) for answer in two]
    scores = await asyncio.gather(*(served.engine.score(*pair, guides={BASE: 1.0}) for pair in pairs))
    for (prompt, answer), score in zip(pairs, scores, strict=True):
        rows = served.logprobs([*prompt, *answer])[len(prompt) - 1 : -1]
        assert score == pytest.approx(rows[range(len(answer)), answer].tolist(), abs=TOLERANCE)
    assert len({tuple(answer) for _, answer in pairs}) > 3


@pytest.mark.parametrize("name", STRATEGIES)
async def test_every_search_that_needs_no_guide(served: Served, name: str) -> None:
    async def shortness(prompt: Any, completions: Any) -> list[list[float]]:
        return [[-float(len(tokens))] for tokens in completions]

    async def live() -> int:
        return served.engine.client.get_num_unfinished_requests()

    specimen = Specimen(
        engine=served.engine,
        prompts=PROMPTS,
        guides=("nobody",),
        reward=shortness,
        live=live,
        sampling=Sampling(max_tokens=8, engine_params=SamplingParams()),
        tolerance=TOLERANCE,
        direction=PreferenceDirection(
            objectives=("h", "w"),
            v=(0.8, 0.6),
            cone=Cone(axis=(1.0, 0.0), degrees=45),
            template=Template(text=DPA, role="system", slots=("h", "w"), signs=(1.0, 1.0)),
        ),
        stopping=lambda stop: Sampling(max_tokens=8),
        ending_at=lambda token: Sampling(max_tokens=8),
    )
    if "direction" in STRATEGIES[name].takes:  # what instructs the model needs a request's messages
        return
    if name == "segments":
        with pytest.raises(ValueError, match="the entropy of a distribution cannot be had of this server's engine"):
            await no_guides_are_the_base(specimen, name)
    else:
        await no_guides_are_the_base(specimen, name)
    assert await live() == 0


async def test_what_only_the_composite_can_do_is_refused_with_the_reason(served: Served) -> None:
    reason = "recurrent state" if served.kind in ("granite", "mamba2") else "speculat"
    sampling = Sampling(max_tokens=4, engine_params=SamplingParams())
    for refused, guides in ((sampling, {BASE: 0.5}), (replace(sampling, plausibility=0.1), {BASE: 1.0})):
        with pytest.raises(ValueError, match=f"cannot be had of this server's engine, for .*{reason}") as error:
            [_ async for _ in served.engine.generate(PROMPTS[0], refused, n=1, guides=guides)]
        assert str(Path(served.engine.client.model_config.model).parent) not in str(error.value)
    with pytest.raises(ValueError, match="mixture other than the base alone"):
        await served.engine.score(PROMPTS[0], [1, 2], guides={BASE: 2.0})
    assert await served.engine.divergence(PROMPTS[0], [1, 2], guides={BASE: 1.0}) == [0.0, 0.0]
