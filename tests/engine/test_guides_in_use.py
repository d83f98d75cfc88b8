"""Guides run for requests that ask for them alone, and no prefix-cache hit ever misses a guide's keys and values."""

from __future__ import annotations

import random
from contextlib import aclosing

import pytest
from vllm.inputs.engine import tokens_input
from vllm.sampling_params import RequestOutputKind, SamplingParams

from tests.engine.conftest import GUIDES
from tests.engine.test_parity import TOLERANCE, Case, check
from trimtab.decoders.protocols import BASE, Mixture, Sampling
from trimtab.engine.aligned_client import AlignedClient
from trimtab.engine.table import cache_salt

PREFIXES = [[random.Random(seed).randrange(190) for _ in range(160)] for seed in range(2)]
MIXTURES: list[Mixture] = [
    {BASE: 1.0},
    {BASE: 0.5},
    {BASE: 1.0, "llama": 1.0},
    {BASE: 1.0, "llama": -0.5},
    {BASE: 1.0, "windowed": 0.7},
    {BASE: 1.0, "llama": 0.6, "windowed": 0.6},
    {BASE: 1.0, **dict.fromkeys(GUIDES, 0.4)},
]
OF_GUIDES = {
    mixture: tuple(guide for guide in GUIDES if MIXTURES[mixture].get(guide)) for mixture in range(len(MIXTURES))
}


async def told(vllm_engine, case: Case) -> tuple[list[int], list[dict], int]:
    """Tokens, their log-probabilities, and how many of the prompt's came from the cache."""
    native = SamplingParams(logprobs=3, ignore_eos=True)
    sampling = Sampling(max_tokens=4, temperature=0.0, stream=False, engine_params=native)
    async with aclosing(vllm_engine.generate(case.prompt, sampling, n=1, guides=case.mixture)) as chunks:
        [chunk] = [chunk async for chunk in chunks]
    return list(chunk.tokens), chunk.engine_output.outputs[0].logprobs, chunk.engine_output.num_cached_tokens


async def plain(client, prompt: list[int], salt: str | None) -> tuple[list[int], list[dict], int]:
    params = SamplingParams(
        max_tokens=4, temperature=0.0, logprobs=3, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
    )
    stream = client.generate(tokens_input(prompt, cache_salt=salt), params, f"plain-{random.random()}")
    [output] = [output async for output in stream]
    return list(output.outputs[0].token_ids), output.outputs[0].logprobs, output.num_cached_tokens


def wrong(reference, case: Case, tokens: list[int], logprobs: list[dict]) -> bool:
    try:
        return check(reference, case, tokens, logprobs, greedy=True) > TOLERANCE
    except AssertionError:  # a token that is not the best one
        return True


async def interleaved(vllm_engine, together, reference, seed: int, rounds: int = 12) -> tuple[int, int]:
    """How many of some answers are wrong, and how many had a prompt from the cache: prefixes shared in any order, by
    requests of any guides, one after the other and beside each other."""
    draw = random.Random(seed)
    await vllm_engine.client.reset_prefix_cache()
    mistakes = hits = 0
    for _ in range(rounds):
        batch = []
        for _ in range(draw.choice([1, 1, 3, 5])):
            prompt = draw.choice(PREFIXES)[: draw.choice([40, 70, 97, 130, 160])]
            batch.append(Case(prompt + [draw.randrange(190) for _ in range(draw.randrange(4))], draw.choice(MIXTURES)))
        for case, (tokens, logprobs, cached) in zip(
            batch, await together(*(told(vllm_engine, case) for case in batch)), strict=True
        ):
            hits += cached > 0
            mistakes += wrong(reference, case, tokens, logprobs)
    return mistakes, hits


@pytest.mark.parametrize("seed", range(4))
async def test_prefixes_shared_in_any_order_by_requests_of_any_guides(vllm_engine, together, reference, seed):
    mistakes, hits = await interleaved(vllm_engine, together, reference, seed)
    assert hits > 5
    assert mistakes == 0


async def test_without_salts_a_hit_would_be_wrong(vllm_engine, together, reference, monkeypatch):
    """So the test above can fail."""
    monkeypatch.setattr("trimtab.engine.vllm_engine.cache_salt", lambda salt, guides: salt)
    mistakes, _ = await interleaved(vllm_engine, together, reference, 0)
    assert mistakes > 0


async def test_a_prompt_is_cached_for_its_own_guides(vllm_engine):
    await vllm_engine.client.reset_prefix_cache()
    first = [(await told(vllm_engine, Case(PREFIXES[0], mixture)))[2] for mixture in MIXTURES]
    once = {OF_GUIDES[i]: i for i in reversed(range(len(MIXTURES)))}.values()
    assert [i for i, cached in enumerate(first) if cached == 0] == sorted(once), "of each set of guides, the first"
    again = [(await told(vllm_engine, Case(PREFIXES[0], mixture)))[2] for mixture in MIXTURES]
    assert min(again) == 128


async def test_no_salt_of_a_client_s_is_that_of_guides(vllm_engine, reference):
    """A plain request may be salted with anything; its blocks hold no guide's keys."""
    client = AlignedClient(vllm_engine.client, bind=lambda context: vllm_engine)
    await client.reset_prefix_cache()
    prompt = PREFIXES[1]
    for salt in (None, cache_salt(None, ["llama"]), "llama"):
        tokens, logprobs, _ = await plain(client, prompt, salt)
        assert not wrong(reference, Case(prompt, {BASE: 1.0}), tokens, logprobs)
    assert (await plain(client, prompt, cache_salt(None, ["llama"])))[2] == 128
    for salt in (None, "llama"):
        case = Case(prompt, {BASE: 1.0, "llama": 1.0})
        tokens, logprobs, cached = await told(vllm_engine.for_request("salted", cache_salt=salt), case)
        assert cached == 0
        assert not wrong(reference, case, tokens, logprobs)
