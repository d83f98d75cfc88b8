"""The real model, as `make real` serves it: answers that a model of templates or of noise does not give.

`make test-real` runs these; they are no part of `make test`, for the model is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.server.conftest import ROOT, Running, serve, until_up
from trimtab.server.config import load
from trimtab.server.engines import check_start
from trimtab.server.request.plan import check_config

pytestmark = [pytest.mark.real, pytest.mark.engine]
CONFIG = ROOT / "real" / "config.yaml"
BASE = (ROOT / "out" / "real" / "base").resolve()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    yield from until_up(serve(CONFIG, tmp_path_factory.mktemp("real") / "log", key=""))


@pytest.fixture
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(client: OpenAI, text: str, **more: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(**{"model": "smollm2", "messages": messages, "max_tokens": 120, **more})


def test_the_configuration_has_nothing_wrong() -> None:
    lines = list(check_start(load(CONFIG, check=check_config)))
    assert any(line.startswith(f"base {BASE} (LlamaForCausalLM") for line in lines)
    assert not any("no chat template" in line for line in lines)


def test_its_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    marks = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    assert {mark: tokenizer.encode(mark) for mark in marks} == {mark: [index] for mark, index in marks.items()}
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    for text in ("naïve 日本語 🙂\n\n\t 12½", " a  b\r\n", (ROOT / "README.md").read_text()):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.tokenize("in 2024:\n\n1. a") == ["in", "Ġ", "2", "0", "2", "4", ":", "ĊĊ", "1", ".", "Ġa"]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False).endswith(
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )


def test_it_knows_a_capital(client: OpenAI) -> None:
    after = client.completions.create(model="smollm2", prompt="The capital of France is", max_tokens=3, temperature=0)
    assert after.choices[0].text.startswith(" Paris")
    answer = ask(client, "What is the capital of Japan?", temperature=0)
    assert "Tokyo" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop", "it does not end its turn"


RIGHT_AND_WRONG = [
    ("The capital of France is", " Paris.", " London."),
    ("Two plus two is", " four.", " seven."),
    ("Fire is hot and ice is", " cold.", " loud."),
    ("The opposite of up is", " down.", " green."),
    ("She opened her umbrella because of the", " rain.", " spoon."),
    ("The sun rises in the", " east.", " shoe."),
    ("Bees make", " honey.", " steel."),
    ("A week has seven", " days.", " dogs."),
]


def likelihood(client: OpenAI, prompt: str, text: str) -> float:
    """log p(text | prompt)"""
    echo = client.completions.create(model="smollm2", prompt=prompt + text, max_tokens=1, echo=True, logprobs=0)
    logprobs = echo.choices[0].logprobs
    assert logprobs is not None
    start, stop = len(prompt), len(prompt + text)
    return sum(
        value
        for value, place in zip(logprobs.token_logprobs or (), logprobs.text_offset or (), strict=True)
        if start <= place < stop
    )


def test_what_is_true_is_likelier(client: OpenAI) -> None:
    gains = {right: likelihood(client, p, right) - likelihood(client, p, wrong) for p, right, wrong in RIGHT_AND_WRONG}
    assert min(gains.values()) > 0, gains


def test_its_answers_are_english(client: OpenAI) -> None:
    text = ask(client, "Give me three tips for sleeping well.", seed=1, temperature=0.7).choices[0].message.content
    words = re.findall(r"[a-z']+", text.lower())
    common = {
        "the",
        "a",
        "and",
        "to",
        "of",
        "your",
        "you",
        "for",
        "in",
        "that",
        "is",
        "it",
        "can",
        "or",
        "before",
        "be",
    }
    assert len(words) > 30
    assert sum(word in common for word in words) > len(words) / 5, text
    assert "sleep" in words


def test_the_best_of_some(client: OpenAI) -> None:
    wish = {"strategy": "best_of_n", "params": {"n": 4}, "reward": "concise", "return": ["candidates"]}
    answer = ask(client, "Why is the sky blue?", seed=2, extra_body={"alignment": wish})
    [choice] = answer.model_extra["alignment"]["choices"]
    beyond = [max(len(candidate["text"].split()) - 40, 0) for candidate in choice["candidates"]]
    assert len(set(beyond)) > 1, "nothing to choose"
    assert max(len(answer.choices[0].message.content.split()) - 40, 0) == min(beyond)


def test_the_best_of_some_is_what_the_reward_model_prefers(client: OpenAI, server: Running) -> None:
    question = "How do I get a wine stain out of a shirt?"
    wish = {"strategy": "best_of_n", "params": {"n": 4}, "weights": {"preference": 1.0}, "return": ["candidates"]}
    answer = ask(client, question, seed=3, max_tokens=48, extra_body={"alignment": wish})
    texts = [candidate["text"] for candidate in answer.model_extra["alignment"]["choices"][0]["candidates"]]
    body = {"messages": [{"role": "user", "content": question}], "responses": texts, "reward": "preferred"}
    reply = httpx.post(f"{server.url}/v1/alignment/score", json={**body, "finished": False}, timeout=180)
    assert reply.status_code == 200, reply.text
    scores = {text: row["value"] for text, row in zip(texts, reply.json()["scores"], strict=True)}
    assert max(scores.values()) > min(scores.values()), "nothing to choose"
    rounding = 0.2  # of bfloat16, from batch to batch
    assert scores[answer.choices[0].message.content] > max(scores.values()) - rounding


@pytest.mark.parametrize(
    ("reward", "folder"),
    [("preferred", "rewards/preferred"), ("judge", "rewards/judge"), ("foretold", "values/preferred")],
)
def test_a_reward_model_says_what_it_says_without_trimtab(server: Running, reward: str, folder: str) -> None:
    """By transformers and PEFT, in float32: whole turns, which a value head reads without their end."""
    plain = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=1, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, CONFIG.parent / folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(CONFIG.parent / folder)
    asked = [{"role": "user", "content": "How do I get a wine stain out of a shirt?"}]
    texts = ["Blot it with a cloth, then wash it in cold water with a little salt.", "No.", "I would cut it into"]
    expected = []
    for text in texts:
        whole = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": text}], tokenize=False)
        ids = tokenizer(whole.removesuffix("<|im_end|>\n") if reward == "foretold" else whole)["input_ids"]
        with torch.inference_mode():
            expected.append(model(input_ids=torch.tensor([ids])).logits.item())
    body = {"messages": asked, "responses": texts, "reward": reward}
    reply = httpx.post(f"{server.url}/v1/alignment/score", json=body, timeout=180)
    assert reply.status_code == 200, reply.text
    rounding = 0.3  # of bfloat16; without the newline behind the end of turn scores differ by 2
    assert [row["value"] for row in reply.json()["scores"]] == pytest.approx(expected, abs=rounding)


@pytest.mark.parametrize("guide", ["helpful", "harmless", "brief"])
def test_a_guide_at_nothing_is_the_base_and_moves_it_otherwise(client: OpenAI, guide: str) -> None:
    question, wish = "How do I stay warm in winter?", {"seed": 5, "max_tokens": 24, "temperature": 0}
    plain = ask(client, question, **wish).choices[0].message.content
    none = ask(client, question, **wish, extra_body={"alignment": {"guides": {guide: 0.0}}})
    assert none.choices[0].message.content == plain
    alignment = {"guides": {guide: 2.0}, "return": ["trace"]}
    pulled = ask(client, question, **wish, extra_body={"alignment": alignment})
    [choice] = pulled.model_extra["alignment"]["choices"]
    assert sum(choice["trace"]["kl_exact"]) > 0.1


def test_a_stream_is_what_is_answered_at_once(client: OpenAI) -> None:
    wish: dict[str, Any] = {"temperature": 0, "max_tokens": 40}
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in ask(client, "Name three colours.", stream=True, **wish)
        if chunk.choices
    ]
    assert len(pieces) > 5
    assert "".join(pieces) == ask(client, "Name three colours.", **wish).choices[0].message.content


def test_an_instruction_is_a_reward(server: Running) -> None:
    """`kind-words` prefers what a kind assistant says, without any training."""
    pairs = {
        "I failed my exam.": (
            "I'm so sorry to hear that. You worked hard, and I know that you can do it next time!",
            "That is your fault. You are lazy and will fail again.",
        ),
        "I have a new job.": (
            "Congratulations! I am so happy for you, and you will do great.",
            "So what. You will lose it soon.",
        ),
        "My dog died.": (
            "I'm so sorry for your loss. Be gentle with yourself.",
            "It was only a dog. Stop whining.",
        ),
    }
    for said, answers in pairs.items():
        body = {
            "messages": [{"role": "user", "content": said}],
            "responses": list(answers),
            "reward": "kind-words",
        }
        reply = httpx.post(f"{server.url}/v1/alignment/score", json=body, timeout=180)
        assert reply.status_code == 200, reply.text
        kind, unkind = (row["value"] for row in reply.json()["scores"])
        assert kind > unkind, said
