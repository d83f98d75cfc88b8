"""What a response says of its choices: each of its own prompt, of how it ended, and of what its rewards could tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from tests.server import toy_server
from tests.server.search.conftest import HI, Letters, best, chat, refused, told
from trimtab.rewards.protocols import Question, Response, RewardError
from trimtab.rewards.validated import ValidatedScorer
from trimtab.runtime.toy_engine import ToyEngine
from trimtab.server.config import Config

ENDED_BY_TOKEN: dict[str, dict[str, Any]] = {
    "args": {"strategy": "args", "weights": {"a": 1.0}, "params": {"k": 3}},
    "transfer_q": {"strategy": "transfer_q", "weights": {"a": 1.0}, "params": {"k": 3, "rollouts": 2}},
    "diverse": best() | {"params": {"n": 4, "diverse": {"groups": 2, "penalty": 0.5}}},
    "beam": {"strategy": "beam", "weights": {"a": 1.0}, "params": {"n": 4, "width": 2, "block": 1}},
    "speculative_rejection": {
        "strategy": "speculative_rejection",
        "weights": {"a": 1.0},
        "params": {"n": 6, "decisions": [1, 2]},
    },
    "qalign": {"strategy": "qalign", "weights": {"a": 1.0}, "params": {"chains": 2, "steps": 4}},
}


@pytest.mark.parametrize("name", ENDED_BY_TOKEN)
async def test_a_stop_token_ends_an_answer_whoever_draws_it(client: AsyncOpenAI, toy: ToyEngine, name: str) -> None:
    b, stopped = toy.model.vocab[1], 0
    for seed in range(8):
        body = {"alignment": ENDED_BY_TOKEN[name], "stop_token_ids": [b]}
        answer = await client.chat.completions.create(model="toy", messages=HI, seed=seed, extra_body=body)
        [choice] = answer.choices
        assert "b" not in choice.message.content
        if (reason := choice.model_extra["stop_reason"]) is not None:
            assert (choice.finish_reason, reason) == ("stop", b)
            stopped += 1
    assert stopped


async def test_several_answers_in_one_cannot_end_at_a_token(raw: httpx.AsyncClient) -> None:
    alignment = best(n=4) | {"params": {"n": 4, "diverse": {"together": 2}}}
    body = {"model": "toy", "messages": HI, "alignment": alignment, "stop_token_ids": [5]}
    answer = await raw.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "params.diverse cannot be combined with stop_token_ids" in answer.json()["error"]["message"]


async def test_each_choice_is_of_its_own_prompt(client: AsyncOpenAI) -> None:
    prompts = ["user: x\nassistant: ", "user: y\nassistant: a"]
    alignment = best(n=4, **{"return": ["candidates", "rewards"]})
    answer = await client.completions.create(
        model="toy", prompt=prompts, n=2, seed=1, extra_body={"alignment": alignment}
    )
    choices = told(answer)["choices"]
    assert [choice["index"] for choice in choices] == [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for prompt, first in ((prompts[0], 0), (prompts[1], 2)):
        alone = await client.completions.create(
            model="toy", prompt=prompt, n=2, seed=1, extra_body={"alignment": alignment}
        )
        for i, choice in enumerate(told(alone)["choices"]):
            assert choices[first + i] == choice | {"index": first + i}
            assert answer.choices[first + i].text == alone.choices[i].text
            assert choices[first + i]["rewards"]["a"] == answer.choices[first + i].text.count("a")
        pool = choices[first]["candidates"]
        assert [pool[choices[first + i]["candidate"]]["text"] for i in range(2)] == [
            answer.choices[first + i].text for i in range(2)
        ]


async def test_a_reward_that_tells_nothing_apart_says_so(config: Config, toy: ToyEngine) -> None:
    """Each by its own name, whatever others it is weighed with."""
    alike, letters = Letters("alike", labels=("a",)), Letters()
    scorers = {"short": ValidatedScorer(scorer=alike, name="short", timeout=60)}
    scorers["letters"] = ValidatedScorer(scorer=letters, name="letters", timeout=60)
    app = await toy_server.serve(config, toy, scorers=scorers)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toy") as transport:
        client = AsyncOpenAI(base_url="http://toy/v1", api_key="none", http_client=transport, max_retries=0)
        both = {"of": {"short": 1.0, "letters.a": 1.0}}
        answer = await chat(client, {"strategy": "best_of_n", "reward": both, "params": {"n": 8}})
        [warning] = told(answer)["warnings"]
        assert warning.startswith("reward 'short' gave all ")
        assert warning.endswith(" answers that it read the same score, 0.5")
        alone = await chat(client, {"strategy": "best_of_n", "reward": "short", "params": {"n": 1}})
        assert "warnings" not in told(alone), "one answer cannot be told from others"
        assert "warnings" not in told(await chat(client, best()))


async def test_an_angle_without_a_preference_prompt_is_refused(client: AsyncOpenAI) -> None:
    wish = {"strategy": "rps", "weights": {"angle": 10}, "params": {"over": "guides"}}
    await refused(client, wish, "alignment.weights.angle", "two objectives of a preference prompt")


@pytest.mark.parametrize(
    "alignment",
    [
        {"strategy": "guided", "guides": {"base": 0}, "return": ["trace"]},
        {"strategy": "guided", "guides": {"base": 0, "arm": 0}, "return": ["trace"]},
        {"strategy": "mod", "guides": {"base": 0}, "return": ["trace"]},
        {"strategy": "best_of_n", "weights": {"a": 1}, "guides": {"base": 0}},
    ],
)
async def test_a_mixture_of_nothing_is_refused(client: AsyncOpenAI, alignment: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match="guides"):
        await chat(client, alignment)


async def test_a_choice_says_whether_it_was_answered_plainly(config: Config, toy: ToyEngine) -> None:
    class Picky(Letters):
        async def __call__(self, question: Question, responses: Sequence[Response]) -> list[list[float]]:
            if "y" in question.messages[0]["content"]:
                raise RewardError("no score for this one")
            return await super().__call__(question, responses)

    picky = ValidatedScorer(scorer=Picky(), name="letters", timeout=60)
    app = await toy_server.serve(config, toy, scorers={"letters": picky})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toy") as transport:
        client = AsyncOpenAI(base_url="http://toy/v1", api_key="none", http_client=transport, max_retries=0)
        body = {"alignment": best(on_error="degrade")}
        answer = await client.completions.create(
            model="toy", prompt=["x\nassistant: ", "y\nassistant: "], seed=1, extra_body=body
        )
        assert told(answer)["outcome"] == "degraded"
        first, second = told(answer)["choices"]
        assert first["value"] is not None
        assert second == {"index": 1, "degraded": True}
