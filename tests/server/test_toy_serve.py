"""`trimtab serve --engine toy`, as a person starts it: the demo's whole HTTP surface, and no engine behind it."""

from __future__ import annotations

import httpx
import psutil
import pytest
from openai import OpenAI

from tests.server.conftest import Running

HI = [{"role": "user", "content": "How do I clean a copper pan?"}]


@pytest.fixture(scope="module")
def client(served_toy: Running) -> OpenAI:
    return OpenAI(base_url=f"{served_toy.url}/v1", api_key="none", max_retries=0)


def test_no_engine_was_started(served_toy: Running) -> None:
    assert not psutil.Process(served_toy.process.pid).children(recursive=True)


def test_guides_and_their_weights(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="trimtab-demo", messages=HI, seed=1, extra_body={"alignment": {"weights": {"warmth": 1.0}}}
    )
    told = answer.model_extra["alignment"]
    assert (told["strategy"], told["weights"]) == ("guided", {"warmth": 1.0})
    assert answer.usage is not None
    assert told["sampled_tokens"] == answer.usage.completion_tokens
    again = client.chat.completions.create(
        model="trimtab-demo", messages=HI, seed=1, extra_body={"alignment": {"weights": {"warmth": 1.0}}}
    )
    assert again.choices[0].message.content == answer.choices[0].message.content


def test_a_search_by_a_reward_model(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="trimtab-demo-best", messages=HI, seed=1)
    [choice] = answer.model_extra["alignment"]["choices"]
    assert -10 < choice["rewards"]["helpfulness"] < 10


def test_a_stream(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="trimtab-demo", messages=HI, seed=2, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert set(text) <= {"a", "b"}


def test_any_prompt_may_be_completed(client: OpenAI) -> None:
    answer = client.completions.create(model="trimtab-demo", prompt="Once upon a time", seed=1, max_tokens=4, n=3)
    assert len(answer.choices) == 3


def test_scores_and_weights_of_a_person(served_toy: Running) -> None:
    with httpx.Client(base_url=served_toy.url, timeout=30) as raw:
        scores = raw.post("/v1/alignment/score", json={"messages": HI, "responses": ["Rub it.", "No."]}).json()
        assert len(scores["scores"]) == 2
        pair = {"messages": HI, "chosen": "Rub it with lemon.", "rejected": "No."}
        weights = raw.post("/v1/alignment/infer", json={"comparisons": [pair]}).json()["weights"]
        assert set(weights) == {"helpfulness", "brevity", "warmth", "caution"}


def test_log_probs_are_refused_by_name(client: OpenAI) -> None:
    with pytest.raises(Exception, match="the toy engine gives no logprobs"):
        client.chat.completions.create(model="trimtab-demo", messages=HI, logprobs=True)
