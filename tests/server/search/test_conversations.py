"""Conversations with tools and images: what rewards are shown of them, whichever API they come by."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from transformers import AutoTokenizer

from tests.engine import family
from tests.server import toy_server
from tests.server.search.test_rendering import Reader, Watched
from trimtab.decoders.protocols import Tokens
from trimtab.engine.toy_client import ToyPooler
from trimtab.rewards.protocols import Question
from trimtab.server.config import Config
from trimtab.server.request.messages import CHAT, MESSAGES, RESPONSES
from trimtab.server.scoring import engine_key

SCORE, INFER = "/v1/alignment/score", "/v1/alignment/infer"

TOOLS_TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    "{% for m in messages %}{{ m.role }}{% if m.tool_call_id %} {{ m.tool_call_id }}{% endif %}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}<{{ c.function.name }}{% for k, v in c.function.arguments.items() %}"
    " {{ k }}={{ v }}{% endfor %}>{% endfor %}{% if m.role == 'tool' %}.{% endif %}\n{% endfor %}"
)
"""A reward model's, which reads tools, calls and results."""


@dataclass(frozen=True, kw_only=True)
class WatchedPooler(ToyPooler):
    """The toy's, which notes what it reads."""

    seen: list[list[int]] = field(default_factory=list)

    async def score(self, inputs: Sequence[Tokens]) -> list[list[float]]:
        self.seen.extend(map(list, inputs))
        return await super().score(inputs)


@dataclass(frozen=True)
class Site:
    http: httpx.AsyncClient
    engine: Watched
    reader: Reader
    pooler: WatchedPooler

    @property
    def client(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url="http://toy/v1", api_key="none", http_client=self.http, max_retries=0)

    async def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        for notes in (self.engine.drawn, self.engine.scored, self.reader.read, self.pooler.seen):
            notes.clear()  # type: ignore[attr-defined]
        return await self.http.post(path, json=body)

    @property
    def question(self) -> Question:
        question, *others = [question for question, _ in self.reader.read]
        assert all((q.messages, q.tools) == (question.messages, question.tools) for q in others)
        return question


def text_only(folder: Path) -> Path:
    toy_server.checkpoint(folder)
    sizes = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**sizes, "max_position_embeddings": 4096}))
    return folder


async def build(folder: Path, **engine: Any) -> AsyncIterator[Site]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TOOLS_TEMPLATE
    config = Config.model_validate(
        {
            "base": str(folder),
            "name": "toy",
            "rewards": {
                "reader": {"kind": "length", "target": 1},
                "short": {"kind": "length", "target": 1},
                "judge": {"kind": "judge", "principles": {"kind": "It is kind."}},
                "brief": {"kind": "log_ratio", "strong": "base", "instruction": "Be brief."},
                "warm": {"kind": "classifier", "model": "."},
            },
            "objectives": {"warmth": {"reward": "warm"}, "length": {"reward": "reader"}},
            "engine": {"dtype": "float32", "max_model_len": 4096, "enforce_eager": True} | engine,
        },
        context=folder,
    )
    pooler = WatchedPooler(tokenizer=tokenizer, labels=("score",), max_tokens=4096)
    poolers: Any = {engine_key(config.rewards["warm"]): pooler}
    watched, reader = Watched(toy_server.toy_engine(folder)), Reader()
    scorers: Any = {"reader": reader}
    app = await toy_server.serve(config, watched, scorers=scorers, poolers=poolers)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toy") as http:
        yield Site(http, watched, reader, pooler)


