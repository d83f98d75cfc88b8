"""Guides that are rows of the batch, prompts and adapters, against transformers, token by token.

Requests of every kind run side by side: with one prompt and with two, with an adapter, with a model of its own, with
all of these, and plain ones; in a cache that preempts them, too.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from prometheus_client import REGISTRY
from torch import Tensor
from vllm.sampling_params import SamplingParams

from tests.engine import family
from trimtab.decoders.protocols import BASE, Mixture, Sampling
from trimtab.engine.vllm_engine import VLLMEngine
from trimtab.runtime.contexts import Context, Instruction, RequestContexts
from trimtab.runtime.strategy_run import StrategyRun

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

pytestmark = pytest.mark.engine
TOKENS = 24
ADAPTER, MODEL = "aligned", "llama"
WARM, COLD, TERSE = (Instruction(text) for text in ("warm", "cold", "terse"))
CONTEXTS = {
    "warmth": Context(prompt=WARM, against=COLD),
    "brevity": Context(prompt=TERSE),
    "freedom": Context(against=COLD),
    "nothing": Context(prompt=WARM, against=WARM),
}
MIXTURES: list[Mixture] = [
    {"warmth": 0.8},
    {"brevity": 1.5},
    {"warmth": 0.8, "brevity": -0.4, "freedom": 0.3},
    {ADAPTER: 0.7},
    {BASE: 1.0},
    {MODEL: 0.6, "warmth": 0.8, ADAPTER: 0.4},
    {BASE: 0.0, MODEL: 1.0, "brevity": 0.5},
    {BASE: 0.6, "freedom": 0.9},
]
Law = dict[str, float]


def draw_tokens(seed: int, length: int) -> list[int]:
    return torch.randint(3, 190, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@dataclass(frozen=True)
class Case:
    at: int
    mixture: Mixture

    @property
    def prompt(self) -> list[int]:
        return draw_tokens(self.at, 5 + self.at)

    def under(self, instruction: Instruction) -> list[int]:
        """The prompt under an instruction: of every third case longer than a step's budget."""
        lengths = {"warm": 80 if self.at % 3 == 0 else 40, "cold": 7, "terse": 1}
        return [*draw_tokens(100 + self.at + len(instruction.text), lengths[instruction.text]), *self.prompt]

    def engine(self, client: AsyncLLM, adapter: Path) -> VLLMEngine:
        async def render(instruction: Instruction) -> list[int]:
            await asyncio.sleep(0.01)
            return self.under(instruction)

        contexts = RequestContexts(contexts=CONTEXTS, adapters=frozenset([ADAPTER]), render=render)
        engine = VLLMEngine(client=client, adapters={ADAPTER: (ADAPTER, 2**20, str(adapter))})
        return engine.for_request(f"r{self.at}", prompt=self.prompt, run=StrategyRun(contexts=contexts))


CASES = [Case(at, MIXTURES[at % len(MIXTURES)]) for at in range(16)]


