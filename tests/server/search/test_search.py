"""Searches over HTTP on the toy engine, through the official client: what they answer, spend, refuse and survive."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from prometheus_client import REGISTRY

from tests.server import toy_server
from tests.server.search.conftest import FAULTS, HI, Letters, best, chains, chat, counted, refused, slow, told
from tests.waiting import until
from trimtab.rewards.protocols import Question, Response
from trimtab.rewards.validated import ValidatedScorer
from trimtab.runtime.toy_engine import ToyEngine
from trimtab.server.config import Config

SEARCHES: dict[str, dict[str, Any]] = {
    "best_of_n": best(),
    "soft_best_of_n": {"strategy": "soft_best_of_n", "weights": {"a": 1.0}, "params": {"n": 8, "lambda": 0.5}},
    "vote": {"strategy": "vote", "params": {"n": 8, "extractor": "text"}},
    "mbr": {"strategy": "mbr", "params": {"n": 8}},
    "rejection": {"strategy": "rejection", "weights": {"a": 1.0}, "params": {"n": 8}},
    "speculative_rejection": {
        "strategy": "speculative_rejection", "weights": {"a": 1.0}, "params": {"n": 8, "decisions": [2, 3]},
    },
    "qalign": {"strategy": "qalign", "weights": {"a": 1.0}, "params": {"chains": 3, "steps": 5}},
    "args": {"strategy": "args", "weights": {"a": 1.0}, "params": {"k": 3}},
    "transfer_q": {
        "strategy": "transfer_q", "weights": {"a": 1.0}, "params": {"k": 3, "rollouts": 2, "baseline": {"arm": 1.0}},
    },
    "blockwise": {"strategy": "blockwise", "weights": {"a": 1.0}, "params": {"n": 3, "block": 2}},
    "particles": {"strategy": "particles", "weights": {"a": 1.0}, "params": {"n": 4, "block": 1}},
    "rps": {"strategy": "rps", "weights": {"a": 1.0, "brevity": 0.5}, "params": {"k": 4, "m": 2}},
    "beam": {"strategy": "beam", "weights": {"a": 1.0}, "params": {"n": 4, "width": 2, "block": 1}},
}  # fmt: skip


async def test_the_best_of_the_pool_is_the_answer(client: AsyncOpenAI) -> None:
    """And the pool is the answers that the same seed gives to n."""
    plain = await client.chat.completions.create(model="toy", messages=HI, seed=3, n=8)
    pool = [choice.message.content for choice in plain.choices]
    answer = await chat(client, best(**{"return": ["candidates", "rewards"]}))
    [choice] = told(answer)["choices"]
    assert [candidate["text"] for candidate in choice["candidates"]] == pool
    counts = [text.count("a") for text in pool]
    assert answer.choices[0].message.content == pool[counts.index(max(counts))]
    assert choice["candidate"] == counts.index(max(counts))
    assert choice["value"] == (max(counts) - 1) / 2
    assert choice["rewards"] == {"a": max(counts)}
    assert choice["transformed"] == {"a": (max(counts) - 1) / 2}
    assert [candidate["rewards"]["a"] for candidate in choice["candidates"]] == counts


async def test_what_was_drawn_and_scored_is_counted(client: AsyncOpenAI) -> None:
    plain = await client.chat.completions.create(model="toy", messages=HI, seed=3, n=8)
    answer = await chat(client, best())
    spent = {"sampled_tokens": plain.usage.completion_tokens, "scored_tokens": plain.usage.completion_tokens}
    assert {key: told(answer)[key] for key in spent} == spent
    assert answer.usage.completion_tokens_details.model_extra == spent
    assert answer.usage.completion_tokens < spent["sampled_tokens"]
    assert told(answer)["streaming"] == "buffered"


@pytest.mark.parametrize("name", SEARCHES)
async def test_a_stream_is_the_same_answer(client: AsyncOpenAI, name: str) -> None:
    for n in (1, 2):
        whole = await chat(client, SEARCHES[name], n=n)
        assert told(whole)["strategy"] == name
        pieces, roles, last = [""] * n, [], None
        stream = await chat(client, SEARCHES[name], n=n, stream=True, stream_options={"include_usage": True})
        async for chunk in stream:
            last = chunk
            for choice in chunk.choices:
                roles += [choice.index] * bool(choice.delta.role)
                pieces[choice.index] += choice.delta.content or ""
        assert pieces == [choice.message.content for choice in whole.choices]
        assert sorted(roles) == list(range(n))
        assert told(last) == told(whole)
        assert last.usage == whole.usage


@pytest.mark.parametrize("name", SEARCHES)
async def test_a_seed_is_an_answer_whatever_else_runs(client: AsyncOpenAI, name: str) -> None:
    async def answer(seed: int) -> str:
        return (await chat(client, SEARCHES[name], seed=seed)).choices[0].message.content

    alone = [await answer(seed) for seed in range(3)]
    assert list(await asyncio.gather(*(answer(seed) for seed in range(3)))) == alone


async def test_a_search_without_a_reward_shows_its_candidates_too(client: AsyncOpenAI) -> None:
    asked = {"strategy": "vote", "params": {"n": 6, "extractor": "text"}, "return": ["candidates"]}
    answer = await chat(client, asked)
    plain = await client.chat.completions.create(model="toy", messages=HI, seed=3, n=6)
    [choice] = told(answer)["choices"]
    assert [c["text"] for c in choice["candidates"]] == [c.message.content for c in plain.choices]
    assert all(c["value"] is None for c in choice["candidates"])
    with pytest.raises(openai.BadRequestError, match="one reward is needed"):
        await chat(client, {**asked, "params": {"weighting": "softmax"}})


async def test_candidates_can_be_drawn_under_guides(client: AsyncOpenAI) -> None:
    answer = await chat(client, best(guides={"arm": 2.0}, **{"return": ["candidates"]}))
    guided = await chat(client, {"guides": {"arm": 2.0}}, n=8)
    assert told(answer)["guides"] == {"base": 1.0, "arm": 2.0}
    texts = [candidate["text"] for candidate in told(answer)["choices"][0]["candidates"]]
    assert texts == [choice.message.content for choice in guided.choices]


async def test_a_preset_can_be_a_search(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="toy-best", messages=HI, seed=3)
    assert answer.choices[0].message.content == (await chat(client, best())).choices[0].message.content


async def test_bare_prompts_are_answered_each(client: AsyncOpenAI) -> None:
    prompts = ["user: x\nassistant: ", "user: y\nassistant: "]
    answer = await client.completions.create(model="toy", prompt=prompts, seed=1, extra_body={"alignment": best()})
    assert [choice["index"] for choice in told(answer)["choices"]] == [0, 1]
    assert len(answer.choices) == 2


async def test_a_stop_string_ends_candidates_for_the_reward_too(client: AsyncOpenAI) -> None:
    """Rewards read what the client would: nothing from the stop string on."""
    answer = await chat(client, {"strategy": "best_of_n", "reward": "letters.length", "params": {"n": 32},
                                 "return": ["candidates", "rewards"]}, stop="b")  # fmt: skip
    for candidate in told(answer)["choices"][0]["candidates"]:
        assert "b" not in candidate["text"]
        assert candidate["rewards"] == {"letters.length": len(candidate["text"])}


# Rewards in a request.


@pytest.mark.parametrize(("reward", "value"), [
    ("letters.a", lambda t: t.count("a")),
    ("a", lambda t: (t.count("a") - 1) / 2),
    ({"of": {"letters.a": 2, "letters.length": -0.5}}, lambda t: 2 * t.count("a") - 0.5 * len(t)),
    ({"of": ["letters.a", "letters.length"], "combine": "min"}, lambda t: min(t.count("a"), len(t))),
    ({"of": ["letters.a", "letters.length"], "combine": {"uwo": {"lambda": 2}}},
     lambda t: (t.count("a") + len(t)) / 2 - (t.count("a") - len(t)) ** 2),
    ({"of": {"of": "letters.length", "transform": {"clip": {"low": 1, "high": 2}}}, "combine": "mean"},
     lambda t: min(max(len(t), 1), 2)),
])  # fmt: skip
async def test_a_reward_is_what_the_request_says(client: AsyncOpenAI, reward: Any, value: Any) -> None:
    asked = {"strategy": "best_of_n", "reward": reward, "params": {"n": 16}, "return": ["candidates"]}
    [choice] = told(await chat(client, asked))["choices"]
    for candidate in choice["candidates"]:
        assert candidate["value"] == pytest.approx(value(candidate["text"]))
    assert choice["value"] == max(candidate["value"] for candidate in choice["candidates"])


async def test_references_given_in_the_request(client: AsyncOpenAI) -> None:
    asked = {"strategy": "best_of_n", "reward": "bleu", "params": {"n": 8}}
    answer = await chat(client, {**asked, "given": {"references": ["a b a"]}})
    assert 0 <= told(answer)["choices"][0]["value"] <= 1
    with pytest.raises(openai.BadRequestError, match=r"needs alignment\.given\.references"):
        await chat(client, asked)


@pytest.mark.parametrize(("alignment", "param", "message"), [
    ({"strategy": "best_of_n"}, "alignment", "strategy 'best_of_n' needs alignment.reward or alignment.weights"),
    (best(reward="letters.a"), "alignment.reward", "two ways to say"),
    (best(weights={"truth": 1}), "alignment.weights.truth", "has no reward"),
    ({"weights": {"a": 1}}, "alignment.weights.a", "has no guide"),
    (best(weights=None), "alignment.weights", "dictionary"),
    ({"strategy": "best_of_n", "reward": "lettres.a"}, "alignment.reward", "unknown reward"),
    ({"strategy": "best_of_n", "reward": "letters"}, "alignment.reward", "name one: letters.a, letters.length"),
    ({"strategy": "best_of_n", "reward": "letters.b"}, "alignment.reward", "unknown score of reward 'letters' 'b'"),
    ({"strategy": "best_of_n", "reward": {"of": []}}, "alignment.reward.of", "is required"),
    ({"strategy": "best_of_n", "reward": {"of": "short", "combin": "min"}}, "alignment.reward.combin", "unknown key"),
    ({"strategy": "best_of_n", "reward": {"of": "short", "combine": "max"}}, "alignment.reward.combine", "unknown com"),
    ({"strategy": "best_of_n", "reward": {"of": "short", "combine": {"heron": {"margins": [1]}}}},
     "alignment.reward.combine", "compares the candidates"),
    ({"strategy": "best_of_n", "reward": {"of": "short", "transform": {"par": {"k": -1}}}},
     "alignment.reward.transform.par", "greater than 0"),
    ({"strategy": "best_of_n", "reward": {"of": {"short": "1"}}}, "alignment.reward.of.short", "must be a number"),
    ({"strategy": "best_of_n", "reward": 7}, "alignment.reward", ""),
    (best(n=0), "alignment.params.n", "greater than or equal to 1"),
    (best(n=-1), "alignment.params.n", "greater than or equal to 1"),
    (best(n=1_000_000_000), "alignment.params.n", "less than or equal to 4096"),
    (best(n=257), "alignment.params.n", "at most 256 on this server"),
    (best(params={"n": 1.5}), "alignment.params.n", "integer"),
    (best(params={"n": "8"}), "alignment.params.n", "integer"),
    (best(params={"n": True}), "alignment.params.n", "integer"),
    (best(budget={"max_sampled_tokens": 0}), "alignment.budget.max_sampled_tokens", "greater than or equal to 1"),
    (best(budget={"max_sampled_tokens": 10**9}), "alignment.budget.max_sampled_tokens", "less than or equal"),
    (best(budget={"deadline_ms": 0}), "alignment.budget.deadline_ms", "greater than or equal to 1"),
    (best(budget={"deadline_ms": -5}), "alignment.budget.deadline_ms", "greater than or equal to 1"),
    (best(budget={"deadline_ms": 1.5}), "alignment.budget.deadline_ms", "integer"),
    (best(budget={"deadline": 5}), "alignment.budget.deadline", "valid: deadline_ms, max_sampled_tokens"),
    (best(budget=[]), "alignment.budget", ""),
    (best(on_error="ignore"), "alignment.on_error", "'fail' or 'degrade'"),
    (best(given={"references": ["x"]}), "alignment.given.references", "no reward that is asked for compares"),
    ({"strategy": "vote", "given": {"answer": "1"}}, "alignment.given.answer", "no reward that is asked for compares"),
    (best(given={"references": []}), "alignment.given.references", "at least 1"),
    ({"strategy": "soft_best_of_n", "weights": {"a": 1}, "params": {"lambda": 0}}, "alignment.params.lambda",
     "greater than 0"),
    ({"strategy": "guided", "guides": {"arm": 1}, "reward": "short"}, "alignment.reward", "cannot be honoured"),
    (chains(beta=0), "alignment.params.beta", "greater than 0"),
    (chains(beta="inf"), "alignment.params.beta", "number"),
    (chains(steps=-1), "alignment.params.steps", "greater than or equal to 0"),
    (chains(steps=10**9), "alignment.params.steps", "less than or equal to 100000"),
    (chains(steps=4096, chains=1), "alignment.params.steps", "chains * (steps + 1) must be at most 4096"),
    (chains(chains=257), "alignment.params.chains", "at most 256 on this server"),
    (chains(steps=4, burn_in=5), "alignment.params", "burn_in=5 leaves nothing"),
    (chains(until={"r_hat": 1}), "alignment.params.until.r_hat", "greater than 1"),
    (chains(until={}), "alignment.params", "until names neither"),
    (chains(until={"ess": 4}), "alignment.params.until.ess", ""),
    (chains(answer="best"), "alignment.params.answer", "'mbr'"),
    ({"strategy": "qalign", "params": {"steps": 4}}, "alignment", "needs alignment.reward or alignment.weights"),
])  # fmt: skip
async def test_what_cannot_be_is_refused_by_name(
    client: AsyncOpenAI, alignment: dict[str, Any], param: str, message: str
) -> None:
    await refused(client, alignment, param, message)


async def test_more_answers_than_candidates_are_refused(client: AsyncOpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=r"n=3 answers .* params.n=2"):
            await chat(client, best(n=2), n=3, stream=stream)


# Budgets and deadlines.


async def test_a_budget_gives_the_best_so_far(client: AsyncOpenAI) -> None:
    """Candidates are drawn side by side, so some have ended before the tokens are gone."""
    answer = await chat(client, best(n=32, budget={"max_sampled_tokens": 64}, **{"return": ["candidates"]}))
    assert told(answer)["outcome"] == "budget"
    assert 64 <= told(answer)["sampled_tokens"] < 64 + 32
    [choice] = told(answer)["choices"]
    ended = [c for c in choice["candidates"] if c["finish_reason"] != "budget"]
    assert 0 < len(ended) < 32
    assert choice["value"] == max(c["value"] for c in ended)
    assert all(c["value"] is None for c in choice["candidates"] if c["finish_reason"] == "budget")


async def test_a_budget_that_ends_one_answer_is_kept_to_the_token(client: AsyncOpenAI) -> None:
    for alignment in ({"guides": {"arm": 0.5}}, {"strategy": "plain"}, best(n=1)):
        asked = {**alignment, "budget": {"max_sampled_tokens": 1}}
        answer = await chat(client, asked, seed=5)
        assert told(answer)["sampled_tokens"] == 1
        if told(answer).get("outcome") == "budget":
            assert answer.choices[0].finish_reason == "length"


@pytest.mark.usefixtures("no_waits")
async def test_a_deadline_gives_the_best_so_far(config: Config, toy: ToyEngine) -> None:
    client = await slow(config, toy, 0.01)
    answer = await chat(client, best(n=16, budget={"deadline_ms": 300}, **{"return": ["candidates"]}))
    assert told(answer)["outcome"] == "deadline"
    values = [c["value"] for c in told(answer)["choices"][0]["candidates"] if c["value"] is not None]
    assert told(answer)["choices"][0]["value"] == max(values)
    assert counted("best_of_n", "deadline") > 0


@pytest.fixture(scope="module")
async def hung(config: Config, toy: ToyEngine) -> AsyncIterator[AsyncOpenAI]:
    """A server whose reward never comes."""
    letters = ValidatedScorer(scorer=Letters("hung"), name="letters", timeout=60)
    app = await toy_server.serve(config, toy, scorers={"letters": letters})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toy") as transport:
        yield AsyncOpenAI(base_url="http://toy/v1", api_key="none", http_client=transport, max_retries=0)


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize("name", ["best_of_n", "soft_best_of_n", "rejection", "beam", "qalign"])
async def test_a_deadline_is_kept_while_a_reward_hangs(hung: AsyncOpenAI, name: str) -> None:
    """Answers that have ended are in hand, scored or not."""
    before, began = counted(name, "deadline"), asyncio.get_running_loop().time()
    answer = await chat(hung, SEARCHES[name] | {"budget": {"deadline_ms": 300}})
    assert asyncio.get_running_loop().time() - began == pytest.approx(0.3)
    assert answer.usage.completion_tokens > 0
    assert (told(answer)["outcome"], told(answer)["choices"][0]["value"]) == ("deadline", None)
    assert counted(name, "deadline") == before + 1


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_with_nothing_in_hand_is_no_answer(config: Config, toy: ToyEngine, stream: bool) -> None:
    client = await slow(config, toy, 0.2)
    before = counted("best_of_n", "deadline")
    with pytest.raises(openai.APIStatusError) as caught:
        await chat(client, best(n=4, budget={"deadline_ms": 1}), stream=stream)
    assert caught.value.status_code == 504
    assert caught.value.code == "deadline_exceeded"
    assert counted("best_of_n", "deadline") == before + 1, "the client must not try again by itself"


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/responses", "/messages"])
async def test_a_stream_is_kept_alive_while_a_search_runs(
    config: Config, toy: ToyEngine, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """And by nothing else: a stream of tokens has no comments."""
    monkeypatch.setattr("trimtab.server.http.response.KEEP_ALIVE", 0.02)
    client = await slow(config, toy, 0.05)
    asked: dict[str, Any] = {"prompt": "assistant: "} if path == "/completions" else {"messages": HI}
    if path == "/responses":
        asked = {"input": "hi"}
    limit = "max_output_tokens" if path == "/responses" else "max_tokens"
    body = {"model": "toy", "seed": 3, "stream": True, limit: 8, **asked}
    for alignment, alive in ((best(n=4), True), ({"guides": {"arm": 0.5}}, False)):
        url = f"http://toy/v1{path}"
        answer = await client._client.post(url, json=body | {"alignment": alignment})
        assert answer.status_code == 200, answer.text
        assert (": keep-alive\n\n" in answer.text) is alive
        events = [event for event in answer.text.split("\n\n") if event != ": keep-alive"]
        assert all(event.startswith(("data: ", "event: ")) for event in events if event)


# Chains.


async def test_chains_tell_how_they_went(client: AsyncOpenAI) -> None:
    answer = await chat(client, chains(steps=20, **{"chains": 2}) | {"return": ["trace"]})
    [choice] = told(answer)["choices"]
    assert choice["steps"] == 40
    assert choice["acceptance_rate"] == sum(sum(c["accepted"]) for c in choice["trace"]) / 40
    assert [len(c["reward"]) for c in choice["trace"]] == [21, 21]
    assert choice["value"] in choice["trace"][0]["reward"] + choice["trace"][1]["reward"]
    assert choice["length"]["p10"] <= choice["length"]["p50"] <= choice["length"]["p90"]
    assert told(answer)["scored_tokens"] >= told(answer)["sampled_tokens"]
    assert "warnings" not in told(answer)


async def test_chains_that_a_budget_ends_answer_with_what_they_have(client: AsyncOpenAI) -> None:
    asked = chains(steps=500, chains=2, answer="max_reward") | {"return": ["trace"]}
    answer = await chat(client, asked | {"budget": {"max_sampled_tokens": 60}})
    assert told(answer)["outcome"] == "budget"
    assert 60 <= told(answer)["sampled_tokens"] <= 62
    [choice] = told(answer)["choices"]
    assert choice["value"] == max(r for c in choice["trace"] for r in c["reward"])
    assert 2 < choice["steps"] < 100


async def test_a_stop_string_is_cut_from_a_chain_s_answer(client: AsyncOpenAI) -> None:
    for seed in range(8):
        answer = await chat(client, chains(), stop="b", seed=seed)
        assert "b" not in answer.choices[0].message.content
        assert answer.choices[0].finish_reason in ("stop", "length")
        assert "stop string" in told(answer)["warnings"][0]


@pytest.mark.parametrize("asked", [chains(), best(params={"n": 4, "diverse": {"groups": 2, "penalty": 1}})])
async def test_log_probs_of_what_has_none_are_refused(client: AsyncOpenAI, asked: dict[str, Any]) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="cannot be combined with logprobs"):
            await chat(client, asked, logprobs=True, stream=stream)


async def test_answers_that_were_to_come_in_one_are_drawn_alone_where_they_did_not(client: AsyncOpenAI) -> None:
    """The toy's text has no headings."""
    params = {"n": 4, "diverse": {"together": 3}}
    answer = await chat(client, best(params=params) | {"return": ["candidates"]}, seed=2)
    [choice] = told(answer)["choices"]
    assert "4 of 4 candidates were drawn by themselves" in told(answer)["warnings"][0]
    alone = await chat(client, best(params={"n": 4}), seed=2)
    assert answer.choices[0].message.content == alone.choices[0].message.content
    assert [c["index"] for c in choice["candidates"]] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"stop": ["b"]}, "cannot be combined with stop strings"),
        ({"params": {"n": 2, "diverse": {"together": 1}}}, r"params\.diverse.*together.*2"),
        ({"params": {"n": 2, "diverse": {"groups": 1, "together": 2}}}, "unknown key 'groups'; valid: together"),
        ({"params": {"n": 2, "diverse": {"group": 1}}}, r"params\.diverse\.groups is required"),
        ({"params": {"n": 2, "diverse": 4}}, r"params\.diverse"),
    ],
)
async def test_what_answers_in_one_cannot_be_is_refused(client: AsyncOpenAI, more: Any, message: str) -> None:
    params = more.pop("params", {"n": 2, "diverse": {"together": 2}})
    body = {"model": "toy", "messages": HI, "alignment": best(params=params), **more}
    with pytest.raises(openai.BadRequestError, match=message):
        await client.post("/chat/completions", cast_to=object, body=body)