@pytest.fixture(scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async for built in build(text_only(tmp_path_factory.mktemp("toy"))):
        yield built


@pytest.fixture(scope="module")
async def hiding(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """One whose models do not see the tools that a request must not call."""
    async for built in build(text_only(tmp_path_factory.mktemp("hiding")), exclude_tools_when_tool_choice_none=True):
        yield built


@pytest.fixture(scope="module")
async def seeing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """One whose model reads images."""
    folder = family.idefics3(tmp_path_factory.mktemp("seeing"))
    (folder / "plain.jinja").write_text(toy_server.TEMPLATE)
    template = str(folder / "plain.jinja")
    async for built in build(folder, max_model_len=1024, chat_template=template, limit_mm_per_prompt={"image": 2}):
        yield built


SCHEMA = {"type": "object", "properties": {"at": {"type": "string", "default": None}}}
LOOK: Any = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": SCHEMA}}
CALLS: Any = [
    {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}},
    {"id": "c2", "type": "function", "function": {"name": "look", "arguments": "{}"}},
]
CONVERSATION: Any = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is there?"},
    {"role": "assistant", "content": "I look.", "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "c1", "content": "A wall.\nWhite."},
    {"role": "tool", "tool_call_id": "c2", "content": "Dark."},
    {"role": "user", "content": "And?"},
]
"""What all three APIs' requests say."""

BY_RESPONSES: dict[str, Any] = {
    "instructions": "Be brief.",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "What is there?"}]},
        {"type": "reasoning", "id": "r1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "id": "m1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": "it"}'},
        {"type": "function_call", "call_id": "c2", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1",
         "output": [{"type": "input_text", "text": "A wall."}, {"type": "input_text", "text": "White."}]},
        {"type": "function_call_output", "call_id": "c2", "output": "Dark."},
        {"role": "user", "content": "And?"},
    ],
    "tools": [{"type": "function", **LOOK["function"]}],
    "tool_choice": "none",
}  # fmt: skip
BY_MESSAGES: dict[str, Any] = {
    "system": [{"type": "text", "text": "Be brief."}],
    "messages": [
        {"role": "user", "content": "What is there?"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "x"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "it"}},
            {"type": "tool_use", "id": "c2", "name": "look", "input": {}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "c1",
             "content": [{"type": "text", "text": "A wall."}, {"type": "text", "text": "White."}]},
            {"type": "tool_result", "tool_use_id": "c2", "content": "Dark."},
            {"type": "text", "text": "And?"},
        ]},
    ],
    "tools": [{"name": "look", "description": "Looks.", "input_schema": SCHEMA}],
    "tool_choice": {"type": "none"},
    "max_tokens": 5,
}  # fmt: skip
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": CONVERSATION, "tools": [LOOK], "tool_choice": "none"},
    RESPONSES: BY_RESPONSES,
    MESSAGES: BY_MESSAGES,
}


def wish(reward: str) -> dict[str, Any]:
    return {"strategy": "best_of_n", "reward": reward, "params": {"n": 2}}


async def search(site: Site, path: str, reward: str, body: dict[str, Any] | None = None) -> httpx.Response:
    body = BODIES[path] if body is None else body
    return await site.post(path, {"model": "toy", **body, "alignment": wish(reward)})


@pytest.mark.parametrize("path", BODIES)
async def test_a_reward_is_shown_the_conversation_that_was_had(site: Site, path: str) -> None:
    answer = await search(site, path, "reader")
    assert answer.status_code == 200, answer.text
    assert site.question.messages == tuple(CONVERSATION)
    assert site.question.tools == (LOOK,)


async def test_the_official_client_s_too(site: Site) -> None:
    site.reader.read.clear()
    more: Any = {"model": "toy", "extra_body": {"alignment": wish("reader")}}
    await site.client.chat.completions.create(**BODIES[CHAT], **more)
    await site.client.responses.create(**BODIES[RESPONSES], **more)
    assert site.question.messages == tuple(CONVERSATION)
    assert site.question.tools == (LOOK,)


@pytest.mark.parametrize("path", BODIES)
async def test_a_classifier_reads_it_by_its_own_template(site: Site, path: str) -> None:
    answer = await search(site, path, "warm")
    assert answer.status_code == 200, answer.text
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "it"}}},
        {"id": "c2", "type": "function", "function": {"name": "look", "arguments": {}}},
    ]
    turns = [*CONVERSATION[:2], {**CONVERSATION[2], "tool_calls": calls}, *CONVERSATION[3:]]
    encode = site.pooler.tokenizer.apply_chat_template
    texts = {site.engine.text(response_of(seen, encode(turns, tools=[LOOK])["input_ids"])) for seen in site.pooler.seen}
    assert text_of(path, answer.json()) in {text.removeprefix("assistant: ").rstrip("\n") for text in texts}


def response_of(seen: list[int], before: list[int]) -> list[int]:
    """What stands behind the conversation in an input."""
    assert seen[: len(before)] == before
    return seen[len(before) :]


def text_of(path: str, answer: dict[str, Any]) -> str:
    if path == CHAT:
        text: str = answer["choices"][0]["message"]["content"]
        return text
    parts = answer["content"] if path == MESSAGES else [p for item in answer["output"] for p in item["content"]]
    return "".join(part["text"] for part in parts)


PLAIN = (
    'system: Tools:\n{"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": '
    '{"at": {"type": "string", "default": null}}}}\n\nBe brief.\n'
    'user: What is there?\nassistant: I look.\n{"name": "look", "arguments": {"at": "it"}}\n'
    '{"name": "look", "arguments": {}}\ntool: Result of call 1, look: A wall.\nWhite.\n'
    "tool: Result of call 2, look: Dark.\nuser: And?"
)


@pytest.mark.parametrize("path", BODIES)
async def test_a_judge_reads_it_spelt_out(site: Site, path: str) -> None:
    answer = await search(site, path, "judge")
    assert answer.status_code == 200, answer.text
    asked = {site.engine.tokenizer.decode(list(prompt)) for prompt in site.engine.scored}
    assert asked
    assert all(f"<conversation>\n{PLAIN}\n</conversation>" in text for text in asked)


