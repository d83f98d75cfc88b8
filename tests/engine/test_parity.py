"""The engine against a plain recompute: every token it chose, and every log-probability it told."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from dataclasses import dataclass

import pytest
from vllm.sampling_params import SamplingParams

from tests.engine.conftest import GUIDES, Reference
from trimtab.decoders.protocols import BASE, Mixture, Sampling, member_alone

TIE = 1e-4
TOLERANCE = 1e-4
NEW = 20


@dataclass(frozen=True)
class Case:
    prompt: list[int]
    mixture: Mixture


def cases() -> list[Case]:
    """Different lengths, weights and shared prefixes in one batch; every guide on its own and all together."""
    draw = random.Random(0)
    prompts = [[draw.randrange(190) for _ in range(length)] for length in (3, 17, 40, 90, 200, 33, 150, 64, 65, 1)]
    shared = [draw.randrange(190) for _ in range(130)]
    prompts += [shared + [draw.randrange(190) for _ in range(length)] for length in (1, 20, 40)]
    mixtures: list[Mixture] = [
        {BASE: 1.0},
        {BASE: 1.0, **dict.fromkeys(GUIDES, 0.0)},
        {BASE: 0.3, "llama": -0.7},
        {BASE: 1.0, **{guide: round(draw.uniform(-0.5, 1.5), 3) for guide in GUIDES}},
        *map(member_alone, GUIDES),
        *({BASE: 1.0, guide: round(draw.uniform(-0.5, 1.5), 3)} for guide in GUIDES),
    ]
    return [Case(prompt, mixtures[i % len(mixtures)]) for i, prompt in enumerate(prompts * 2)]


def check(reference: Reference, case: Case, tokens: list[int], logprobs: list[dict], *, greedy: bool) -> float:
    """The worst log-probability difference; a token that is not the best one is an error unless it ties."""
    expected = reference.logprobs(case.prompt + tokens[:-1], case.mixture)[len(case.prompt) - 1 :]
    worst = 0.0
    for row, token, told in zip(expected, tokens, logprobs, strict=True):
        if greedy:
            assert row.max() - row[token] < TIE, case.mixture
        worst = max([worst, *(abs(float(row[i]) - entry.logprob) for i, entry in told.items() if entry.logprob > -1e9)])
    return worst


async def answer(engine, case: Case, n: int = 1, new: int = NEW, **sampling) -> list[tuple[list[int], list[dict]]]:
    native = SamplingParams(logprobs=5, ignore_eos=True)
    sampling = Sampling(max_tokens=new, engine_params=native, **sampling)
    tokens: list[list[int]] = [[] for _ in range(n)]
    logprobs: list[list[dict]] = [[] for _ in range(n)]
    async with aclosing(engine.generate(case.prompt, sampling, n=n, guides=case.mixture)) as chunks:
        async for chunk in chunks:
            tokens[chunk.index] += chunk.tokens
            logprobs[chunk.index] += chunk.engine_output.outputs[0].logprobs
    return list(zip(tokens, logprobs, strict=True))


@pytest.mark.parametrize("prefixes", ["cold", "cached"])
async def test_mixed_greedy_batch(vllm_engine, together, reference, prefixes):
    if prefixes == "cold":
        await vllm_engine.client.reset_prefix_cache()
    answers = await together(*(answer(vllm_engine, case, temperature=0.0) for case in cases()))
    worst = max(check(reference, case, *told[0], greedy=True) for case, told in zip(cases(), answers, strict=True))
    assert worst <= TOLERANCE


async def test_seeded_samples(vllm_engine, reference):
    for case in cases()[:5]:
        once = await answer(vllm_engine, case, n=4, seed=7)
        again = await answer(vllm_engine, case, n=4, seed=7)
        assert [tokens for tokens, _ in once] == [tokens for tokens, _ in again]
        assert len({tuple(tokens) for tokens, _ in once}) > 1
        assert max(check(reference, case, *told, greedy=False) for told in once) <= TOLERANCE


async def test_company_changes_no_sample(vllm_engine, together):
    alone = [await answer(vllm_engine, case, seed=i) for i, case in enumerate(cases()[:6])]
    batch = await together(*(answer(vllm_engine, case, seed=i) for i, case in enumerate(cases())))
    assert [told[0][0] for told in batch[:6]] == [told[0][0] for told in alone]


@pytest.mark.parametrize("case", cases()[:13], ids=lambda case: f"{len(case.prompt)}")
async def test_score(vllm_engine, reference, case):
    draw = random.Random(len(case.prompt))
    completion = [draw.randrange(190) for _ in range(12)]
    expected = reference.logprobs(case.prompt + completion, case.mixture)[len(case.prompt) - 1 :]
    expected = [float(row[token]) for row, token in zip(expected, completion, strict=False)]
    assert await vllm_engine.score(case.prompt, completion, guides=case.mixture) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("scale", [1e-4, 1e-3, 0.1, 1.0, 8.0])
async def test_divergence(vllm_engine, reference, scale):
    """Over the whole range, among other requests: a hundredth part of a nat in a million, and thirty nats."""
    prompt = list(range(70))
    completion = list(range(100, 140))
    mixture = {BASE: 1.0, "llama": scale, "windowed": -scale / 2}
    expected = reference.divergence(prompt + completion[:-1], mixture)[len(prompt) - 1 :]
    crowd = [answer(vllm_engine, case, seed=1) for case in cases()[:4]]
    found, *_ = await asyncio.gather(vllm_engine.divergence(prompt, completion, guides=mixture), *crowd)
    assert found == pytest.approx(expected.tolist(), rel=2e-3, abs=1e-9)


async def test_a_completion_that_fills_the_context(vllm_engine, reference):
    prompt, completion = list(range(100)), [i % 190 for i in range(156)]
    mixture = {BASE: 1.0, "qwen": 0.5}
    expected = reference.logprobs(prompt + completion, mixture)[99:-1]
    expected = [float(row[token]) for row, token in zip(expected, completion, strict=True)]
    assert await vllm_engine.score(prompt, completion, guides=mixture) == pytest.approx(expected, abs=1e-4)
    assert len(await vllm_engine.divergence(prompt, completion, guides=mixture)) == 156


async def test_a_token_that_a_guide_does_not_know(vllm_engine):
    known, unknown = await vllm_engine.score([1, 2], [3, 230], guides={BASE: 1.0, "shorter": 0.5})
    assert known > float("-inf")
    assert unknown == float("-inf")
    [only] = await vllm_engine.score([1, 2], [230], guides={BASE: 1.0, "shorter": 0.0})
    assert only > float("-inf")
