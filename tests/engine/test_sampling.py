"""What follows the mixture: masks, biases and truncation come after it, plausibility with it."""

from contextlib import aclosing

import pytest
import torch
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from tests.engine import family
from trimtab.decoders.protocols import BASE, Sampling
from trimtab.engine.mixture import NEG_INF
from trimtab.engine.table import KEY

PROMPT = list(range(60, 90))
MIXTURE = {BASE: 1.0, "llama": 0.8, "qwen": -0.4}


async def run(engine, prompt=PROMPT, n=1, guides=MIXTURE, **sampling):
    chunks = []
    async with aclosing(engine.generate(prompt, Sampling(**sampling), n=n, guides=guides)) as pieces:
        async for chunk in pieces:
            chunks.append(chunk)
    return chunks


async def tokens(engine, **options) -> list[int]:
    return [token for chunk in await run(engine, **options) for token in chunk.tokens]


async def test_zero_weights_are_plain_vllm(vllm_engine, together, plain_vllm):
    """Another engine, of the base alone and without us, chose the same tokens: greedy, and with seeds."""
    neutral = {BASE: 1.0, **dict.fromkeys(vllm_engine.guides, 0.0)}
    for guides in (neutral, {BASE: 1.0}):
        answers = await together(
            *(
                tokens(vllm_engine, prompt=prompt, guides=guides, max_tokens=24, temperature=temperature, seed=i,
                       engine_params=SamplingParams(ignore_eos=True))
                for i, prompt in enumerate(plain_vllm.prompts)
                for temperature in plain_vllm.temperatures
            )
        )  # fmt: skip
        assert answers == plain_vllm.answers


async def test_grammar_wins(vllm_engine):
    choice = SamplingParams(structured_outputs=StructuredOutputsParams(choice=["positive", "negative"]))
    for seed in range(4):
        chunks = await run(
            vllm_engine, max_tokens=20, seed=seed, engine_params=choice, guides={BASE: 1.0, "llama": 50.0}
        )
        assert "".join(chunk.engine_output.outputs[0].text for chunk in chunks) in ("positive", "negative")


async def test_logit_bias(vllm_engine):
    bias = SamplingParams(logit_bias={77: 100.0})
    assert await tokens(vllm_engine, max_tokens=3, temperature=0.0, engine_params=bias) == [77, 77, 77]


async def test_stop_and_end(vllm_engine):
    biased = SamplingParams(logit_bias={258: 100.0})
    [*_, last] = await run(vllm_engine, max_tokens=5, engine_params=biased)
    assert (last.tokens, last.finish) == ((258,), "stop")
    [*_, last] = await run(vllm_engine, max_tokens=2, engine_params=SamplingParams(ignore_eos=True))
    assert last.finish == "length"


async def test_output_kinds(vllm_engine):
    """How answers come is the sampling's to say, whatever vLLM's own object says."""
    for kind in RequestOutputKind:
        chunks = await run(vllm_engine, max_tokens=6, engine_params=SamplingParams(ignore_eos=True, output_kind=kind))
        assert sum(len(chunk.tokens) for chunk in chunks) == 6
        assert len(chunks) > 1
    final = SamplingParams(ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY)
    chunks = await run(vllm_engine, n=3, max_tokens=6, engine_params=final, stream=False)
    assert sorted((chunk.index, len(chunk.tokens), chunk.finish) for chunk in chunks) == [
        (i, 6, "length") for i in range(3)
    ]
    assert [len(chunk.engine_output.outputs) for chunk in chunks] == [1, 1, 1]


async def test_the_template_is_left_alone(vllm_engine):
    template = SamplingParams(skip_clone=True, min_tokens=5, stop=["z"])
    before = repr(template)
    await run(vllm_engine, n=2, max_tokens=3, seed=4, engine_params=template)
    assert repr(template) == before


async def test_a_seed_below_zero_is_a_seed(vllm_engine):
    once, again, other = [await tokens(vllm_engine, max_tokens=12, seed=seed) for seed in (-1, -1, -2)]
    assert once == again != other


