"""Searches that decide while they draw, over HTTP on the toy: what each honours or refuses, spends and survives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from tests.server import toy_server
from tests.server.search.conftest import FAULTS, HI, Letters, chat, counted, refused, slow, told
from trimtab.rewards.protocols import Question, Response
from trimtab.rewards.validated import ValidatedScorer
from trimtab.runtime.toy_engine import ToyEngine
from trimtab.server.config import Config


def asked(name: str, **params: Any) -> dict[str, Any]:
    return {"strategy": name, "weights": {"a": 1.0}, "params": {**SIZES[name], **params}}


SIZES: dict[str, dict[str, Any]] = {
    "args": {"k": 3},
    "transfer_q": {"k": 3, "rollouts": 2, "horizon": 3, "baseline": {"arm": 1.0}},
    "blockwise": {"n": 3, "block": 2},
    "particles": {"n": 4, "block": 1},
    "beam": {"n": 4, "width": 2, "block": 1},
}
STEPPED = [*SIZES]
NATIVE = ("args", "transfer_q", "blockwise")


@pytest.mark.parametrize("name", STEPPED)
async def test_the_answer_s_own_reward_is_told(client: AsyncOpenAI, name: str) -> None:
    for seed in range(3):
        answer = await chat(client, asked(name), seed=seed)
        [choice] = told(answer)["choices"]
        count = answer.choices[0].message.content.count("a")
        assert choice["rewards"] == {"a": count}
        assert choice["value"] == choice["transformed"]["a"] == (count - 1) / 2
        assert told(answer)["streaming"] == ("native" if name in NATIVE else "buffered")
        assert told(answer)["sampled_tokens"] >= answer.usage.completion_tokens


async def test_an_answer_that_was_cut_has_the_reward_of_what_there_is(client: AsyncOpenAI) -> None:
    cut = 0
    for seed in range(6):
        answer = await chat(client, {**asked("args"), "budget": {"max_sampled_tokens": 2}}, seed=seed)
        [choice] = told(answer)["choices"]
        cut += told(answer).get("outcome") == "budget"
        assert choice["rewards"] == {"a": answer.choices[0].message.content.count("a")}
        assert choice["value"] == choice["transformed"]["a"]
    assert cut, "no answer was cut"


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPPED)
async def test_it_pulls_towards_the_reward(client: AsyncOpenAI, name: str) -> None:
    async def mean(alignment: dict[str, Any]) -> float:
        answers = await asyncio.gather(*(chat(client, alignment, seed=seed) for seed in range(60)))
        return sum(a.choices[0].message.content.count("a") for a in answers) / 60

    assert await mean(asked(name)) > await mean({"strategy": "plain"}) + 0.3


@pytest.mark.parametrize("name", STEPPED)
async def test_n_answers_are_as_many(client: AsyncOpenAI, name: str) -> None:
    answer = await chat(client, asked(name), n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice["index"] for choice in told(answer)["choices"]] == [0, 1, 2]
    assert all("value" in choice for choice in told(answer)["choices"])


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("stop", ["b", "ab", ["ba", "bb"]])
async def test_a_stop_string_ends_an_answer_wherever_it_lies(client: AsyncOpenAI, name: str, stop: Any) -> None:
    """Across decisions and blocks too; and a stream shows no beginning of one."""
    ended = 0
    for seed in range(4):
        answer = await chat(client, asked(name), seed=seed, stop=stop)
        text = answer.choices[0].message.content
        assert not any(end in text for end in ([stop] if isinstance(stop, str) else stop))
        ended += answer.choices[0].stop_reason is not None if hasattr(answer.choices[0], "stop_reason") else 0
        stream = await chat(client, asked(name), seed=seed, stop=stop, stream=True)
        pieces = [c.choices[0].delta.content or "" async for c in stream if c.choices]
        assert "".join(pieces) == text
    assert ended > 0 or stop != "b"


READINGS = ("args", "transfer_q")
"""They go by what they read of the model, which a grammar would change."""
SCHEMA: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


@pytest.mark.parametrize(("name", "more", "message"), [
    *((name, {"logprobs": True}, "cannot be combined with logprobs") for name in STEPPED),
    *((name, {"presence_penalty": 1.0}, "penalties, grammars") for name in READINGS),
    *((name, {"presence_penalty": 1.0}, "presence_penalty cannot be") for name in STEPPED if name not in READINGS),
    *((name, {"logit_bias": {"5": 1}}, "penalties, grammars") for name in READINGS),
    *((name, {"response_format": {"type": "json_object"}}, "penalties, grammars") for name in READINGS),
    *((name, {"response_format": SCHEMA}, "penalties, grammars") for name in READINGS),
])  # fmt: skip
async def test_what_pieces_would_not_carry_out_is_refused(
    client: AsyncOpenAI, name: str, more: dict[str, Any], message: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=message) as caught:
            await chat(client, asked(name), stream=stream, **more)
        assert f"'{name}'" in caught.value.message


@pytest.mark.parametrize("name", STEPPED)
async def test_tools_and_truncation_are_honoured(client: AsyncOpenAI, name: str) -> None:
    """Tools are in the prompt; with a top-p of nothing and next to no reward what is left is greedy."""
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    assert (await chat(client, asked(name), tools=[tool], tool_choice="none")).choices[0].finish_reason
    one = await chat(client, asked(name) | {"weights": {"a": 0.001}}, seed=4, top_p=0.01)
    plain = await chat(client, {"strategy": "plain"}, temperature=0)
    assert one.choices[0].message.content == plain.choices[0].message.content


@pytest.mark.parametrize("name", STEPPED)
async def test_a_budget_gives_the_best_so_far(client: AsyncOpenAI, name: str) -> None:
    outcomes = []
    for most in (4, 9, 14, 24):
        asked_for = asked(name) | {"budget": {"max_sampled_tokens": most}}
        try:
            answer = await chat(client, asked_for, seed=2)
        except openai.APIStatusError as error:
            outcomes.append(error.code)
            continue
        outcomes.append(told(answer).get("outcome"))
        assert told(answer)["sampled_tokens"] <= most + 8, "each draw under way may pass it by one"
        assert answer.choices[0].message.content or answer.choices[0].finish_reason == "stop"
    assert "budget" in outcomes


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_is_kept(config: Config, toy: ToyEngine, name: str, stream: bool) -> None:
    client = await slow(config, toy, 0.02)
    before = counted(name, "deadline")
    began = asyncio.get_running_loop().time()
    last: Any = None
    alignment = asked(name) | {"budget": {"deadline_ms": 70}}
    with contextlib.suppress(openai.APIStatusError):  # nothing was in hand
        last = await chat(client, alignment, seed=2, stream=stream)
        if stream:
            [*_, last] = [chunk async for chunk in last]
        assert told(last)["outcome"] == "deadline"
    assert asyncio.get_running_loop().time() - began == pytest.approx(0.07)
    assert counted(name, "deadline") == before + 1


@pytest.mark.parametrize(("name", "fault"), [*product(STEPPED, ["dead"]), *product(["blockwise"], FAULTS)])
async def test_a_reward_that_fails_fails_the_request(client: AsyncOpenAI, name: str, fault: str) -> None:
    """However it fails, one kind of error comes to a strategy."""
    failing = {key: value for key, value in asked(name).items() if key != "weights"} | {"reward": f"{fault}.a"}
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as caught:
            await chat(client, failing, stream=stream)
        assert caught.value.code == "reward_error"
    plain = await chat(client, {"strategy": "plain"})
    answer = await chat(client, failing | {"on_error": "degrade"})
    assert answer.choices[0].message.content == plain.choices[0].message.content
    assert told(answer)["outcome"] == "degraded"


async def test_one_that_fails_after_its_first_token_says_so_in_the_stream(config: Config, toy: ToyEngine) -> None:
    calls = 0

    @dataclass(frozen=True)
    class Failing(Letters):
        async def __call__(self, question: Question, responses: Sequence[Response]) -> list[list[float]]:
            nonlocal calls
            calls += 1
            if calls > 1:
                raise RuntimeError("its engine died")
            return await super().__call__(question, responses)

    letters = ValidatedScorer(scorer=Failing(), name="letters", timeout=60)
    app = await toy_server.serve(config, toy, scorers={"letters": letters})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toy") as http:
        client = AsyncOpenAI(base_url="http://toy/v1", api_key="none", http_client=http, max_retries=0)
        for seed in range(20):
            calls = 0
            answer = await client.post(
                "/chat/completions",
                cast_to=httpx.Response,
                body={"model": "toy", "messages": HI, "stream": True, "seed": seed, "alignment": asked("args")},
            )
            if '"content":"' in answer.text and calls > 1:
                assert "reward_error" in answer.text
                return
    raise AssertionError("no answer was longer than a token")


async def test_two_rewards_are_weighed(client: AsyncOpenAI) -> None:
    """Rollouts whose own baseline reward is high count less, so the indirect values differ from the direct ones."""
    direct = asked("transfer_q", rollouts=8) | {"return": ["trace"]}
    indirect = asked("transfer_q", rollouts=8, value="transfer", baseline_reward="letters.length", beta=0.5)
    values = []
    for alignment in (direct, indirect | {"return": ["trace"]}):
        [choice] = told(await chat(client, alignment, seed=1))["choices"]
        values.append(choice["trace"][0]["values"])
    assert values[0] != values[1]
    same = asked("transfer_q", rollouts=8, value="transfer", baseline_reward="a") | {"return": ["trace"]}
    [choice] = told(await chat(client, same, seed=1))["choices"]
    assert choice["trace"][0]["values"] == pytest.approx(values[0]), "delta = 0 transfers nothing"


@pytest.mark.parametrize("name", ["blockwise", "particles", "beam"])
async def test_beginnings_can_have_a_reward_of_their_own(client: AsyncOpenAI, name: str) -> None:
    """One against the letter a decides on the way; the answer's value is still by the reward."""
    against: Any = {"of": {"letters.a": -5}}
    counts = []
    for more in ({}, {"prefix_reward": against}):
        answers = await asyncio.gather(*(chat(client, asked(name, **more), seed=seed) for seed in range(15)))
        texts = [answer.choices[0].message.content for answer in answers]
        values = [told(answer)["choices"][0]["value"] for answer in answers]
        assert values == [(text.count("a") - 1) / 2 for text in texts]
        counts.append(sum(text.count("a") for text in texts))
    assert counts[1] < counts[0]


