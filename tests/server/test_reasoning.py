"""A model that thinks and calls tools, on real vLLM: tiny, random, and held to a grammar so that it says something."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from openai import OpenAI
from transformers import AutoTokenizer

from tests.engine import family
from tests.server.conftest import KEY, Running, serve, until_up

HI: list[Any] = [{"role": "user", "content": "hi"}]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if tools %}{% for t in tools %}{{ t['function']['name'] }}\n{% endfor %}{% endif %}"
    "{% if add_generation_prompt %}assistant: {% if think %}<think>{% endif %}{% endif %}"
)
"""`think` opens the thoughts in the prompt."""
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}},
    }
]
WHOLE_MARKS = {str(family.VOCABULARY.index("<")): -100}
"""Marks as the tokens that they are, which a stream is read by, and not letter by letter."""


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder = tmp_path_factory.mktemp("thinker")
    base = family.base(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>"])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    engine = {
        **{"dtype": "float32", "max_model_len": family.POSITIONS, "enforce_eager": True, "max_num_seqs": 16},
        **{"kv_cache_memory_bytes": 64 << 20, "reasoning_parser": "deepseek_r1", "tool_call_parser": "hermes"},
        **{"enable_auto_tool_choice": True, "structured_outputs_config": {"enable_in_reasoning": True}},
    }
    rewards = {"short": {"kind": "length", "unit": "characters", "target": 4}}
    path = folder / "config.yaml"
    path.write_text(
        yaml.safe_dump({"base": str(base), "name": "thinker", "rewards": rewards, "engine": engine, "api_keys": [KEY]})
    )
    for running in until_up(serve(path, folder / "log")):
        yield client_of(running)


def client_of(running: Running) -> OpenAI:
    return OpenAI(base_url=f"{running.url}/v1", api_key=KEY)


@pytest.mark.engine
@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("strategy", ["best_of_n", "mbr"])
def test_searches_go_by_the_answer(thinker: OpenAI, strategy: str, opened: bool) -> None:
    wish: dict[str, Any] = {"strategy": strategy, "params": {"n": 6}, "return": ["candidates"]}
    wish |= {} if strategy == "mbr" else {"reward": "short"}
    mark = "" if opened else "<think>"
    answer = thinker.chat.completions.create(
        model="thinker",
        messages=HI,
        max_tokens=60,
        seed=4,
        logit_bias=WHOLE_MARKS,
        extra_body={
            "alignment": wish,
            "chat_template_kwargs": {"think": opened},
            "structured_outputs": {"regex": f"{mark}[a-z]{{6,12}}</think>[a-z]{{1,9}}"},
        },
    )
    message, [choice] = answer.choices[0].message, answer.model_extra["alignment"]["choices"]  # type: ignore[index]
    assert len(choice["candidates"]) == 6
    for candidate in choice["candidates"]:
        assert re.fullmatch("[a-z]{1,9}", candidate["text"]), candidate
        assert re.fullmatch("[a-z]{6,12}", candidate["thoughts"]), candidate
        if strategy != "mbr":
            assert candidate["value"] == pytest.approx(-abs(len(candidate["text"]) - 4) / 4)
    chosen = choice["candidates"][choice["candidate"]]
    assert (message.content, message.reasoning) == (chosen["text"], chosen["thoughts"])  # type: ignore[attr-defined]
    if strategy == "best_of_n":
        assert chosen["value"] == max(candidate["value"] for candidate in choice["candidates"])


@pytest.mark.engine
@pytest.mark.parametrize("stream", [False, True])
def test_votes_go_by_the_call(thinker: OpenAI, stream: bool) -> None:
    call = r"<tool_call>\{\"name\": \"f\", \"arguments\": \{\"x\": [1-2]\}\}</tool_call>"
    body: dict[str, Any] = {
        "alignment": {"strategy": "vote", "params": {"n": 7, "extractor": "tool_call"}, "return": ["candidates"]},
        "structured_outputs": {"regex": f"<think>[a-z]{{6,12}}</think>{call}"},
    }
    body |= {"logit_bias": WHOLE_MARKS}
    asked: dict[str, Any] = {"model": "thinker", "messages": HI, "max_tokens": 120, "seed": 4, "tools": TOOLS}
    name = arguments = ""
    if stream:
        for event in thinker.chat.completions.create(**asked, stream=True, extra_body=body):
            alignment = (event.model_extra or {}).get("alignment")
            for part in event.choices[0].delta.tool_calls or () if event.choices else ():
                name += part.function.name or ""
                arguments += part.function.arguments or ""
    else:
        answer = thinker.chat.completions.create(**asked, extra_body=body)
        [made] = answer.choices[0].message.tool_calls or []
        name, arguments = made.function.name, made.function.arguments
        alignment = (answer.model_extra or {})["alignment"]
    [choice] = alignment["choices"]
    drawn = [json.loads(c["tool_calls"][0]["arguments"])["x"] for c in choice["candidates"]]
    assert choice["extracted"] == len(drawn) == 7
    winner = json.loads(arguments)["x"]
    assert name == "f"
    assert drawn.count(winner) == choice["votes"] == max(map(drawn.count, drawn))
    assert json.loads(choice["answer"]) == {"name": "f", "arguments": {"x": winner}}