@pytest.mark.parametrize("path", BODIES)
async def test_tools_that_the_model_does_not_see_no_reward_sees(hiding: Site, path: str) -> None:
    assert (await search(hiding, path, "reader")).status_code == 200
    assert (hiding.question.messages, hiding.question.tools) == (tuple(CONVERSATION), ())
    choosing = {key: value for key, value in BODIES[path].items() if key != "tools"}
    assert (await search(hiding, path, "reader", {**choosing, "tools": []})).status_code in (200, 400)


async def test_names_that_vllm_makes_for_responses_are_the_rewards_too(site: Site) -> None:
    """Functions in a namespace, and tools whose input is a text."""
    body = {
        "input": [
            {"role": "user", "content": "Go."},
            {"type": "function_call", "call_id": "c1", "name": "look", "namespace": "eyes", "arguments": "{}"},
            {"type": "custom_tool_call", "call_id": "c2", "name": "shout", "input": "hey"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": "heard"},
        ],
        "tools": [
            {
                "type": "namespace",
                "name": "eyes",
                "description": "See.",
                "tools": [{"type": "function", **LOOK["function"]}],
            },
            {"type": "custom", "name": "shout", "description": "Loud."},
        ],
        "tool_choice": "none",
    }
    answer = await search(site, RESPONSES, "reader", body)
    assert answer.status_code == 200, answer.text
    _, calling, result = site.question.messages
    assert [call["function"] for call in calling["tool_calls"]] == [
        {"name": "eyes__look", "arguments": "{}"},
        {"name": "shout", "arguments": '{"input": "hey"}'},
    ]
    assert result == {"role": "tool", "tool_call_id": "c2", "content": "heard"}
    assert [tool["function"]["name"] for tool in site.question.tools] == ["eyes__look", "shout"]


async def test_score_shows_what_the_search_shows(site: Site) -> None:
    found = await search(site, CHAT, "warm")
    text, value = text_of(CHAT, found.json()), found.json()["alignment"]["choices"][0]["value"]
    scored = await site.post(SCORE, {**BODIES[CHAT], "responses": [text], "reward": "warm"})
    assert scored.json()["scores"][0]["value"] == pytest.approx(value)
    await site.post(SCORE, {**BODIES[CHAT], "responses": [text], "reward": "reader"})
    assert (site.question.messages, site.question.tools) == (tuple(CONVERSATION), (LOOK,))


async def test_infer_shows_tools_too_and_tells_conversations_apart_by_them(site: Site) -> None:
    comparison = {"messages": CONVERSATION, "chosen": "a", "rejected": "b"}
    with_tools = {**comparison, "tools": [LOOK], "tool_choice": "none"}
    body = {"objectives": ["length"], "comparisons": [with_tools, comparison]}
    answer = await site.post(INFER, body)
    assert answer.status_code == 200, answer.text
    shown = [(question.messages, question.tools) for question, _ in site.reader.read]
    assert sorted(shown, key=lambda pair: len(pair[1])) == [(tuple(CONVERSATION), ()), (tuple(CONVERSATION), (LOOK,))]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (SCORE, {"responses": ["a"], "reward": "short", "tools": [LOOK], "prompt": "a"}, "tools"),
        (SCORE, {"responses": ["a"], "reward": "short", "tool_choice": "none", "prompt": "a"}, "tool_choice"),
        (INFER, {"ratings": [{"prompt": "a", "response": "a", "rating": 1, "tools": [LOOK]}]}, "ratings.0.tools"),
    ],
)  # fmt: skip
async def test_a_bare_prompt_has_no_tools(site: Site, path: str, body: dict[str, Any], param: str) -> None:
    answer = await site.post(path, body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert "a bare prompt does without" in answer.json()["error"]["message"]


ARGUMENTS = ["{", "[]", "", '{"at": "\\ud800"}', '{"at": ' * 5000, "[" * 300 + "]" * 300, '"x"', "null", "1e999", "NaN"]
ODD_CALLS: list[Any] = [
    *([{"id": "c", "type": "function", "function": {"name": "look", "arguments": text}}] for text in ARGUMENTS),
    [{"id": "c", "type": "function", "function": {"name": "", "arguments": "{}"}}],
    [{"type": "function", "function": {"name": "look", "arguments": "{}"}}], [{"id": 7}], [{"id": "c", "type": "x"}],
    [{"id": "c", "type": "function", "function": {"name": "look", "arguments": {"at": [1, {"x": None}]}}}],
]  # fmt: skip
ODD_TOOLS: list[Any] = [
    [], [{}], [{"type": "function"}], [{"type": "function", "function": {"name": "look", "parameters": None}}],
    [{"type": "function", "function": {"name": "</s>", "description": "\ue0000\ue000", "parameters": {"</s>": [1]}}}],
]  # fmt: skip


@pytest.mark.parametrize("reward", ["warm", "judge", "brief"])
async def test_calls_and_tools_of_any_shape_are_read_or_refused(site: Site, reward: str) -> None:
    """By name and in one line; never an error of the server's."""
    result = {"role": "tool", "tool_call_id": "c", "content": "seen"}
    bodies: list[dict[str, Any]] = [
        {"messages": [ASK_PLAINLY, {"role": "assistant", "content": None, "tool_calls": calls}, result]}
        for calls in ODD_CALLS
    ]
    bodies += [
        {"messages": [ASK_PLAINLY, message], "tools": tools} for tools in ODD_TOOLS for message in (result, ASK_PLAINLY)
    ]
    read = 0
    for body in bodies:
        answer = await site.post(SCORE, {**body, "tool_choice": "none", "responses": ["a"], "reward": reward})
        assert answer.status_code in (200, 400), (body, answer.text)
        read += answer.status_code == 200
        if answer.status_code == 400:
            assert "\n" not in answer.json()["error"]["message"]
    assert read > len(ARGUMENTS)


ASK_PLAINLY = {"role": "user", "content": "What is there?"}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
URL = f"data:image/png;base64,{PIXEL}"
SOURCE = {"type": "base64", "media_type": "image/png", "data": PIXEL}
ASK = {"type": "text", "text": "What is this?"}
SEEN: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "chat": (CHAT, {"messages": [{"role": "user", "content": [ASK, {"type": "image_url", "image_url": {"url": URL}}]}]},
             "messages.0.content.1", "image_url"),
    "responses": (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "What?"},
                                                                     {"type": "input_image", "image_url": URL}]}]},
                  "input.0.content.1", "input_image"),
    "messages": (MESSAGES, {"messages": [{"role": "user", "content": [ASK, {"type": "image", "source": SOURCE}]}],
                            "max_tokens": 5}, "messages.0.content.1", "image"),
    "a result": (MESSAGES, {"messages": [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "look", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1",
                                      "content": [{"type": "image", "source": SOURCE}]}]},
    ], "max_tokens": 5}, "messages.2.content.0.content.0", "image"),
}  # fmt: skip