async def test_a_bare_prompt_cannot_be_answered_in_one(client: AsyncOpenAI) -> None:
    asked = best(params={"n": 2, "diverse": {"together": 2}})
    with pytest.raises(openai.BadRequestError, match="needs a chat request"):
        await client.completions.create(model="toy", prompt="a", extra_body={"alignment": asked})


# Rewards that fail.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_reward_that_fails_fails_the_request(client: AsyncOpenAI, fault: str, stream: bool) -> None:
    before = counted("best_of_n", "reward_error"), errors(fault)
    with pytest.raises(openai.InternalServerError) as caught:
        await chat(client, {"strategy": "best_of_n", "reward": f"{fault}.a"}, stream=stream)
    assert caught.value.code == "reward_error"
    assert f"reward '{fault}'" in caught.value.message
    assert counted("best_of_n", "reward_error") == before[0] + 1, "the client must not try again by itself"
    assert errors(fault) > before[1]


def errors(reward: str) -> float:
    return REGISTRY.get_sample_value("trimtab_reward_errors_total", {"reward": reward}) or 0.0


@pytest.mark.parametrize("fault", FAULTS)
async def test_or_is_answered_plainly_if_the_client_says_so(client: AsyncOpenAI, fault: str) -> None:
    plain = await client.chat.completions.create(model="toy", messages=HI, seed=3)
    before = counted("plain", "degraded")
    asked = {"strategy": "best_of_n", "reward": f"{fault}.a", "on_error": "degrade"}
    answer = await client.chat.completions.with_raw_response.create(
        model="toy", messages=HI, seed=3, extra_body={"alignment": asked}
    )
    body: Any = answer.parse()
    assert body.choices[0].message.content == plain.choices[0].message.content
    assert answer.headers["x-alignment-strategy"] == "plain"
    assert told(body)["strategy"] == "plain"
    assert told(body)["outcome"] == "degraded"
    assert f"reward '{fault}'" in told(body)["warnings"][0]
    assert counted("plain", "degraded") == before + 1


