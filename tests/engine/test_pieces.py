"""An answer that is drawn in pieces goes on as one: grammars, thoughts and penalties read what it has already."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch
from vllm.config import StructuredOutputsConfig
from vllm.config.reasoning import ReasoningConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM

from tests.engine import family
from tests.engine.conftest import OPTIONS
from tests.engine.test_sampling import assert_drawn_from, run
from trimtab.decoders.beam import Beam
from trimtab.decoders.blockwise import Blockwise
from trimtab.decoders.particles import Particles
from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import BASE, Sampling
from trimtab.decoders.qalign import QAlign
from trimtab.decoders.speculative_rejection import SpeculativeRejection
from trimtab.engine.aligned_client import carries_thoughts
from trimtab.engine.members import engine_args
from trimtab.engine.structured_outputs import BEGUN
from trimtab.engine.vllm_engine import VLLMEngine

PROMPT = list(range(60, 90))
GUIDES = {BASE: 1.0, "llama": 0.5}
SEARCHES: dict[str, Any] = {
    "beam": Beam(n=4, width=2, block=2, guides=GUIDES),
    "blockwise": Blockwise(n=2, block=3, guides=GUIDES),
    "particles": Particles(n=3, block=1, guides=GUIDES),
    "qalign": QAlign(steps=6, beta=100.0, guides=GUIDES),  # takes nearly every step
    "speculative_rejection": SpeculativeRejection(n=3, decisions=(1, 4, 9), guides=GUIDES),
}

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["city", "n"],
    "additionalProperties": False,
}
FORMS: dict[str, Any] = {
    "json": {"json": CITY},
    "regex": {"regex": r"(ab|ba){2,5}-[0-9]{1,3}"},
    "choice": {"choice": ["positive", "negative", "positively"]},
    "grammar": {"grammar": 'root ::= "(" root? ")" | [xy] [xy]?'},
}


def fits(form: str, text: str) -> bool:
    if form == "json":
        jsonschema.validate(json.loads(text), CITY)
        return True
    if form == "grammar":
        while text.startswith("(") and text.endswith(")"):
            text = text[1:-1]
        return re.fullmatch("[xy]{0,2}", text) is not None
    options = FORMS[form]
    return text in options["choice"] if form == "choice" else re.fullmatch(options["regex"], text) is not None


async def shortness(prompt: Any, completions: Any) -> list[list[float]]:
    return [[-float(len(tokens))] for tokens in completions]


async def answer(engine: Any, strategy: Any, params: SamplingParams, prompt: Any = PROMPT, **sampling: Any) -> Any:
    """The tokens of one answer, and how it ended."""
    tokens: list[int] = []
    finish = None
    wish = Sampling(**{"max_tokens": 48, "seed": 1, "engine_params": params, **sampling})
    async with aclosing(strategy(prompt, wish, engine, shortness, n=1, include=frozenset())) as chunks:
        async for chunk in chunks:
            tokens += chunk.tokens
            finish = chunk.finish or finish
    return tokens, finish


class Plainly(Plain):
    """The same mixture as the searches, drawn by the engine in one go."""

    def __call__(self, prompt: Any, sampling: Any, engine: Any, reward: Any, *, n: int, include: Any) -> Any:
        return engine.generate(prompt, sampling, n=n, guides=GUIDES)


def structured(form: str) -> SamplingParams:
    """White space is valid JSON for ever, and a random model may like it."""
    blank = {family.VOCABULARY.index(mark): -100.0 for mark in "ĠĊčĉ"}
    return SamplingParams(structured_outputs=StructuredOutputsParams(**FORMS[form]), logit_bias=blank)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SEARCHES)
async def test_greedy_pieces_are_the_engine_s_own_answer(vllm_engine: VLLMEngine, name: str, form: str) -> None:
    """All candidates are alike at temperature 0, so whatever is chosen is what one draw under the grammar gives."""
    whole = await answer(vllm_engine, Plainly(), structured(form), temperature=0.0)
    assert await answer(vllm_engine, SEARCHES[name], structured(form), temperature=0.0) == whole
    assert whole[1] == "stop"
    assert fits(form, vllm_engine.text(whole[0]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SEARCHES)
async def test_pieces_follow_the_grammar(vllm_engine: VLLMEngine, name: str, form: str) -> None:
    drawn = await asyncio.gather(
        *(answer(vllm_engine, SEARCHES[name], structured(form), seed=seed, temperature=1.5) for seed in range(12))
    )
    texts = {vllm_engine.text(tokens) for tokens, finish in drawn if finish == "stop"}
    assert len(texts) > 1
    assert all(fits(form, text) for text in texts)
    if form != "grammar":  # whose parentheses may have no end
        assert {finish for _, finish in drawn} == {"stop"}


async def test_a_piece_s_law_is_the_grammar_s_behind_the_prefix(vllm_engine: VLLMEngine, reference: Any) -> None:
    """By another implementation of the model: its law on what the grammar leaves behind a beginning."""
    pattern = SamplingParams(structured_outputs=StructuredOutputsParams(regex="ab[cdefgh]|b[xyz]"))
    code = {token: i for i, token in enumerate(family.VOCABULARY)}
    for beginning, left in (([code["a"], code["b"]], "cdefgh"), ([code["b"]], "xyz"), ([], "ab")):
        at = [*PROMPT, *beginning]
        logits = reference.logprobs(at, GUIDES)[-1]
        allowed = torch.tensor([code[c] for c in left])
        p = torch.zeros_like(logits)
        p[allowed] = logits[allowed].softmax(-1)
        chunks = await run(
            vllm_engine, prompt=at, n=600, guides=GUIDES, max_tokens=1, seed=11, stream=False, temperature=1.0,
            engine_params=pattern, begun=len(beginning),
        )  # fmt: skip
        counts = torch.bincount(torch.tensor([c.tokens[0] for c in chunks]), minlength=family.PADDED).double()
        if len(left) > 2:
            assert_drawn_from(counts, p)
        assert set(counts.nonzero().flatten().tolist()) <= {*allowed.tolist()}


async def test_without_a_beginning_the_grammar_starts_behind_the_prompt(vllm_engine: VLLMEngine) -> None:
    """However the prompt reads: it is no part of the answer."""
    pattern = SamplingParams(structured_outputs=StructuredOutputsParams(choice=["ab"]))
    code = {token: i for i, token in enumerate(family.VOCABULARY)}
    for begun, drawn in ((0, "ab"), (1, "b")):
        chunks = await run(
            vllm_engine, prompt=[*PROMPT, code["a"]], max_tokens=4, engine_params=pattern, begun=begun, stream=False
        )
        assert vllm_engine.text(chunks[-1].tokens) == drawn


async def test_a_beginning_that_does_not_follow_the_grammar_ends_its_request_alone(vllm_engine: VLLMEngine) -> None:
    pattern = SamplingParams(structured_outputs=StructuredOutputsParams(choice=["ab"]))
    good, bad = await asyncio.gather(
        run(vllm_engine, max_tokens=4, engine_params=pattern, stream=False),
        run(vllm_engine, prompt=PROMPT, max_tokens=4, engine_params=pattern, begun=3, stream=False),
        return_exceptions=True,
    )
    assert not isinstance(good, BaseException)
    assert vllm_engine.text(good[-1].tokens) == "ab"
    assert isinstance(bad, BaseException) or bad[-1].finish == "error", bad
    assert (await run(vllm_engine, max_tokens=4, engine_params=pattern, stream=False))[-1].finish == "stop"


async def test_nobody_else_says_what_an_answer_has(vllm_engine: VLLMEngine) -> None:
    with pytest.raises(ValueError, match="reserved"):
        await run(vllm_engine, max_tokens=1, engine_params=SamplingParams(extra_args={BEGUN: b"\1"}))
    with pytest.raises(VLLMValidationError, match="reserved"):
        async for _ in vllm_engine.client.generate("x", SamplingParams(extra_args={BEGUN: 3}), "forged"):
            pass


CARRIED: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.8},
    "logit_bias": {"logit_bias": {70: 6.0, 71: 5.0}},
    "min_p": {"min_p": 1.0},
    "allowed_token_ids": {"allowed_token_ids": [65, 66, 67, 68, 258]},
    "min_tokens": {"min_tokens": 13, "logit_bias": {258: 100.0}},
    "ignore_eos": {"ignore_eos": True, "logit_bias": {258: 100.0}},
}
"""What needs nothing of an answer but its tokens: at temperature 0 the answer in pieces is the engine's own."""


