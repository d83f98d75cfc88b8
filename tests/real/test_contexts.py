"""The real model with sliders that nobody trained: real/contexts.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

import pytest
from openai import OpenAI

from tests.server.conftest import ROOT, Running, serve, until_up
from trimtab.server.config import load

pytestmark = [pytest.mark.real, pytest.mark.engine]
CONFIG = ROOT / "real" / "contexts.yaml"
QUESTIONS = ["Why is the sky blue?", "How do I get a wine stain out of a shirt?", "What is a good gift for a cook?"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    yield from until_up(serve(CONFIG, tmp_path_factory.mktemp("contexts") / "log", key=""))


@pytest.fixture
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(client: OpenAI, text: str, *, system: str = "", **alignment: Any) -> Any:
    messages: list[Any] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    extra = {"alignment": alignment} if alignment else {}
    return client.chat.completions.create(
        model="smollm2", messages=messages, max_tokens=60, temperature=0, extra_body=extra
    )


def begin(answer: Any) -> str:
    """Some words, before bfloat16 may round two likeliest tokens to another order."""
    return " ".join(answer.choices[0].message.content.split()[:12])


@pytest.mark.parametrize("question", QUESTIONS)
def test_weight_one_is_the_system_prompt_and_zero_is_none(client: OpenAI, question: str) -> None:
    prompt = load(CONFIG).guides["brief-alone"].prompt or ""
    instructed = ask(client, question, system=prompt)
    assert begin(ask(client, question, guides={"brief-alone": 1})) == begin(instructed)
    plain = ask(client, question)
    assert begin(ask(client, question, guides={"brief-alone": 0})) == begin(plain)
    assert begin(plain) != begin(instructed)


def test_a_slider_shortens_answers(client: OpenAI) -> None:
    words = {
        weight: fmean(
            len(ask(client, question, weights={"brevity": weight}).choices[0].message.content.split())
            for question in QUESTIONS
        )
        for weight in (-1, 2)
    }
    assert words[2] < 0.7 * words[-1], words


def test_an_adapter_is_a_row(client: OpenAI) -> None:
    answer = ask(client, QUESTIONS[0], guides={"trained": 1.0}, prompts=[{"text": "You are kind.", "weight": 0.5}])
    told = answer.model_extra["alignment"]
    assert told["guides"] == {"base": 1, "trained": 1, "prompts[0]": 0.5}
    assert told["sampled_tokens"] == 3 * answer.usage.completion_tokens