@dataclass(frozen=True)
class Reference:
    """Transformers' and peft's models, and the law as it is written."""

    models: Mapping[str, Any]

    @torch.inference_mode()
    def logits(self, model: str, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        """[T, V] before each token of the answer, in fp64."""
        logits: Tensor = self.models[model](torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        return logits.double()

    def logprobs(self, case: Case, answer: Sequence[int], mixture: Mixture | None = None) -> Tensor:
        """[T, V]"""
        mixture = case.mixture if mixture is None else mixture
        base = self.logits(BASE, case.prompt, answer)
        z = mixture.get(BASE, 1.0) * base
        for name, weight in mixture.items():
            if name in (ADAPTER, MODEL):
                z = z + weight * self.logits(name, case.prompt, answer)
            elif name in CONTEXTS:
                context = CONTEXTS[name]
                towards = self.logits(BASE, case.under(context.prompt), answer) if context.prompt else base
                away = self.logits(BASE, case.under(context.against), answer) if context.against else base
                z = z + weight * (towards - away)
        return z.log_softmax(-1)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gangs")
    base = family.base(folder / BASE)
    return {BASE: base, MODEL: family.llama(folder / MODEL), ADAPTER: family.adapter(folder / ADAPTER, base)}


@pytest.fixture(scope="module")
def reference(paths: dict[str, Path]) -> Reference:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM as HF

    base, adapted, model = (HF.from_pretrained(paths[name], dtype=torch.float32).eval() for name in (BASE, BASE, MODEL))
    return Reference({BASE: base, ADAPTER: PeftModel.from_pretrained(adapted, paths[ADAPTER]).eval(), MODEL: model})


OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": family.POSITIONS,
    "max_num_seqs": 24,
    "max_num_batched_tokens": 48,
    "block_size": 32,
}
SMALL, LARGE = 900 << 10, 12 << 20
"""Bytes of the cache: of the small one gangs are preempted."""


@pytest.fixture(scope="module", params=[(LARGE, True), (SMALL, True), (SMALL, False)], ids=str)
async def client(paths: dict[str, Path], request: pytest.FixtureRequest) -> AsyncIterator[AsyncLLM]:
    """With a cache of so many bytes, and the scheduler for asynchronous steps or the other. vLLM's steps are never
    asynchronous on CPU: tests/engine/test_gang_scheduler.py has those, without an engine."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    from trimtab.engine.gang_config import SCHEDULERS, schedule_gangs
    from trimtab.engine.launch import EngineSpec
    from trimtab.engine.members import engine_args

    memory, asynchronous = request.param
    options = {**OPTIONS, "kv_cache_memory_bytes": memory, "enable_lora": True}
    arguments = engine_args(
        str(paths[BASE]), {MODEL: str(paths[MODEL])}, rows={ADAPTER: str(paths[ADAPTER])}, **options
    )
    spec = EngineSpec(name=BASE, args=AsyncEngineArgs(**arguments))
    schedule_gangs(spec.config, needed=[*CONTEXTS])
    spec.config.scheduler_config.scheduler_cls = SCHEDULERS[asynchronous]
    llm = spec.start()
    try:
        yield llm
    finally:
        llm.shutdown()


@pytest.fixture(scope="module")
def engines(client: AsyncLLM, paths: dict[str, Path]) -> list[VLLMEngine]:
    """Of each case."""
    return [case.engine(client, paths[ADAPTER]) for case in CASES]


async def answer(case: Case, engine: VLLMEngine, **sampling: Any) -> tuple[list[int], list[dict[int, float]]]:
    """Tokens, and the log-probabilities that the client is told."""
    native = SamplingParams(logprobs=2, ignore_eos=True)
    sampled = Sampling(max_tokens=TOKENS, engine_params=native, **sampling)
    tokens: list[int] = []
    shown: list[dict[int, float]] = []
    async with aclosing(engine.generate(case.prompt, sampled, n=1, guides=case.mixture)) as chunks:
        async for chunk in chunks:
            tokens += chunk.tokens
            for listed in chunk.engine_output.outputs[0].logprobs:
                shown.append({token: logprob.logprob for token, logprob in listed.items()})
    return tokens, shown


async def test_every_token_is_the_mixtures(engines: list[VLLMEngine], reference: Reference) -> None:
    answers = await asyncio.gather(*map(partial(answer, temperature=0.0), CASES, engines))
    for case, (tokens, shown) in zip(CASES, answers, strict=True):
        logprobs = reference.logprobs(case, tokens)
        assert logprobs.argmax(-1).tolist() == tokens, case.mixture
        for row, listed in zip(logprobs, shown, strict=True):
            for token, logprob in listed.items():
                assert logprob == pytest.approx(float(row[token]), abs=1e-4)


async def test_a_seed_draws_the_same_in_any_company(engines: list[VLLMEngine]) -> None:
    alone = [await answer(case, engine, seed=case.at) for case, engine in zip(CASES[:9], engines, strict=False)]
    together = await asyncio.gather(
        *(answer(case, engine, seed=case.at) for case, engine in zip(CASES[:9], engines, strict=False))
    )
    assert [tokens for tokens, _ in alone] == [tokens for tokens, _ in together]


async def test_what_comes_to_nothing_is_the_base(engines: list[VLLMEngine]) -> None:
    """Token for token, and in one row."""
    mixtures: list[Mixture] = [{BASE: 1.0}, {"warmth": 0.0, ADAPTER: 0.0}, {"nothing": 3.0}]
    answers = [await answer(Case(2, mixture), engines[2], seed=5) for mixture in mixtures]
    assert [tokens for tokens, _ in answers] == [answers[0][0]] * 3
    mixings = [await engines[2]._mixer.mix(CASES[2].prompt, guides=mixture) for mixture in mixtures]
    assert [mixing.rows for mixing in mixings] == [1, 1, 1]


async def test_a_completion_is_scored_in_one_pass(engines: list[VLLMEngine], reference: Reference) -> None:
    completions = [draw_tokens(300 + case.at, 1 + 4 * case.at) for case in CASES]
    scores = await asyncio.gather(
        *(
            engine.score(case.prompt, completion, guides=case.mixture)
            for case, engine, completion in zip(CASES, engines, completions, strict=True)
        )
    )
    for case, completion, score in zip(CASES, completions, scores, strict=True):
        expected = reference.logprobs(case, completion).gather(-1, torch.tensor(completion)[:, None])[:, 0]
        assert score == pytest.approx(expected.tolist(), abs=1e-4), case.mixture


async def test_divergence_from_the_base(engines: list[VLLMEngine], reference: Reference) -> None:
    completions = [draw_tokens(400 + case.at, 1 + 3 * case.at) for case in CASES]
    divergences = await asyncio.gather(
        *(
            engine.divergence(case.prompt, completion, guides=case.mixture)
            for case, engine, completion in zip(CASES, engines, completions, strict=True)
        )
    )
    for case, completion, divergence in zip(CASES, completions, divergences, strict=True):
        p, q = (reference.logprobs(case, completion, mixture) for mixture in (case.mixture, {BASE: 1.0}))
        expected = (p.exp() * (p - q)).sum(-1).tolist()
        assert divergence == pytest.approx(expected, rel=1e-3, abs=1e-6), case.mixture


async def test_entropies_and_plausibility(engines: list[VLLMEngine], reference: Reference) -> None:
    """Of tokens that the base finds plausible, along what was drawn of them."""
    for case, engine in zip(CASES[:8], engines, strict=False):
        sampled = Sampling(max_tokens=6, plausibility=0.2, measured=True, seed=1, stream=False)
        chunks = [c async for c in engine.generate(case.prompt, sampled, n=1, guides=case.mixture)]
        tokens = [token for chunk in chunks for token in chunk.tokens]
        z, base = (reference.logprobs(case, tokens, mixture) for mixture in (case.mixture, {BASE: 1.0}))
        z = z.masked_fill(base < base.amax(-1, keepdim=True) + torch.tensor(0.2).log(), -torch.inf).log_softmax(-1)
        entropies = -(z.exp() * z).nan_to_num(0.0).sum(-1)
        assert [e for chunk in chunks for e in chunk.entropies or ()] == pytest.approx(entropies.tolist(), abs=1e-4)
        expected = z.gather(-1, torch.tensor(tokens)[:, None])[:, 0].tolist()
        assert [p for chunk in chunks for p in chunk.logprobs or ()] == pytest.approx(expected, abs=1e-4)


async def test_the_likeliest_next_tokens(engines: list[VLLMEngine], reference: Reference) -> None:
    for case, engine in zip(CASES[:8], engines, strict=False):
        lists = await engine.greedy_top_logprobs(case.prompt, k=4, length=3, guides=case.mixture)
        path = [listed[0][0] for listed in lists]
        best = reference.logprobs(case, path).topk(4)
        for listed, values, ids in zip(lists, best.values, best.indices, strict=True):
            assert [token for token, _ in listed] == ids.tolist()
            assert [logprob for _, logprob in listed] == pytest.approx(values.tolist(), abs=1e-4)


async def test_several_answers_and_what_goes_on_from_a_beginning(engines: list[VLLMEngine]) -> None:
    """A prompt's place is taken by the one under the instruction, and what is begun goes on behind it."""
    case, engine = CASES[2], engines[2]
    whole, _ = await answer(case, engine, temperature=0.0)
    native = SamplingParams(ignore_eos=True)
    sampled = Sampling(max_tokens=TOKENS - 10, temperature=0.0, engine_params=native, stream=False)
    begun = [*case.prompt, *whole[:10]]
    chunks = [chunk async for chunk in engine.generate(begun, sampled, n=3, guides=case.mixture)]
    assert [list(chunk.tokens) for chunk in chunks] == [whole[10:]] * 3
    with pytest.raises(ValueError, match=r"guides\.warmth: a prompt guides answers to the request's own prompt alone"):
        await engine.score(draw_tokens(9, 9), [1], guides={"warmth": 1.0})


async def test_what_cannot_be_decoded_is_refused(engines: list[VLLMEngine]) -> None:
    """Before it reaches the engine."""
    case, engine = CASES[0], engines[0]

    async def render_each(instruction: Instruction) -> list[int]:
        return [int(instruction.text), *case.prompt]

    async def render_long(length: int, instruction: Instruction) -> list[int]:
        return [*draw_tokens(1, length), *case.prompt]

    many = {f"c{i}": Context(prompt=Instruction(f"{i}")) for i in range(30)}
    one = {"c": Context(prompt=WARM)}
    for contexts, message in (
        (
            RequestContexts(contexts=many, render=render_each),
            r"guides: the answer takes 31 rows of a batch, which has 24",
        ),
        (
            RequestContexts(contexts=one, render=partial(render_long, family.POSITIONS)),
            rf"guides: a prompt under an instruction has {family.POSITIONS + 5} tokens; valid: below",
        ),
        (RequestContexts(contexts=one), "a guide that is a prompt needs a chat request"),
    ):
        bound = engine.for_request("x", prompt=case.prompt, run=StrategyRun(contexts=contexts))
        with pytest.raises(ValueError, match=message):
            await bound.score(case.prompt, [1], guides=dict.fromkeys(contexts.contexts, 0.1))
    run = StrategyRun(contexts=RequestContexts(contexts=one, render=partial(render_long, 240)))
    bound = engine.for_request("x", prompt=case.prompt, run=run)
    sampled = Sampling(max_tokens=50, engine_params=SamplingParams(ignore_eos=True), stream=False)
    if engine.client.vllm_config.cache_config.num_gpu_blocks < 20:
        return
    [chunk] = [chunk async for chunk in bound.generate(case.prompt, sampled, n=1, guides={"c": 1.0})]
    assert (len(chunk.tokens), chunk.finish) == (family.POSITIONS - 245, "length")
    assert run.warnings == ["an answer has at most 11 tokens here: the longest of its 2 prompts has 245"]


async def test_whoever_leaves_takes_all_rows_along(
    client: AsyncLLM, engines: list[VLLMEngine], reference: Reference
) -> None:
    """Answers and scores are given up while they wait, are read, and are drawn; what stays is right, and nothing is
    left that runs or holds a block."""
    draw = random.Random(0)

    async def leave(at: int) -> list[int] | None:
        case, engine = CASES[at % len(CASES)], engines[at % len(CASES)]
        scores = at % 5 == 4
        task: asyncio.Task[Any] = asyncio.create_task(
            engine.score(case.prompt, draw_tokens(at, 30), guides=case.mixture)
            if scores
            else answer(case, engine, temperature=0.0)
        )
        await asyncio.sleep(draw.uniform(0, 0.05))
        done, _ = await asyncio.wait([task], timeout=None if at % 3 == 0 else draw.uniform(0, 1.5))
        if not done:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return None
        return None if scores else task.result()[0]

    answers = await asyncio.gather(*map(leave, range(80)))
    assert sum(one is None for one in answers) > 20
    for at, tokens in enumerate(answers):
        if tokens is not None:
            case = CASES[at % len(CASES)]
            assert reference.logprobs(case, tokens).argmax(-1).tolist() == tokens
    await answer(Case(1, {BASE: 1.0}), engines[1])
    labels = {"engine": "0", "model_name": client.model_config.served_model_name}
    for gauge in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
        assert REGISTRY.get_sample_value(gauge, labels) == 0, gauge


async def test_the_small_cache_preempts(client: AsyncLLM) -> None:
    """Or nothing here is shown of it."""
    labels = {"engine": "0", "model_name": client.model_config.served_model_name}
    preempted = REGISTRY.get_sample_value("vllm:num_preemptions_total", labels) or 0
    assert (preempted > 5) == (client.vllm_config.cache_config.num_gpu_blocks < 100)