def check_refusal(answer: httpx.Response, param: str, *words: str) -> None:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, "unsupported_pair")
    assert error["message"].startswith(param)
    assert all(word in error["message"] for word in words), error


@pytest.mark.parametrize("name", SEEN)
@pytest.mark.parametrize("reward", ["judge", "brief", "warm", "reader"])
async def test_what_a_reward_cannot_be_shown_is_refused_by_name_before_any_work(
    site: Site, name: str, reward: str
) -> None:
    path, body, param, kind = SEEN[name]
    answer = await search(site, path, reward, body)
    check_refusal(answer, param, f"'{kind}'", f"the reward {reward!r}", "rewards that read the answer alone")
    assert (site.engine.drawn, site.engine.scored, site.pooler.seen, site.reader.read) == ([], [], [], [])


async def test_score_and_infer_refuse_it_too(site: Site) -> None:
    _, body, param, _ = SEEN["chat"]
    check_refusal(await site.post(SCORE, {**body, "responses": ["a"], "reward": "warm"}), param, "'warm'")
    compared = {"of": "short", "transform": "par"}  # with answers that nothing draws with the image
    answer = await site.post(SCORE, {**body, "responses": ["a"], "reward": compared})
    check_refusal(answer, param, "a transform of 'short'")
    comparisons = [{"messages": CONVERSATION, "chosen": "a", "rejected": "b"}, {**body, "chosen": "a", "rejected": "b"}]
    answer = await site.post(INFER, {"comparisons": comparisons})
    check_refusal(answer, f"comparisons.1.{param}", "'warm'")


@pytest.mark.parametrize("name", SEEN)
async def test_what_reads_the_answer_alone_does_not_mind(seeing: Site, name: str) -> None:
    path, body, param, _ = SEEN[name]
    answer = await search(seeing, path, "short", body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["alignment"]["choices"][0]["rewards"]
    check_refusal(await search(seeing, path, "judge", body), param, "'judge'")
    if path == CHAT:
        text = text_of(CHAT, answer.json())
        scored = await seeing.post(SCORE, {**body, "responses": [text], "reward": "short"})
        assert scored.status_code == 200, scored.text
        assert scored.json()["scores"][0]["value"] == answer.json()["alignment"]["choices"][0]["value"]
        compared = wish("short") | {"reward": {"of": "short", "transform": "par"}}
        answer = await seeing.post(path, {"model": "toy", **body, "alignment": compared})
        assert answer.status_code == 200, answer.text
