"""Weights that a person's choices, or the prompt, stand for, over HTTP on the toy engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai import AsyncOpenAI
from safetensors.numpy import save_file

from tests.server import toy_server
from tests.server.search.conftest import HI, Letters, chat, told
from trimtab.preferences.bradley_terry import infer_person
from trimtab.preferences.from_prompt import FILE
from trimtab.rewards.validated import ValidatedScorer
from trimtab.runtime.toy_engine import ToyEngine
from trimtab.server.config import Config, ConfigError

INFER = "/v1/alignment/infer"


def chosen(chosen: str, rejected: str) -> dict[str, Any]:
    return {"messages": HI, "chosen": chosen, "rejected": rejected}


async def found(raw: httpx.AsyncClient, **body: Any) -> Any:
    answer = await raw.post(INFER, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def rewards(text: str) -> np.ndarray:
    """Of objectives a and brevity, as the configuration standardises them."""
    return np.array([(text.count("a") - 1) / 2, -abs(len(text) - 1)])


async def test_choices_are_weighed_by_the_rewards_of_what_was_chosen(raw: httpx.AsyncClient) -> None:
    pairs = [("aab", "b"), ("aaa", "ab"), ("a", "bbb")]
    answer = await found(raw, comparisons=[chosen(*pair) for pair in pairs])
    differences = np.array([rewards(better) - rewards(worse) for better, worse in pairs])
    person = infer_person(differences, np.ones(3), mean_K=[0, 0], std=2.0)
    assert list(answer["weights"]) == ["a", "brevity"]
    assert list(answer["weights"].values()) == pytest.approx(list(person.direction))
    told = answer["coefficients"]
    assert [told[o]["mean"] for o in told] == pytest.approx(list(person.mean), rel=1e-6)
    assert [told[o]["std"] for o in told] == pytest.approx(list(np.sqrt(np.diag(person.covariance))), rel=1e-6)
    for name, (low, high) in answer["interval"].items():
        assert low < answer["weights"][name] < high
    assert answer["choices"] == 3
    assert answer["ask"] is None
    assert answer["warnings"] == []
    assert answer["scored_tokens"] == 2 * sum(len(text) + 1 for pair in pairs for text in pair), "each with its end"


async def test_edits_and_ratings_are_choices(raw: httpx.AsyncClient) -> None:
    compared = await found(raw, comparisons=[chosen("aa", "b")])
    edited = await found(raw, edits=[{"messages": HI, "before": "b", "after": "aa"}])
    rated = await found(
        raw,
        ratings=[{"messages": HI, "response": "aa", "rating": 4}, {"messages": HI, "response": "b", "rating": 3.5}],
    )
    assert edited["coefficients"] == compared["coefficients"] == rated["coefficients"]
    assert (edited["choices"], rated["choices"]) == (1, 1)
    alike = await found(raw, ratings=[{"messages": HI, "response": "aa", "rating": 4}])
    assert alike["choices"] == 0
    assert "nothing speaks for a direction" in alike["warnings"][0]
    assert list(alike["weights"].values()) == pytest.approx([0.5**0.5] * 2)


async def test_weights_go_into_the_next_request(raw: httpx.AsyncClient, client: AsyncOpenAI) -> None:
    answer = await found(raw, comparisons=[chosen("aaa", "bbb")] * 3, objectives=["a"])
    assert answer["weights"] == {"a": 1.0}
    best = await chat(client, {"strategy": "best_of_n", "weights": answer["weights"], "params": {"n": 4}})
    assert told(best)["weights"] == {"a": 1.0}


async def test_the_next_question_is_the_one_that_tells_most(raw: httpx.AsyncClient) -> None:
    candidates = [
        {"messages": HI, "responses": ["ab", "ab"]},
        {"messages": HI, "responses": ["aab", "bab", "aab"]},
        {"prompt": "assistant: ", "responses": ["b", "aaaab"]},
    ]
    answer = await found(raw, candidates=candidates)
    ask = answer["ask"]
    person = infer_person(np.zeros((0, 2)), [], mean_K=[0, 0], std=2.0)
    information = {
        (i, a, b): float(person.information((rewards(c["responses"][a]) - rewards(c["responses"][b]))[None])[0])
        for i, c in enumerate(candidates)
        for a in range(len(c["responses"]))
        for b in range(a + 1, len(c["responses"]))
    }
    assert (ask["candidate"], *ask["responses"]) == max(information, key=information.__getitem__)
    assert ask["information_nats"] == pytest.approx(max(information.values()))
    assert ask["first_preferred"] == pytest.approx(0.5)


async def test_what_is_thought_beforehand_counts(raw: httpx.AsyncClient) -> None:
    answer = await found(raw, prior={"mean": {"brevity": -1.5}, "std": 0.1})
    assert answer["weights"] == {"a": 0.0, "brevity": -1.0}
    assert answer["expected_cosine"] > 0.99


ODD: list[tuple[Any, str, str]] = [
    ({"comparison": []}, "comparison", "unknown key 'comparison'; valid: candidates, comparisons"),
    ({"comparisons": [{"messages": HI, "chosen": "a"}]}, "comparisons.0.rejected", "is required"),
    ({"comparisons": [{"chosen": "a", "rejected": "b"}]}, "comparisons.0.messages", "either messages or prompt"),
    ({"comparisons": [{**chosen("a", "b"), "prompt": "x"}]}, "comparisons.0.messages", "either messages or prompt"),
    ({"comparisons": [{**chosen("a", "b"), "chosn": "x"}]}, "comparisons.0.chosn", "Did you mean 'chosen'?"),
    ({"comparisons": [chosen("a", "b")] * 257}, "comparisons", "at most 256"),
    ({"comparisons": [{"messages": [{"role": "no", "content": 1}], "chosen": "a", "rejected": "b"}]},
     "messages.0.content", "must be a text"),
    ({"ratings": [{"messages": HI, "response": "a", "rating": "4"}]}, "ratings.0.rating", "valid number; got '4'"),
    ({"candidates": [{"messages": HI, "responses": ["a"]}]}, "candidates.0.responses", "at least 2 items"),
    ({"candidates": [{"prompt": f"{i}", "responses": [f"a{j}" for j in range(32)]} for i in range(33)]}, "candidates",
     "may hold 1024 different answers; this one has 1056"),
    ({"prior": {"std": 0}}, "prior.std", "greater than 0"),
    ({"prior": {"mean": {"a": 1e9}}}, "prior.mean.a", "must lie in [-1000, 1000]"),
    ({"prior": {"mean": {"b": 1}}}, "prior.mean.b", "unknown objective 'b'; valid: a, brevity"),
    ({"objectives": ["truth"]}, "objectives", "unknown objective with a reward 'truth'; valid: a, brevity"),
    ({"objectives": []}, "objectives", "at least 1 item"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param", "message"), ODD)
async def test_odd_choices_are_refused(raw: httpx.AsyncClient, body: Any, param: str, message: str) -> None:
    answer = await raw.post(INFER, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert message in error["message"]


# Weights by the prompt.


@pytest.fixture(scope="module")
def adapter(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Who says "z" wants brevity, everybody else the letter."""
    folder = tmp_path_factory.mktemp("adapter")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.base)
    table = np.zeros((len(tokenizer), 2), np.float32)
    [z] = tokenizer.encode("z", add_special_tokens=False)
    table[z] = [0, 20]
    tensors = {"table": table, "bias": np.array([4, 0], np.float32)}
    save_file(tensors, folder / FILE, metadata={"objectives": json.dumps(["a", "brevity"])})
    return folder