@pytest.mark.parametrize(("alignment", "param", "message"), [
    (asked("beam", prefix_reward="x"), "alignment.params.prefix_reward", "unknown reward"),
    (asked("transfer_q", baseline={"nobody": 1}), "alignment.params.baseline", "unknown guide 'nobody'"),
    (asked("transfer_q", baseline={}), "alignment.params.baseline", "at least 1"),
    (asked("transfer_q", baseline={"arm": 1e9}), "alignment.params.baseline", "must lie in"),
    (asked("transfer_q", value="transfer"), "alignment.params", "baseline_reward go together"),
    (asked("transfer_q", value="transfer", baseline_reward="lettres.a"), "alignment.params.baseline_reward",
     "unknown reward"),
    (asked("transfer_q", value="transfer", baseline_reward="letters"), "alignment.params.baseline_reward",
     "name one: letters.a"),
    (asked("transfer_q", k=21), "alignment.params.k", "engine.max_logprobs, 20"),
    (asked("transfer_q", k=20, rollouts=20), "alignment.params.rollouts", "k * rollouts must be at most 256"),
    (asked("transfer_q", alpha=0), "alignment.params.alpha", "greater than 0"),
    (asked("transfer_q", horizon=-1), "alignment.params.horizon", "greater than or equal to 0"),
    (asked("args", weight=-1), "alignment.params.weight", "greater than or equal to 0"),
    (asked("args", min_p=2), "alignment.params.min_p", "less than or equal to 1"),
    (asked("blockwise", block=0), "alignment.params.block", "greater than or equal to 1"),
    (asked("blockwise", n=257), "alignment.params.n", "at most 256 on this server"),
    (asked("particles", beta=0), "alignment.params.beta", "greater than 0"),
    (asked("particles", ess=1.5), "alignment.params.ess", "less than or equal to 1"),
    (asked("particles", variant="smc"), "alignment.params.variant", "'increments' or 'pf_reference'"),
    (asked("beam", width=3), "alignment.params", "width=3 must divide n=4"),
    (asked("beam", rounds=0), "alignment.params.rounds", "greater than or equal to 1"),
    ({"strategy": "args"}, "alignment", "needs alignment.reward or alignment.weights"),
])  # fmt: skip
async def test_what_cannot_be_is_refused_by_name(
    client: AsyncOpenAI, alignment: dict[str, Any], param: str, message: str
) -> None:
    await refused(client, alignment, param, message)
