"""One rendering of a conversation, whoever renders it, and what rewards read of an answer that was begun."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server import toy_server
from trimtab.decoders.protocols import Chunk, Mixture, Sampling, Tokens
from trimtab.rewards.protocols import Question, Response
from trimtab.runtime.toy_engine import ToyEngine
from trimtab.server.config import Config

TEMPLATE = (
    "{% if tools %}tools {{ tools|length }}\n{% endif %}{{ flavour }}\n"
    "{% for m in messages %}# {{ m['role'] }} {{ m['name'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}# assistant : {% endif %}"
)
"""Another than the tokenizer's, with a variable that the configuration sets and a request may set anew."""


@dataclass(frozen=True)
class Reader:
    """How many characters an answer has; it notes what it reads."""

    read: list[tuple[Question, Sequence[Response]]] = field(default_factory=list)
    labels: tuple[str, ...] = ("score",)
    needs: frozenset[str] = frozenset()

    async def __call__(self, question: Question, responses: Sequence[Response]) -> list[list[float]]:
        self.read.append((question, responses))
        return [[float(len(r.text))] for r in responses]


@dataclass
class Watched:
    """The toy, which notes the prompts that it gets."""

    engine: ToyEngine
    drawn: list[Tokens] = field(default_factory=list)
    scored: list[Tokens] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture) -> AsyncGenerator[Chunk, None]:
        self.drawn.append(list(prompt))
        return self.engine.generate(prompt, sampling, n=n, guides=guides)

    async def score(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        self.scored.append(list(prompt))
        return await self.engine.score(prompt, completion, guides=guides)


@dataclass(frozen=True)
class Served:
    http: httpx.AsyncClient
    engine: Watched
    reader: Reader

    def text(self, tokens: Tokens) -> str:
        decoded: str = self.engine.tokenizer.decode(list(tokens))
        return decoded

    async def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        self.engine.drawn.clear()
        self.engine.scored.clear()
        self.reader.read.clear()
        return await self.http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})

    @property
    def question(self) -> Question:
        """The one that every call of the reward was about."""
        question, *others = [question for question, _ in self.reader.read]
        assert all((q.prompt, q.messages) == (question.prompt, question.messages) for q in others)
        return question

    @property
    def responses(self) -> list[Response]:
        return [response for _, responses in self.reader.read for response in responses]


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = toy_server.checkpoint(tmp_path_factory.mktemp("toy"))
    (folder / "mine.jinja").write_text(TEMPLATE)
    config = Config.model_validate(
        {
            "base": str(folder),
            "name": "toy",
            "guides": {"arm": str(folder)},
            "rewards": {
                "reader": {"kind": "length", "target": 1},
                "judge": {"kind": "judge", "principles": {"kind": "It is kind."}},
                "brief": {"kind": "log_ratio", "strong": "base", "instruction": "Be brief."},
                "ratio": {"kind": "log_ratio", "strong": "arm"},
                "tokens": {"kind": "length", "unit": "tokens", "min": 1000},
            },
            "objectives": {"long": {"reward": "reader"}},
            "engine": {
                "dtype": "float32", "max_model_len": 1024, "enforce_eager": True,
                "chat_template": str(folder / "mine.jinja"), "default_chat_template_kwargs": {"flavour": "vanilla"},
            },
        }
    )  # fmt: skip
    engine, reader = Watched(toy_server.toy_engine(Path(folder))), Reader()
    app = await toy_server.serve(config, engine, scorers={"reader": reader})  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toy") as http:
        yield Served(http=http, engine=engine, reader=reader)