@pytest.fixture(scope="module")
async def choosing(config: Config, toy: ToyEngine, adapter: Path) -> AsyncIterator[AsyncOpenAI]:
    presets = {"toy-auto": {"strategy": "best_of_n", "weights": "auto", "params": {"n": 4}}}
    with_adapter = config.model_copy(update={"auto_weights": str(adapter), "presets": presets})
    app = await toy_server.serve(
        with_adapter, toy, scorers={"letters": ValidatedScorer(scorer=Letters(), name="letters", timeout=60)}
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toy") as transport:
        yield AsyncOpenAI(base_url="http://toy/v1", api_key="none", http_client=transport)


async def test_the_prompt_chooses_the_weights(choosing: AsyncOpenAI) -> None:
    for words, winner in (("hi", "a"), ("zzz", "brevity")):
        messages: Any = [{"role": "user", "content": "zz"}, {"role": "assistant", "content": "a"},
                         {"role": "user", "content": words}]  # fmt: skip
        asked = {"strategy": "best_of_n", "weights": "auto", "params": {"n": 4}}
        auto = await chat(choosing, asked, messages=messages)
        weights = told(auto)["weights"]
        wordless = await chat(choosing, asked, messages=[*messages, {"role": "user", "content": ""}])
        assert told(wordless)["weights"] == weights, "the user's last words"
        assert told(auto)["auto_weights"] is True
        assert sum(weights.values()) == pytest.approx(1)
        assert max(weights, key=weights.__getitem__) == winner
        by_hand = await chat(choosing, {**asked, "weights": weights}, messages=messages)
        assert by_hand.choices == auto.choices
        assert "auto_weights" not in told(by_hand)


async def test_a_preset_may_leave_the_weights_to_the_prompt(choosing: AsyncOpenAI) -> None:
    answer = await choosing.chat.completions.create(model="toy-auto", messages=HI, seed=1)
    assert told(answer)["weights"]["a"] > 0.9
    bare = await choosing.completions.create(model="toy-auto", prompt="zzzzzzzzassistant: ", seed=1)
    assert told(bare)["weights"]["brevity"] > 0.5


async def test_a_prompt_without_words_is_refused(choosing: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="need words to go by"):
        await choosing.completions.create(model="toy-auto", prompt=[1, 2])


async def test_a_server_without_an_adapter_says_so(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="this server has no auto_weights: name objectives"):
        await chat(client, {"strategy": "best_of_n", "weights": "auto"})
    with pytest.raises(openai.BadRequestError, match=r"alignment\.weights"):
        await chat(client, {"strategy": "best_of_n", "weights": "atuo"})


async def test_an_adapter_that_does_not_fit_is_refused_at_start(config: Config, toy: ToyEngine, tmp_path: Path) -> None:
    def adapter(name: str, objectives: list[str], rows: int) -> Config:
        (tmp_path / name).mkdir()
        tensors = {
            "table": np.zeros((rows, len(objectives)), np.float32),
            "bias": np.zeros(len(objectives), np.float32),
        }
        save_file(tensors, tmp_path / name / FILE, metadata={"objectives": json.dumps(objectives)})
        return config.model_copy(update={"auto_weights": str(tmp_path / name)})

    with pytest.raises(ConfigError, match="auto_weights: its table is for 3 tokens; the base has"):
        await toy_server.serve(adapter("small", ["a"], 3), toy)
    with pytest.raises(ConfigError, match="auto_weights: unknown objective 'c'; valid: a, brevity, truth"):
        await toy_server.serve(adapter("other", ["c"], 1000), toy)
