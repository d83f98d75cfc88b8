"""Tool calls in a search's answer: streamed and not, for every tool parser of vLLM's, on every path that has tools."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer
from vllm.tool_parsers import ToolParserManager

from tests.server import toy_server
from tests.server.author import Author, learn_words
from tests.server.tools.formats import FORMATS, MARKS, MORE_TOKENS, TEMPLATE, Call
from trimtab.server.config import Config

ELSEWHERE = {
    "openai": "gpt-oss alone is read by it, whatever the configuration says, with an encoding that is downloaded",
    "cohere_command3": "needs the package cohere_melody",
    "cohere_command4": "needs the package cohere_melody",
}
"""Parsers that cannot be tried here, and why."""

CASES: dict[str, list[Call]] = {
    "words": [("get_weather", {"city": "Paris, 18e", "unit": "celsius"})],
    "a number": [("get_weather", {"city": "Paris", "days": 3})],
    "two calls": [("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Zürich"})],
}

LONE = ("gigachat3", "internlm")
"""Whose format has one call an answer."""

FAULTS: dict[str, tuple[tuple[str, ...], str]] = {
    "functiongemma": (("words", "a number"), "closes the arguments' object behind each argument, and goes on"),
    "hunyuan_a13b": (tuple(CASES), "its opening mark goes to the client as content"),
    "jamba": (("a number",), "the quote that ends a string is lost where a number follows"),
    "phi4_mini_json": (tuple(CASES), "does not stream: it gives nothing, whatever comes"),
}
"""Parsers of vLLM's that read a stream of single tokens otherwise than the whole text: in which cases, and how."""

REPORTED = ("llama3_json", "jamba", "glm45", "granite", "internlm", "xlam")
"""These are tried in the fast lane too."""

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
SAY: list[Any] = [{"role": "user", "content": "weather?"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": SAY,
        "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}],
    },
    "/v1/responses": {
        "input": "weather?",
        "tools": [{"type": "function", "name": "get_weather", "parameters": SCHEMA}],
    },
    "/v1/messages": {
        "messages": SAY,
        "max_tokens": 900,
        "tools": [{"name": "get_weather", "input_schema": SCHEMA}],
    },
}


async def serve(folder: Path, parser: str) -> tuple[httpx.AsyncClient, Author]:
    base = toy_server.checkpoint(folder)
    tokenizer = learn_words(write(calls) for write in FORMATS.values() for calls in CASES.values())
    marks = dict.fromkeys(re.findall(MARKS, "".join(map(FORMATS[parser], CASES.values()))))
    tokenizer.add_tokens([*marks, *MORE_TOKENS.get(parser, ())], special_tokens=parser not in TEXTUAL)
    tokenizer.save_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"vocab_size": len(tokenizer)}))
    if parser == "hf":
        settings = json.loads((base / "tokenizer_config.json").read_text())
        (base / "tokenizer_config.json").write_text(json.dumps(settings | {"response_template": TEMPLATE}))
    engine = {"dtype": "float32", "max_model_len": 1024, "enable_auto_tool_choice": True, "tool_call_parser": parser}
    rewards = {"short": {"kind": "length", "unit": "characters", "target": 20}}
    served = Config.model_validate({"base": str(base), "name": "toy", "rewards": rewards, "engine": engine})
    author = Author(AutoTokenizer.from_pretrained(base))
    transport = httpx.ASGITransport(await toy_server.serve(served, author))  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://toy"), author


TEXTUAL = (
    "granite4", "xlam", "deepseek_v3", "deepseek_v31", "dots", "ernie45", "granite-20b-fc", "hunyuan_a13b", "hy_v3",
    "hy_v4", "k2_horizon", "minimax_m3", "muse_glimmer", "olmo3", "jamba", "minicpm5",
)  # fmt: skip
"""Whose marks are words of the vocabulary's, and no special tokens."""


def parse_arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def events(text: str) -> list[dict[str, Any]]:
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in data]