HI = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "plain": {"messages": [HI]},
    "system": {"messages": [{"role": "system", "content": "be"}, HI]},
    "system only": {"messages": [{"role": "system", "content": "be"}]},
    "developer": {"messages": [{"role": "developer", "content": "be"}, HI]},
    "a variable of the template": {"messages": [HI], "chat_template_kwargs": {"flavour": "lemon"}},
    "tools": {"messages": [HI], "tools": [TOOL], "tool_choice": "none"},
    "parts": {"messages": [{**HI, "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
    "a refusal": {"messages": [HI, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, HI]},
    "a name": {"messages": [{**HI, "name": "ann"}]},
    "two users": {"messages": [HI, HI]},
    "assistant first": {"messages": [{"role": "assistant", "content": "hello"}, HI]},
    "assistant last": {"messages": [HI, {"role": "assistant", "content": "hello"}]},
    "empty": {"messages": [{"role": "user", "content": ""}]},
    "a role of its own": {"messages": [{"role": "narrator", "content": "once"}, HI]},
    "calls of tools": {
        "messages": [HI, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                     {"role": "tool", "tool_call_id": "1", "content": "seen"}],
    },
    "a begun answer": {
        "messages": [HI, {"role": "assistant", "content": "Well b a"}],
        "continue_final_message": True, "add_generation_prompt": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_score_and_rewards_read_the_prompt_that_the_search_drew_from(served: Served, name: str) -> None:
    body, wish = CONVERSATIONS[name], {"strategy": "best_of_n", "reward": "reader", "params": {"n": 2}}
    answer = await served.post("/v1/chat/completions", {**body, "model": "toy", "seed": 1, "alignment": wish})
    assert answer.status_code == 200, answer.text
    [drawn], question, responses = served.engine.drawn, served.question, served.responses
    begun = responses[0].tokens[: len(drawn) - len(question.prompt)]
    assert [*question.prompt, *begun] == drawn
    text = answer.json()["choices"][0]["message"]["content"]
    scored = await served.post("/v1/alignment/score", {**body, "responses": [text], "reward": "reader"})
    assert scored.status_code == 200, scored.text
    [response] = served.responses
    assert (served.question.prompt, served.question.messages) == (question.prompt, question.messages)
    assert response.text in {r.text for r in responses}
    assert scored.json()["scores"][0]["value"] == answer.json()["alignment"]["choices"][0]["value"]


async def test_the_configured_template_and_its_variables_are_everybody_s(served: Served) -> None:
    body = {"messages": [HI], "chat_template_kwargs": {"flavour": "lemon"}, "responses": ["a"]}
    assert (await served.post("/v1/alignment/score", {**body, "reward": "judge"})).status_code == 200
    assert {served.text(prompt).partition("#")[0] for prompt in served.engine.scored} == {"vanilla\n"}, (
        "its own request"
    )
    assert (await served.post("/v1/alignment/score", {**body, "reward": "brief"})).status_code == 200
    assert sorted(map(served.text, served.engine.scored)) == [
        "lemon\n# system : Be brief.\n# user : hi\n# assistant : ",
        "lemon\n# user : hi\n# assistant : ",
    ]


async def test_infer_and_bare_prompts_are_rendered_as_requests_are(served: Served) -> None:
    comparison = {"messages": [HI], "chosen": "aa", "rejected": "b"}
    assert (await served.post("/v1/alignment/infer", {"comparisons": [comparison]})).status_code == 200
    assert served.text(served.question.prompt) == "vanilla\n# user : hi\n# assistant : "
    answer = await served.post("/v1/completions", {
        "model": "toy", "prompt": "assistant: ", "seed": 1,
        "alignment": {"strategy": "best_of_n", "reward": "reader", "params": {"n": 2}},
    })  # fmt: skip
    assert answer.status_code == 200, answer.text
    [drawn] = served.engine.drawn
    await served.post("/v1/alignment/score", {"prompt": "assistant: ", "responses": ["a"], "reward": "reader"})
    assert served.question.prompt == drawn


BEGUN = CONVERSATIONS["a begun answer"]


async def test_rewards_read_the_whole_of_an_answer_that_was_begun(served: Served) -> None:
    wish = {"strategy": "best_of_n", "reward": "reader", "params": {"n": 4}, "return": ["candidates"]}
    answer = await served.post("/v1/chat/completions", {**BEGUN, "model": "toy", "seed": 1, "alignment": wish})
    assert served.question.messages == (HI,)
    assert served.text(served.question.prompt) == "vanilla\n# user : hi\n# assistant : "
    [choice] = answer.json()["alignment"]["choices"]
    shown = [candidate["text"] for candidate in choice["candidates"]]
    read = served.responses
    assert sorted(r.text for r in read) == sorted(f"Well b a{text}" for text in shown), (
        "what the client gets is the rest"
    )
    assert all(served.text(r.tokens).startswith("Well b a") for r in read)


async def test_a_model_s_log_ratio_and_token_length_are_of_the_whole_answer(served: Served) -> None:
    whole = {"messages": [HI], "responses": ["Well b ab"]}
    rest = {**BEGUN, "responses": ["b"]}
    for reward in ("ratio", "tokens", "brief", "judge"):
        one, other = [
            (await served.post("/v1/alignment/score", {**body, "reward": reward})).json() for body in (whole, rest)
        ]
        assert one["scores"][0]["value"] == pytest.approx(other["scores"][0]["value"]), reward


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (
            "/v1/chat/completions",
            {"messages": [HI], "continue_final_message": True, "add_generation_prompt": False},
            "continue_final_message",
        ),
        ("/v1/chat/completions", {"messages": [HI], "add_generation_prompt": False}, "add_generation_prompt"),
        ("/v1/messages", {"messages": [HI, {"role": "assistant", "content": "Well"}], "max_tokens": 5}, "messages"),
        ("/v1/responses", {"input": "hi", "previous_response_id": "resp_1"}, "previous_response_id"),
    ],
)
async def test_what_no_reward_can_read_is_refused_by_name(
    served: Served, path: str, body: dict[str, Any], param: str
) -> None:
    wish = {"strategy": "best_of_n", "reward": "reader", "params": {"n": 2}}
    answer = await served.post(path, {**body, "model": "toy", "alignment": wish})
    assert answer.status_code == 400
    assert "cannot be combined with rewards" in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == param


ODD: list[Any] = [
    [], [7], [None], ["hi"], [{}], [{"role": "user"}],
    [{"role": 7, "content": "hi"}], [{"role": None, "content": "hi"}],
    [{"role": "system", "content": "be"}], [{"role": "user", "content": None}], [{"role": "user", "content": 7}],
    [{"role": "user", "content": [7]}], [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": "user", "content": [{"type": "nothing", "text": "hi"}]}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x"}}]}],
    [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}],
    [HI, {"role": "assistant", "content": None, "tool_calls": 7}],
    [HI, {"role": "assistant", "content": None, "tool_calls": [7]}],
    [HI, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
    [HI, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": None, "arguments": 7}}]}],
    [HI, {"role": "tool", "content": "seen"}], [HI, {"role": "tool", "content": None, "tool_call_id": 7}],
    [{"role": "user", "content": "\ud800"}], [{"role": "\ud800", "content": "hi"}, HI],
    [{"role": "user", "content": "hi", "name": 7}], [{"role": "user" * 1000, "content": "hi"}, HI],
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(ODD)))
async def test_a_conversation_of_any_shape_is_scored_or_refused(served: Served, index: int) -> None:
    """By name and in one line; never an error of the server's."""
    for reward in ("reader", "judge", "brief"):
        body = {"messages": ODD[index], "responses": ["a"], "reward": reward}
        answer = await served.post("/v1/alignment/score", body)
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 400:
            error = answer.json()["error"]
            assert "\n" not in error["message"], error
            assert len(error["message"]) < 400, error


@pytest.mark.parametrize(
    "body",
    [
        {"tools": 7},
        {"tools": [7]},
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": 7},
        {"tool_choice": "required"},
        {"chat_template_kwargs": {"tokenize": False}},
        {"chat_template_kwargs": {"messages": []}},
        {"chat_template_kwargs": {"chat_template": "x"}},
        {"documents": [7]},
        {"reasoning_effort": "most"},
        {"continue_final_message": True, "add_generation_prompt": True},
        {"chat_template": "x"},
        {"responses": ["\ud800"]},
        {"given": {"answer": "\ud800"}},
        {"max_tokens": 10**400},
        {"finished": 1},
    ],
)
async def test_odd_fields_beside_it_are_refused(served: Served, body: dict[str, Any]) -> None:
    answer = await served.post(
        "/v1/alignment/score", {"messages": [HI], "responses": ["a"], "reward": "reader", **body}
    )
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert "\n" not in answer.json()["error"]["message"]
