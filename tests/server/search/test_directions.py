"""Directional alignment and RPS over HTTP on the toy engine: the prompts that are sent, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from tests.server.search.conftest import HI, chat, refused, told
from trimtab.decoders.protocols import Tokens, Work
from trimtab.preferences.preference_direction import DPA, RPS
from trimtab.runtime.toy_engine import ToyEngine
from trimtab.server.request import cost
from trimtab.server.request.messages import CHAT, MESSAGES, RESPONSES

UPRIGHT = {"a": 1.0, "brevity": 0.0}
SAID = DPA.format(h=97, w=-26)


def asked(weights: Any, strategy: str = "directional", **params: Any) -> dict[str, Any]:
    return {"strategy": strategy, "weights": weights, "params": params}


class Sent:
    """The prompts that the engine was asked to go on from."""

    def __init__(self, toy: ToyEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prompts: list[list[int]] = []
        generate = toy.generate

        def noted(prompt: Tokens, *args: Any, **more: Any) -> Any:
            self.prompts.append(list(prompt))
            return generate(prompt, *args, **more)

        monkeypatch.setattr(toy, "generate", noted)

    async def by(self, raw: httpx.AsyncClient, path: str, **body: Any) -> tuple[list[int], Any]:
        """The prompt of a request, and the answer."""
        self.prompts.clear()
        answer = await raw.post(path, json={"model": "toy", "seed": 4, **body})
        assert answer.status_code == 200, answer.text
        [sent] = self.prompts
        return sent, answer.json()


@pytest.fixture
def sent(toy: ToyEngine, monkeypatch: pytest.MonkeyPatch) -> Sent:
    return Sent(toy, monkeypatch)


TYPED = [
    ([{"role": "system", "content": SAID}, *HI], HI),
    ([{"role": "system", "content": f"{SAID}\n\nBe calm."}, *HI], [{"role": "system", "content": "Be calm."}, *HI]),
    (
        [{"role": "developer", "content": [{"type": "text", "text": f"{SAID}\n\nBe calm."}]}, *HI],
        [{"role": "developer", "content": [{"type": "text", "text": "Be calm."}]}, *HI],
    ),
    (
        [{"role": "system", "content": SAID}, *HI, {"role": "assistant", "content": "a"}, *HI],
        [*HI, {"role": "assistant", "content": "a"}, *HI],
    ),
]


@pytest.mark.parametrize(("by_hand", "messages"), TYPED)
async def test_a_direction_is_the_system_message_typed_by_hand(
    raw: httpx.AsyncClient, sent: Sent, by_hand: Any, messages: Any
) -> None:
    """Token for token, and so is the answer, whatever else vLLM was asked for."""
    for more in ({}, {"n": 3, "stop": ["b"]}, {"chat_template_kwargs": {"shout": True}}):
        expected, plain = await sent.by(raw, CHAT, messages=by_hand, **more)
        found, answer = await sent.by(raw, CHAT, messages=messages, alignment=asked({"angle": -15}), **more)
        assert found == expected
        assert answer["choices"] == plain["choices"]
        assert answer["alignment"]["weights"] == pytest.approx({"a": 0.965926, "brevity": -0.258819}, abs=1e-6)
        assert answer["alignment"]["choices"][0]["preference_prompt"] == SAID


async def test_the_user_s_own_words_come_after_a_blank_line(raw: httpx.AsyncClient, sent: Sent) -> None:
    """In RPS's variant; its reader answers in the base's place."""
    last = {"role": "user", "content": f"{RPS.format(h=97, w=26)}\n\nhi"}
    turns = [*HI, {"role": "assistant", "content": "b"}]
    reader = {"strategy": "mod", "guides": {"arm": 1.0}}
    expected, plain = await sent.by(raw, CHAT, messages=[*turns, last], alignment=reader)
    wish = asked({"a": 3.86, "brevity": 1.035}, prompt="user")
    found, answer = await sent.by(raw, CHAT, messages=[*turns, *HI], alignment=wish)
    assert found == expected
    assert answer["choices"] == plain["choices"]
    assert answer["alignment"]["guides"] == {"base": 0.0, "arm": 1.0}


async def test_responses_and_messages_are_told_too(raw: httpx.AsyncClient, sent: Sent) -> None:
    wish = asked({"angle": -15})
    for body in ({"system": "Be calm."}, {"system": [{"type": "text", "text": "Be calm."}]}, {}):
        typed = {"system": f"{SAID}\n\nBe calm." if body else SAID}
        common = {"messages": HI, "max_tokens": 5, "temperature": 0}
        expected, plain = await sent.by(raw, MESSAGES, **common, **typed)
        found, answer = await sent.by(raw, MESSAGES, **common, **body, alignment=wish)
        assert (found, answer["content"]) == (expected, plain["content"])
    for said in ("hi", HI):
        expected, plain = await sent.by(raw, RESPONSES, input=said, instructions=SAID)
        found, answer = await sent.by(raw, RESPONSES, input=said, alignment=wish)
        assert (found, answer["output"][0]["content"]) == (expected, plain["output"][0]["content"])


async def test_what_goes_on_from_a_stored_response_is_refused(client: AsyncOpenAI) -> None:
    body = {"model": "toy", "input": "hi", "previous_response_id": "resp_1", "alignment": asked(UPRIGHT)}
    with pytest.raises(openai.APIStatusError, match=r"resp_1|previous_response_id"):
        await client.post("/responses", cast_to=object, body=body)


async def test_values_are_told_in_words(client: AsyncOpenAI) -> None:
    answer = await chat(client, asked({"a": 1, "truth": 0.5}, prompt="words"))
    assert told(answer)["choices"][0]["preference_prompt"] == (
        "You are an assistant to a person who values letters above all and truth much."
    )


async def test_a_slot_that_means_the_opposite_of_its_objective(client: AsyncOpenAI) -> None:
    """An angle is of what the prompt says, weights are of the objectives."""
    by_angle = await chat(client, asked({"angle": -15}, prompt="opposite"))
    assert told(by_angle)["choices"][0]["preference_prompt"] == SAID
    assert told(by_angle)["weights"] == pytest.approx({"a": 0.965926, "brevity": 0.258819}, abs=1e-6)
    by_weights = await chat(client, asked({"a": 3.86, "brevity": 1.035}, prompt="opposite"))
    assert told(by_weights)["choices"][0]["preference_prompt"] == SAID


async def test_a_direction_streams_as_it_is_drawn(client: AsyncOpenAI) -> None:
    whole = await chat(client, asked(UPRIGHT), n=2)
    pieces, last = ["", ""], None
    stream = await chat(client, asked(UPRIGHT), n=2, stream=True, stream_options={"include_usage": True})
    async for chunk in stream:
        last = chunk
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert pieces == [choice.message.content for choice in whole.choices]
    assert told(last) == told(whole)
    assert told(whole)["streaming"] == "native"


async def test_neighbours_are_told_each_its_own_and_chosen_among_by_the_wish(client: AsyncOpenAI, sent: Sent) -> None:
    search = {**asked({"a": 1, "brevity": 1}, "rps", k=4, m=2), "return": ["candidates", "rewards"]}
    answer = await chat(client, search, n=2)
    choices = told(answer)["choices"]
    candidates = choices[0]["candidates"]
    assert len(candidates) == 8
    assert all(c["degrees_from_target"] <= 30 for c in candidates)
    assert len({tuple(c["direction"].values()) for c in candidates}) > 1
    for c in candidates:
        a, brevity = c["rewards"]["a"], c["rewards"]["brevity"]
        assert c["value"] == pytest.approx(((a - 1) / 2 + brevity) / 2**0.5, abs=1e-5)
    values = sorted((c["value"] for c in candidates), reverse=True)
    assert [choice["value"] for choice in choices] == values[:2]
    assert told(answer)["weights"] == pytest.approx({"a": 0.5**0.5, "brevity": 0.5**0.5})
    read = sum(len(prompt) for prompt in sent.prompts)
    assert told(answer)["scored_tokens"] == 2 * told(answer)["sampled_tokens"] + read, "two rewards read each answer"


@pytest.mark.parametrize(
    "search",
    [
        asked({"a": 1, "brevity": 0.2}),
        asked({"a": 1, "brevity": 0.2}, prompt="words"),
        asked({"a": 1, "brevity": 1}, "rps", k=4),
        asked({"a": 1, "brevity": 1}, "rps", k=4, prompt="user"),
        {"strategy": "vote", "params": {"n": 4, "extractor": "text", "diverse": {"together": 2}}},
    ],
    ids=lambda search: search["strategy"],
)
async def test_prompts_under_an_instruction_are_counted_and_in_the_cost(
    client: AsyncOpenAI, sent: Sent, monkeypatch: pytest.MonkeyPatch, search: dict[str, Any]
) -> None:
    stated: list[Work] = []
    state = cost.work

    def remember(*args: Any) -> Work:
        stated.append(state(*args))
        return stated[-1]

    monkeypatch.setattr(cost, "work", remember)
    await chat(client, {"strategy": "best_of_n", "reward": "short", "params": {"n": 2}})
    [bare] = sent.prompts
    sent.prompts.clear()
    stated.clear()
    answer = await chat(client, search, n=1)
    instructed = [prompt for prompt in sent.prompts if prompt != bare]
    read = sum(map(len, instructed))
    by_rewards = 2 * told(answer)["sampled_tokens"] if search["strategy"] == "rps" else 0
    assert instructed
    assert told(answer)["scored_tokens"] == read + by_rewards
    assert len(stated) == 2, "before and after its prompt is known"
    assert all(read <= work.scored for work in stated)


@pytest.mark.parametrize("selection", ["argmax", "soft", "consensus"])
async def test_every_selection_answers(client: AsyncOpenAI, selection: str) -> None:
    answer = await chat(client, asked({"a": 1, "brevity": 1}, "rps", selection=selection))
    assert answer.choices[0].message.content
    assert ("votes" in told(answer)["choices"][0]) is (selection == "consensus")


async def test_a_neighbourhood_of_guides_needs_no_prompt(client: AsyncOpenAI) -> None:
    """Nor a chat: a bare prompt has no messages to instruct."""
    over = {**asked({"brevity": 1, "truth": 0}, "rps", over="guides"), "weights": {"brevity": 1}}
    answer = await client.completions.create(model="toy", prompt="assistant: ", seed=1, extra_body={"alignment": over})
    assert told(answer)["guides"] == {"base": 1.0, "arm": 1.0}
    with pytest.raises(openai.BadRequestError, match="needs a chat request"):
        await client.completions.create(model="toy", prompt="a", extra_body={"alignment": asked(UPRIGHT)})


ODD: list[tuple[Any, str, str]] = [
    ({"weights": {"a": 0, "brevity": 0.0}}, "weights", "all zero"),
    ({"weights": {}}, "weights", "is empty"),
    ({"weights": {"a": "1"}}, "weights.a", "must be a number in [-100, 100]; got '1'"),
    ({"weights": {"a": True}}, "weights.a", "must be a number"),
    ({"weights": {"a": 1e308}}, "weights.a", "must be a number in [-100, 100]"),
    ({"weights": {"b": 1}}, "weights.b", "unknown objective 'b'; valid: a, brevity, truth"),
    ({"weights": {"truth": 1}}, "weights.truth", "unknown objective of this preference prompt 'truth'; valid: a, b"),
    ({"weights": {"angle": 46}}, "weights", "'system' can ask for; valid: at most 45 degrees from {a: 1}"),
    ({"weights": {"a": -1}}, "weights", "outside of what preference prompt 'system'"),
    ({"weights": {"angle": "10"}}, "weights.angle", "must be a number in [-180, 180]; got '10'"),
    ({"weights": {"angle": 181}}, "weights.angle", "must be a number in [-180, 180]"),
    ({"weights": {"angle": 10, "a": 1}}, "weights.angle", "unknown objective 'angle'"),
    ({"weights": {"angle": 10}, "params": {"prompt": "words"}}, "weights.angle", "is for two objectives"),
    ({"params": {"prompt": "sytem"}}, "params.prompt", "valid: opposite, system, user, words. Did you mean 'system'?"),
    ({"params": {"prompt": 3}}, "params.prompt", "unknown preference prompt '3'"),
    ({"params": {"direction": {}}}, "params.direction", "unknown parameter 'direction'"),
    ({"guides": {"arn": 1}}, "guides.arn", "unknown guide 'arn'"),
]  # fmt: skip


@pytest.mark.parametrize("strategy", ["directional", "rps"])
@pytest.mark.parametrize(("more", "param", "message"), ODD)
async def test_odd_directions_are_refused(
    client: AsyncOpenAI, strategy: str, more: Any, param: str, message: str
) -> None:
    await refused(client, {**asked(UPRIGHT, strategy), **more}, f"alignment.{param}", message)


NEIGHBOURS: list[tuple[Any, str, str]] = [
    ({"params": {"k": 0}}, "params.k", "greater than or equal to 1"),
    ({"params": {"k": 129, "m": 2}}, "params.m", "k * m must be at most 256 on this server; got 258"),
    ({"params": {"theta_max": 181}}, "params.theta_max", "less than or equal to 180"),
    ({"params": {"theta_max": -1}}, "params.theta_max", "greater than or equal to 0"),
    ({"params": {"mode": "grid"}}, "params.mode", "'grid_relative'"),
    ({"params": {"selection": "best"}}, "params.selection", "'consensus'"),
    ({"params": {"lambda": 0}}, "params.lambda", "greater than 0"),
    ({"params": {"over": "guides"}}, "params", "objective 'a' has no guide on this server"),
    ({"params": {"over": "guides", "alpha": 101}, "weights": {"brevity": 1}},
     "params", "must lie in [-100, 100]"),
    ({"params": {"mode": "grid_relative", "k": 11, "theta_max": 10}}, None, "params.k must be at most 5"),
    ({"params": {"prompt": "words"}, "weights": {"a": 1}}, "weights", "objective 'truth' has no reward"),
    ({"reward": "letters.a"}, "reward", "chooses by alignment.weights"),
    ({"return": ["trace"]}, "return", "unknown return 'trace'; valid: best, candidates, progress, rewards"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "param", "message"), NEIGHBOURS)
async def test_odd_neighbourhoods_are_refused(client: AsyncOpenAI, more: Any, param: str | None, message: str) -> None:
    full = f"alignment.{param}" if param else None
    with pytest.raises(openai.BadRequestError) as caught:
        await chat(client, {**asked(UPRIGHT, "rps"), **more})
    assert caught.value.param == full
    assert message in caught.value.message


async def test_more_answers_than_candidates_are_refused(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="n=3 answers cannot be chosen from"):
        await chat(client, asked(UPRIGHT, "rps", k=2), n=3)


async def test_weights_are_needed(client: AsyncOpenAI) -> None:
    for strategy in ("directional", "rps"):
        await refused(client, {"strategy": strategy}, "alignment", f"strategy '{strategy}' needs alignment.weights")
