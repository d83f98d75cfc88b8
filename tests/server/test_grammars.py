"""Grammars that answers must follow, from every field that brings one, and calls of tools."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.server.conftest import KEY, Running
from tests.waiting import PATIENCE

HI: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": CITY}}


def bodies(schema: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """where a schema is written -> path and body"""
    wish = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    strict = {"type": "function", "function": {"name": "weather", "strict": True, "parameters": schema}}
    tag = {
        "type": "structural_tag",
        "structures": [{"begin": "<a>", "schema": schema, "end": "</a>"}],
        "triggers": ["<a"],
    }
    search = {"strategy": "best_of_n", "reward": "concise", "params": {"n": 2}}
    chat = {"messages": HI, "max_tokens": 40}
    return {
        "response_format": (CHAT, {**chat, "response_format": wish}),
        "response_format in a stream": (CHAT, {**chat, "response_format": wish, "stream": True}),
        "response_format of a search": (CHAT, {**chat, "response_format": wish, "alignment": search}),
        "structured_outputs": (CHAT, {**chat, "structured_outputs": {"json": schema}}),
        "structured_outputs as text": (CHAT, {**chat, "structured_outputs": {"json": json.dumps(schema)}}),
        "structural tag": (CHAT, {**chat, "response_format": tag}),
        "strict tool": (CHAT, {**chat, "tools": [strict]}),
        "completions": (COMPLETIONS, {"prompt": "x", "max_tokens": 40, "structured_outputs": {"json": schema}}),
        "responses": (
            RESPONSES,
            {"input": "x", "max_output_tokens": 40, "text": {"format": wish["json_schema"] | {"type": "json_schema"}}},
        ),
        "messages": (
            MESSAGES,
            {**chat, "output_config": {"format": {"type": "json_schema", "schema": schema}}},
        ),
    }


FIELDS = list(bodies({}))
REFUSED = {
    "too long": ({"enum": [f"value {i}" for i in range(100_000)]}, "limits.max_schema_bytes"),
    "too many": ({"enum": [f"v{i}" for i in range(1001)]}, "limits.max_schema_entries"),
    "itself": ({"$ref": "#"}, "leads back to itself"),
    "nowhere": ({"$ref": "#/$defs/x"}, "leads nowhere"),
}


def post(running: Running, path: str, body: dict[str, Any]) -> httpx.Response:
    headers = {"authorization": f"Bearer {KEY}"}
    return httpx.post(f"{running.url}{path}", json={"model": "trimtab-demo", **body}, headers=headers, timeout=120)


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("field", FIELDS)
def test_a_schema_that_cannot_be_is_a_400_wherever_it_stands(served_toy: Running, field: str, kind: str) -> None:
    schema, message = REFUSED[kind]
    answer = post(served_toy, *bodies(schema)[field])
    assert answer.status_code == 400, answer.text[:500]
    if field != "structural tag":  # some of which vLLM's request model refuses in its own words
        assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"regex": "a" * 1025}, "structured_outputs.regex has 1025 characters"),
        ({"choice": ["a"] * 1001}, "structured_outputs.choice has 1001 entries"),
        ({"grammar": "root ::= " + '"a" | ' * 30_000 + '"a"'}, "limits.max_schema_bytes"),
    ],
)
def test_other_grammars_are_bounded_too(served_toy: Running, wanted: dict[str, Any], message: str) -> None:
    answer = post(served_toy, CHAT, {"messages": HI, "structured_outputs": wanted})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize("choice", ["auto", "required", "none", {"type": "function", "function": {"name": "weather"}}])
def test_the_demo_takes_tools(served_toy: Running, choice: Any) -> None:
    """As Instructor and LangChain send them: a 200, and not advice on how to start the server."""
    client = OpenAI(base_url=f"{served_toy.url}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(model="trimtab-demo", messages=HI, tools=[TOOL], tool_choice=choice)
    assert len(answer.choices) == 1
    called = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]
    history = [*HI, {"role": "assistant", "content": None, "tool_calls": called}]
    history.append({"role": "tool", "tool_call_id": "c1", "content": "sunny"})
    answer = client.chat.completions.create(model="trimtab-demo", messages=history, tools=[TOOL])
    assert len(answer.choices) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_that_must_be_called_is(server: Running, choice: Any, stream: bool) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
    tool = {**TOOL, "function": {**TOOL["function"], "strict": True}}
    request: dict[str, Any] = {"model": "trimtab-demo", "messages": HI, "tools": [tool], "tool_choice": choice}
    request |= {"max_tokens": 400, "temperature": 0, "frequency_penalty": 2}  # white space is valid JSON for ever
    if stream:
        with client.chat.completions.stream(**request) as events:
            message = events.get_final_completion().choices[0].message
    else:
        message = client.chat.completions.create(**request).choices[0].message
    assert message.tool_calls, message
    call: Any = message.tool_calls[0]
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_a_schema_at_the_limits_leaves_others_alone(server: Running) -> None:
    """The largest that are let in, all at a time: each is compiled and followed within seconds, beside a chat."""
    largest = [
        {"enum": [f"{i:03} {'x' * 100}" for i in range(1000)]},
        {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(1000)}},
        {"anyOf": [{"type": "array", "items": {"const": i}} for i in range(1000)]},
        {"type": "object", "properties": {"a": {"type": "array", "items": {"enum": list(range(1000))}}}},
    ]
    rules = "root ::= " + " | ".join(f"r{i}" for i in range(999)) + "\n"
    rules += "".join(f'r{i} ::= "v{i}" root?\n' for i in range(999))
    chain = "".join(f"{'root' if i == 0 else f'r{i}'} ::= r{i + 1} r{i + 1}\n" for i in range(999)) + 'r999 ::= "a"'
    wanted = [*({"json": schema} for schema in largest), {"grammar": rules}, {"grammar": chain}]
    chat = {"messages": HI, "max_tokens": 8, "temperature": 0}
    assert post(server, CHAT, chat).status_code == 200

    def ask(grammar: Any) -> httpx.Response:
        return post(server, CHAT, {"messages": HI, "max_tokens": 20, "structured_outputs": grammar})

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, grammar) for grammar in wanted]
        began = time.monotonic()
        assert post(server, CHAT, chat).status_code == 200
        beside = time.monotonic() - began
        small = post(server, CHAT, {**chat, "structured_outputs": {"choice": ["yes", "no"]}})
        took = time.monotonic() - began
        statuses = [answer.result().status_code for answer in answers]
    assert statuses == [200] * 6
    assert small.json()["choices"][0]["message"]["content"] in ("yes", "no")
    assert max(beside, took) < PATIENCE


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"$ref": "#/$defs/x"}])
def test_a_reference_is_a_400_on_an_engine_too(server: Running, schema: Any) -> None:
    assert post(server, CHAT, {"messages": HI, "structured_outputs": {"json": schema}}).status_code == 400
    answer = post(server, CHAT, {"messages": HI, "max_tokens": 8, "structured_outputs": {"choice": ["yes", "no"]}})
    assert answer.status_code == 200