@pytest.mark.parametrize("parameter", CARRIED)
@pytest.mark.parametrize("name", SEARCHES)
async def test_what_needs_no_memory_is_carried_out_in_pieces(
    vllm_engine: VLLMEngine, name: str, parameter: str
) -> None:
    params = SamplingParams(**CARRIED[parameter])
    if parameter == "min_p":  # of which greedy draws show nothing: under this one, all draws are greedy
        draws = [await answer(vllm_engine, SEARCHES[name], params, seed=seed, max_tokens=24) for seed in (1, 2)]
        [whole] = {str(await answer(vllm_engine, Plainly(), params, seed=seed, max_tokens=24)) for seed in (1, 2)}
        assert {str(drawn) for drawn in draws} == {whole}
        return
    whole, without = [
        await answer(vllm_engine, Plainly(), p, temperature=0.0, max_tokens=24) for p in (params, SamplingParams())
    ]
    assert await answer(vllm_engine, SEARCHES[name], params, temperature=0.0, max_tokens=24) == whole
    assert whole != without, "nothing to see"


THINK = ("<think>", "</think>")
WORDS = [*family.VOCABULARY, *THINK]
OPEN, CLOSE = len(family.VOCABULARY), len(family.VOCABULARY) + 1


@pytest.fixture(scope="session")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], AsyncEngineArgs]:
    """What ends thoughts whose budget is spent -> a model with marks around its thoughts, vLLM's parser of them, and
    another of its compilers of grammars."""
    from transformers import AutoTokenizer, LlamaConfig

    path: Path = family.checkpoint(tmp_path_factory.mktemp("thinker"), LlamaConfig(**family.sizes(64, 3, 2)), 0, WORDS)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(list(THINK))  # else they are read letter by letter
    tokenizer.save_pretrained(path)

    def arguments(end: str) -> AsyncEngineArgs:
        thoughts = ReasoningConfig(reasoning_start_str=THINK[0], reasoning_end_str=end)
        grammars = StructuredOutputsConfig(backend="guidance", reasoning_parser="deepseek_r1")
        options = {
            **OPTIONS,
            "disable_log_stats": True,
            "structured_outputs_config": grammars,
            "reasoning_config": thoughts,
        }
        return AsyncEngineArgs(**engine_args(str(path), {}, **options))

    return arguments