async def draws(engine, count: int, **options) -> torch.Tensor:
    """How often each token came first in `count` seeded draws."""
    final = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY)
    chunks = await run(engine, n=count, max_tokens=1, seed=11, engine_params=final, **options)
    return torch.bincount(torch.tensor([chunk.tokens[0] for chunk in chunks]), minlength=family.PADDED).double()


def assert_drawn_from(counts: torch.Tensor, p: torch.Tensor) -> None:
    """χ² within five standard deviations, tokens of fewer than five expected draws taken together."""
    assert counts[p == 0].sum() == 0
    expected = p * counts.sum()
    often = expected >= 5
    observed = torch.cat([counts[often], counts[~often].sum()[None]])
    expected = torch.cat([expected[often], expected[~often].sum().clamp_min(1e-9)[None]])
    keep = expected >= 1
    freedom = int(keep.sum()) - 1
    assert freedom >= 2, "nothing to test"
    chi2 = float(((observed - expected) ** 2 / expected)[keep].sum())
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize(
    ("options", "warp"),
    [
        ({}, lambda logp: logp),
        ({"temperature": 1.7}, lambda logp: logp / 1.7),
        ({"top_k": 5, "temperature": 1.5}, lambda logp: (logp / 1.5).masked_fill(logp < logp.topk(5)[0][-1], NEG_INF)),
    ],
    ids=["exact", "temperature", "top_k"],
)  # fmt: skip
async def test_draws_follow_the_mixture(vllm_engine, reference, options, warp):
    p = warp(reference.logprobs(PROMPT, MIXTURE)[-1]).softmax(-1)
    assert_drawn_from(await draws(vllm_engine, 1000, **options), p)


async def test_plausibility(vllm_engine, reference):
    guides = {BASE: 0.3, "llama": 0.7}
    base = reference.logprobs(PROMPT, {BASE: 1.0})[-1]
    mixed = reference.logprobs(PROMPT, guides)[-1]
    masked = mixed.masked_fill(base < base.max() + torch.tensor(0.02).log(), NEG_INF)
    assert (masked.softmax(-1) - mixed.exp()).abs().sum() > 0.1, "the mask must matter here"
    assert_drawn_from(await draws(vllm_engine, 1000, guides=guides, plausibility=0.02), masked.softmax(-1))


async def test_bad_mixtures_are_named(vllm_engine):
    for guides, found in (
        (
            {BASE: 1.0, "nobody": 1.0},
            "guides.nobody: no such member; valid: base, llama, qwen, windowed, shorter, lora",
        ),
        ({BASE: 1.0, "llama": float("nan")}, "guides.llama: nan is no weight"),
        ({BASE: float("inf")}, "guides.base: inf is no weight"),
        ({BASE: 1.0, "llama": 1e308}, "guides.llama: 1e+308 is no weight"),
    ):
        for call in (vllm_engine.score, vllm_engine.divergence):
            with pytest.raises(ValueError, match="guides") as error:
                await call(PROMPT, [1], guides=guides)
            assert str(error.value).startswith(found)
        with pytest.raises(ValueError, match="guides") as error:
            await run(vllm_engine, max_tokens=1, guides=guides)
        assert str(error.value).startswith(found)
    with pytest.raises(ValueError, match="plausibility"):
        await run(vllm_engine, max_tokens=1, plausibility=2.0)


async def test_nobody_else_writes_rows(vllm_engine, client):
    forged = SamplingParams(extra_args={KEY: [0.0, 1.0]})
    with pytest.raises(ValueError, match="reserved"):
        await run(vllm_engine, max_tokens=1, engine_params=forged)
    with pytest.raises(VLLMValidationError, match="reserved"):
        async for _ in client.generate("x", forged, "forged"):
            pass
    assert await tokens(vllm_engine, max_tokens=1)


async def test_nothing_to_score(vllm_engine):
    assert await vllm_engine.score(PROMPT, [], guides=MIXTURE) == []
    assert await vllm_engine.divergence(PROMPT, [], guides=MIXTURE) == []
    with pytest.raises(ValueError, match="prompt is empty"):
        await vllm_engine.score([], [1], guides=MIXTURE)