# Scoring.


async def test_answers_of_the_client_s_own_are_scored(raw: httpx.AsyncClient) -> None:
    body = {"messages": HI, "responses": ["aab", "", "b"], "weights": {"a": 2, "brevity": 1}}
    answer = (await raw.post("/v1/alignment/score", json=body)).json()
    assert [s["rewards"]["a"] for s in answer["scores"]] == [2, 0, 0]
    assert answer["scores"][0]["transformed"]["a"] == 0.5
    for s in answer["scores"]:
        assert s["value"] == pytest.approx(2 * s["transformed"]["a"] + s["transformed"]["brevity"])


@pytest.mark.parametrize(("body", "param"), [
    ({"messages": HI}, "responses"),
    ({"messages": HI, "responses": []}, "responses"),
    ({"responses": ["a"]}, "messages"),
    ({"messages": HI, "prompt": "x", "responses": ["a"]}, "messages"),
    ({"messages": HI, "responses": [1]}, "responses.0"),
    ({"messages": HI, "responses": ["a"], "weights": {"b": 1}}, "weights.b"),
    ({"messages": HI, "responses": ["a"], "reward": "bleu"}, "alignment.given.references"),
    ({"messages": HI, "responses": ["a"], "rewards": "bleu"}, "rewards"),
])  # fmt: skip
async def test_what_cannot_be_scored_is_refused(raw: httpx.AsyncClient, body: Any, param: str) -> None:
    answer = await raw.post("/v1/alignment/score", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_reward_that_fails_is_no_score(raw: httpx.AsyncClient) -> None:
    answer = await raw.post("/v1/alignment/score", json={"prompt": "x", "responses": ["a"], "reward": "nan.a"})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "reward_error"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_the_reward_s_work(config: Config, toy: ToyEngine, stream: bool) -> None:
    state: list[str] = []

    @dataclass(frozen=True)
    class Waiting(Letters):
        async def __call__(self, question: Question, responses: Sequence[Response]) -> list[list[float]]:
            state.append("asked")
            try:
                await asyncio.Event().wait()
            finally:
                state.append("ended")
            return []

    letters = ValidatedScorer(scorer=Waiting(), name="letters", timeout=60)
    app = await toy_server.serve(config, toy, scorers={"letters": letters})
    body = json.dumps({"model": "toy", "messages": HI, "seed": 3, "stream": stream, "alignment": best(n=4)}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        await until(lambda: messages or "asked" in state)
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    await until(lambda: "ended" in state)
    assert state == ["asked", "ended"]