def read_stream(path: str, text: str) -> tuple[str, list[tuple[str, Any]]]:
    """What a client puts together: the content and the calls."""
    content, names, arguments = "", dict[int, str](), dict[int, str]()
    for event in events(text):
        if path == "/v1/chat/completions":
            for choice in event["choices"]:
                content += choice["delta"].get("content") or ""
                for call in choice["delta"].get("tool_calls") or ():
                    i, function = call["index"], call["function"]
                    names[i] = names.get(i, "") + (function.get("name") or "")
                    arguments[i] = arguments.get(i, "") + (function.get("arguments") or "")
        elif path == "/v1/responses":
            kind, i = event["type"], event.get("output_index", 0)
            if kind == "response.output_text.delta":
                content += event["delta"]
            elif kind == "response.output_item.added" and event["item"]["type"] == "function_call":
                names[i], arguments[i] = event["item"]["name"], ""
            elif kind == "response.function_call_arguments.delta":
                arguments[i] = arguments.get(i, "") + event["delta"]
        else:
            kind, i = event["type"], event.get("index", 0)
            if kind == "content_block_start" and event["content_block"]["type"] == "tool_use":
                names[i], arguments[i] = event["content_block"]["name"], ""
            elif kind == "content_block_delta":
                content += event["delta"].get("text") or ""
                arguments[i] = arguments.get(i, "") + (event["delta"].get("partial_json") or "")
    return content.strip(), [(names[i], parse_arguments(arguments[i])) for i in sorted(names)]


def read_whole(path: str, answer: dict[str, Any]) -> tuple[str, list[tuple[str, Any]]]:
    if path == "/v1/chat/completions":
        message = answer["choices"][0]["message"]
        functions = [call["function"] for call in message.get("tool_calls") or ()]
        return (message["content"] or "").strip(), [(f["name"], json.loads(f["arguments"])) for f in functions]
    if path == "/v1/responses":
        texts = [part["text"] for item in answer["output"] if item["type"] == "message" for part in item["content"]]
        calls = [item for item in answer["output"] if item["type"] == "function_call"]
        return "".join(texts).strip(), [(call["name"], json.loads(call["arguments"])) for call in calls]
    texts = [block["text"] for block in answer["content"] if block["type"] == "text"]
    used = [block for block in answer["content"] if block["type"] == "tool_use"]
    return "".join(texts).strip(), [(block["name"], block["input"]) for block in used]


NESTED = ("dots", "hy_v3", "hy_v4", "internlm", "minicpm5", "step3")
"""Parsers that look for functions where only chat's tools have them."""


@pytest.mark.parametrize("parser", NESTED)
async def test_whatever_kind_of_tool_stands_beside_the_one_that_is_called(tmp_path: Path, parser: str) -> None:
    http, author = await serve(tmp_path, parser)
    author.write(FORMATS[parser](CASES["a number"]))
    body = BODIES["/v1/responses"]
    others = [
        {"type": "custom", "name": "note"},
        {"type": "namespace", "name": "crm", "description": "", "tools": [{"type": "function", "name": "find"}]},
    ]
    answer = await http.post("/v1/responses", json={"model": "toy", **body, "tools": [*others, *body["tools"]]})
    assert answer.status_code == 200, answer.text
    assert read_whole("/v1/responses", answer.json()) == ("", CASES["a number"])
    assert [tool["type"] for tool in answer.json()["tools"]] == ["custom", "namespace", "function"]
    assert "function" not in answer.json()["tools"][2]


def test_every_parser_is_known() -> None:
    assert FORMATS.keys() | ELSEWHERE.keys() == set(ToolParserManager.list_registered())


@pytest.mark.parametrize(
    "parser", [parser if parser in REPORTED else pytest.param(parser, marks=pytest.mark.slow) for parser in FORMATS]
)
async def test_a_stream_has_the_calls(tmp_path: Path, parser: str) -> None:
    """A fault of vLLM's that is gone is to be taken from the list."""
    http, author = await serve(tmp_path, parser)
    faults, _ = FAULTS.get(parser, ((), ""))
    for case in [case for case in CASES if parser not in LONE or case != "two calls"]:
        author.write(FORMATS[parser](CASES[case]))
        for path in BODIES:
            search = {"strategy": "best_of_n", "reward": "short", "params": {"n": 2}}
            body = {"model": "toy", "alignment": search, **BODIES[path]}
            plain, stream = await http.post(path, json=body), await http.post(path, json=body | {"stream": True})
            assert plain.status_code == stream.status_code == 200, (plain.text, stream.text)
            assert read_whole(path, plain.json()) == ("", CASES[case]), (case, path)
            same = read_stream(path, stream.text) == ("", CASES[case])
            assert same == (case not in faults), (case, path, read_stream(path, stream.text))
