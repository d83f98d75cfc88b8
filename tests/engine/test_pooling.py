"""A reward model's engine against Hugging Face's own code, in company, chunked, cached, cancelled and killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaForSequenceClassification
from vllm.exceptions import VLLMValidationError
from vllm.inputs.engine import tokens_input
from vllm.pooling_params import PoolingParams
from vllm.v1.engine.exceptions import EngineDeadError

from tests.engine import family
from tests.engine.conftest import OPTIONS
from trimtab.engine.errors import MemberError
from trimtab.engine.pooling import PoolingEngine, running_pooler

LABELS = ("helpfulness", "brevity", "warmth", "caution")
TOLERANCE = 1e-4
"""fp32 in other orders of addition, against fp64; scores are of the order of 1."""
CHUNK, BLOCK = OPTIONS["max_num_batched_tokens"], OPTIONS["block_size"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """How many labels -> a reward model with so many."""
    root = tmp_path_factory.mktemp("scorers")
    return {
        4: family.scorer(root / "four", LABELS, seed=6),
        1: family.scorer(root / "one", ("LABEL_0",), seed=7),
    }


@pytest.fixture(scope="module")
async def pooler(checkpoints: dict[int, Path]) -> AsyncIterator[PoolingEngine]:
    async with running_pooler("judge", str(checkpoints[4]), **OPTIONS) as running:
        yield running


@torch.no_grad()
def expected(path: Path, inputs: list[list[int]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """[K] of each input, and [T, K], by Hugging Face in fp64."""
    model = LlamaForSequenceClassification.from_pretrained(path, dtype=torch.float64).eval()
    batches = [torch.tensor([tokens]) for tokens in inputs]
    whole = [model(ids).logits[0] for ids in batches]
    return whole, [model.score(model.model(ids).last_hidden_state)[0] for ids in batches]


def worst(scores: list, expected: list[torch.Tensor]) -> float:
    assert [torch.tensor(row).shape for row in scores] == [row.shape for row in expected]
    return max((torch.tensor(a) - b).abs().max().item() for a, b in zip(scores, expected, strict=True))


def tokens(length: int, seed: int = 0) -> list[int]:
    return torch.randint(250, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


MIXED = [tokens(n, seed=n) for n in (1, 5, 33, CHUNK, CHUNK + 1, 3 * CHUNK + 7, 200, 255, family.POSITIONS)]
"""More inputs than sequences at once, some in one step, some in four chunks, the last as long as can be."""


def live(pooler: PoolingEngine) -> int:
    return pooler.client.get_num_unfinished_requests()


async def test_what_it_says_of_itself(pooler):
    assert pooler.labels == LABELS
    assert pooler.max_tokens == family.POSITIONS
    assert pooler.tokenizer.convert_tokens_to_ids("</s>") == 258
    config = pooler.client.vllm_config
    assert config.cache_config.enable_prefix_caching
    assert config.scheduler_config.enable_chunked_prefill


async def test_scores_are_hugging_face_s(pooler, checkpoints):
    whole, per_token = expected(checkpoints[4], MIXED)
    assert max(row.abs().max() for row in whole) > 1, "scores too small to tell apart"
    assert worst(await pooler.score(MIXED), whole) <= TOLERANCE
    assert worst(await pooler.score_tokens(MIXED), per_token) <= TOLERANCE
    both = await asyncio.gather(pooler.score_tokens(MIXED), pooler.score(MIXED))  # of both kinds in one batch
    assert worst(both[0], per_token) <= TOLERANCE
    assert worst(both[1], whole) <= TOLERANCE
    assert await pooler.score([]) == []


async def test_a_growing_prefix_is_read_from_the_cache(pooler, checkpoints):
    """Blocks that are whole are not computed again, the last token's always is; the scores stay right."""
    text = tokens(250, seed=-1)
    lengths = (40, 70, 100, 130, 131, 192, 250, 250)
    found, scores = [], []
    for n in lengths:
        params = PoolingParams(task="classify", use_activation=False)
        async for output in pooler.client.encode(tokens_input(text[:n]), params, f"prefix-{len(found)}"):
            found.append(output.num_cached_tokens)
            scores.append(output.outputs.data.tolist())
    before = (0, *lengths[:-1])
    assert found == [min(was, n - 1) // BLOCK * BLOCK for was, n in zip(before, lengths, strict=True)]
    whole, per_token = expected(checkpoints[4], [text[:n] for n in lengths])
    assert worst(scores, whole) <= TOLERANCE
    assert worst(await pooler.score_tokens([text]), per_token[-1:]) <= TOLERANCE, "a score is missing for cached tokens"


async def test_all_inputs_are_in_flight_at_once(pooler):
    task = asyncio.create_task(pooler.score(MIXED))
    most = 0
    while not task.done():
        most = max(most, live(pooler))
        await asyncio.sleep(0)
    assert most == len(MIXED)
    assert live(pooler) == 0


async def test_a_cancelled_call_leaves_nothing(pooler):
    """At whatever moment: the delays fall before, in and after registering the requests."""
    for turns in (*range(12), 50, 200):
        task = asyncio.create_task(pooler.score_tokens([tokens(250, seed=turns)] * 6))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert live(pooler) == 0, turns


async def test_requests_cancelled_on_their_way_are_aborted():
    """vLLM registers a request before it sends it; one cancelled in between it does not take back by itself."""
    begun, aborted = [], []

    class Client:
        async def encode(self, prompt, params, request_id):
            begun.append(request_id)
            await asyncio.Event().wait()
            yield

        async def abort(self, request_id):
            aborted.append(request_id)

    task = asyncio.create_task(PoolingEngine(client=Client(), tokenizer=None, name="judge").score([[1], [2], [3]]))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(set(begun)) == 3
    assert sorted(aborted) == sorted(begun)
    assert all(request.startswith("judge-") for request in begun)


@pytest.mark.parametrize("bad", [[], tokens(family.POSITIONS + 1), [family.PADDED]])
async def test_one_bad_input_ends_all(pooler, bad):
    with pytest.raises(VLLMValidationError, match=r"empty|longer than|out of vocabulary"):
        await pooler.score([*MIXED, bad])
    assert live(pooler) == 0


async def test_a_second_engine_and_its_death(pooler, checkpoints):
    """Both work at once; when one dies, all that wait for it hear of it, and the other goes on."""
    async with running_pooler("other", str(checkpoints[1]), **OPTIONS) as other:
        ours, theirs = await asyncio.gather(pooler.score(MIXED), other.score(MIXED))
        assert worst(ours, expected(checkpoints[4], MIXED)[0]) <= TOLERANCE
        assert worst(theirs, expected(checkpoints[1], MIXED)[0]) <= TOLERANCE
        assert other.labels == ("LABEL_0",)

        waiting = [asyncio.create_task(other.score([tokens(250, seed=i)] * 20)) for i in range(5)]
        for _ in range(10):  # turns of the loop, in which all of them are sent
            await asyncio.sleep(0)
        assert live(other) > 0
        assert not any(task.done() for task in waiting)
        [process] = other.client.engine_core.resources.engine_manager.processes
        process.kill()
        ended = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)
        assert [type(error) for error in ended] == [EngineDeadError] * 5
        with pytest.raises(EngineDeadError):
            await other.score(MIXED)
        assert len(await pooler.score(MIXED)) == len(MIXED)


REFUSED = {
    "/nowhere/to/be/found": "judge: .*/nowhere",
    "a language model": "judge: .* is LlamaForCausalLM, which has no scoring head; valid: a sequence-classification",
    "no weights": "judge: no weights in",
    "no tokenizer": "judge: no tokenizer in .*; say where it is in `tokenizer`",
}


@pytest.mark.slow
@pytest.mark.parametrize("what", REFUSED)
async def test_what_cannot_score_is_refused_before_a_worker_starts(what, tmp_path):
    model = tmp_path / "model"
    if what == "a language model":
        family.llama(model)
    elif not what.startswith("/"):
        family.scorer(model, LABELS, seed=0)
        for file in model.glob("*.safetensors" if what == "no weights" else "tokenizer*"):
            file.unlink()
    with pytest.raises(MemberError, match=REFUSED[what]):
        async with running_pooler("judge", what if what.startswith("/") else str(model), **OPTIONS):
            pytest.fail("it started")