@pytest.fixture(scope="session")
async def thinker(thinking: Callable[[str], AsyncEngineArgs]) -> AsyncIterator[VLLMEngine]:
    llm = AsyncLLM.from_engine_args(thinking(THINK[1]))
    try:
        yield VLLMEngine(client=llm)
    finally:
        llm.shutdown()


ALONE = {BASE: 1.0}
THINKERS: dict[str, Any] = {name: replace(strategy, guides=ALONE) for name, strategy in SEARCHES.items()}


ONCE = {OPEN: -100.0}
"""No thought within a thought: vLLM's V1 runner counts from the first of them, and behind a beginning from the last."""


@pytest.mark.parametrize("budget", [0, 3, 10])
@pytest.mark.parametrize("name", THINKERS)
async def test_a_grammar_begins_behind_the_thoughts(thinker: VLLMEngine, name: str, budget: int) -> None:
    """Wherever in a piece the thoughts end: a budget ends them here, and counts those of the pieces before."""
    grammar = StructuredOutputsParams(regex="[0-9]{3,9}x")
    params = SamplingParams(thinking_token_budget=budget, structured_outputs=grammar, logit_bias=ONCE)
    prompt = [*PROMPT, OPEN]
    whole = await answer(thinker, Plain(), params, prompt, temperature=0.0, max_tokens=32)
    assert whole[0].index(CLOSE) >= budget
    assert re.fullmatch("[0-9]{3,9}x", thinker.text(whole[0][whole[0].index(CLOSE) + 1 :]))
    assert await answer(thinker, THINKERS[name], params, prompt, temperature=0.0, max_tokens=32) == whole
    for seed in range(4):
        tokens, finish = await answer(thinker, THINKERS[name], params, prompt, seed=seed, max_tokens=32)
        assert finish == "stop"
        if CLOSE in tokens:  # a thought may end the answer
            assert re.fullmatch("[0-9]{3,9}x", thinker.text(tokens[tokens.index(CLOSE) + 1 :]))


@pytest.mark.parametrize("budget", [1, 4, 9])
@pytest.mark.parametrize("name", THINKERS)
async def test_a_thinking_budget_counts_the_pieces_before(thinker: VLLMEngine, name: str, budget: int) -> None:
    """Thoughts that the prompt begins."""
    for begun in ([OPEN], [OPEN, 70, 71]):
        params = SamplingParams(thinking_token_budget=budget, logit_bias=ONCE)
        prompt = [*PROMPT, *begun]
        whole = await answer(thinker, Plain(), params, prompt, temperature=0.0, max_tokens=24)
        assert CLOSE in whole[0], "nothing to see"
        assert await answer(thinker, THINKERS[name], params, prompt, temperature=0.0, max_tokens=24) == whole


@pytest.mark.parametrize("name", THINKERS)
async def test_a_thinking_budget_counts_from_where_the_answer_begins_to_think(thinker: VLLMEngine, name: str) -> None:
    """In those of some greedy answers that think once."""
    params, seen = SamplingParams(thinking_token_budget=5, logit_bias={OPEN: 2.5}), 0
    for start in range(0, 100, 4):
        prompt = list(range(start, start + 20))
        whole = await answer(thinker, Plain(), params, prompt, temperature=0.0, max_tokens=16)
        if whole[0].count(OPEN) == whole[0].count(CLOSE) == 1:
            seen += 1
            assert await answer(thinker, THINKERS[name], params, prompt, temperature=0.0, max_tokens=16) == whole
    assert seen, "nothing to see"


@pytest.mark.parametrize(("end", "carried"), [("</think>", True), ("so.</think>", False)])
def test_thoughts_that_end_with_several_tokens_are_not_carried_on(
    thinking: Callable[[str], AsyncEngineArgs], end: str, carried: bool
) -> None:
    """By the V1 runner; under V2, vLLM goes on from the token where the forced end was left."""
    config = thinking(end).create_engine_config()
    assert carries_thoughts(config) is carried
    assert carries_thoughts(SimpleNamespace(reasoning_config=config.reasoning_config, use_v2_model_runner=True))
    assert carries_thoughts(SimpleNamespace(reasoning_config=None, use_v2_model_runner=False))
