"""Thoughts, answers and calls: what rewards, votes and reports read of a completion is what the client gets of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI
from transformers import AutoTokenizer
from vllm.reasoning import ReasoningParserManager

from tests.server import toy_server
from tests.server.author import Author, learn_words
from tests.server.search.test_score import GIVEN, NAMES, REWARDS
from trimtab.engine.toy_client import ToyPooler
from trimtab.server.config import Config
from trimtab.server.scoring import engine_key

HI: list[Any] = [{"role": "user", "content": "hi"}]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>'
SAME_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"days": 3.0, "city": "Paris"}}\n</tool_call>'
OTHER_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "number"}}},
        },
    }
]


PATHS = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": HI, "max_tokens": 900},
}


@dataclass(frozen=True)
class Thinker:
    http: httpx.AsyncClient
    author: Author

    async def search(self, alignment: Mapping[str, Any], path: str = "/v1/chat/completions", **more: Any) -> Any:
        answer = await self.http.post(path, json={"model": "toy", "alignment": dict(alignment), **PATHS[path], **more})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def value(self, reward: Any, **more: Any) -> float:
        """The reward of the author's first text."""
        answer = await self.search({"strategy": "best_of_n", "reward": reward, "params": {"n": 1}, **more})
        value: float = answer["alignment"]["choices"][0]["value"]
        return value

    async def scores(self, reward: str, *texts: str) -> list[float]:
        given = {"given": GIVEN[reward]} if reward in GIVEN else {}
        body = {"messages": HI, "responses": list(texts), "reward": reward, **given}
        answer = await self.http.post("/v1/alignment/score", json=body)
        assert answer.status_code == 200, answer.text
        return [score["value"] for score in answer.json()["scores"]]


async def make_thinker(folder: Path, parser: str, marks: tuple[str, ...] = ("<think>", "</think>")) -> Thinker:
    base = toy_server.checkpoint(folder)
    tokenizer = learn_words([CALL, SAME_CALL, OTHER_CALL, "So the answer is 40? No. It is **42**."])
    tokenizer.add_tokens([*marks, "<tool_call>", "</tool_call>"])
    tokenizer.save_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"vocab_size": len(tokenizer)}))
    rewards = {kind: {"kind": kind, **keys} for kind, keys in REWARDS.items()}
    rewards["whole_ratio"] = {"kind": "log_ratio", "strong": "arm"}
    rewards["json"] = {"kind": "json_schema", "schema": {"type": "object"}}
    rewards["word"] = {"kind": "contains", "phrases": ["JSON"]}
    rewards["number"] = {"kind": "verifier"}
    for part in ("answer", "thoughts", "both"):
        rewards[f"on_{part}"] = {"kind": "length", "unit": "characters", "target": 1, "on": part}
        rewards[f"tokens_{part}"] = {"kind": "length", "unit": "tokens", "target": 1, "on": part}
    engine: dict[str, Any] = {"dtype": "float32", "max_model_len": 1024, "enforce_eager": True}
    engine |= {"reasoning_parser": parser, "tool_call_parser": "hermes", "enable_auto_tool_choice": True}
    served = Config.model_validate(
        {"base": str(base), "name": "toy", "guides": {"arm": str(base)}, "rewards": rewards, "engine": engine},
        context=base,
    )
    known = AutoTokenizer.from_pretrained(base)
    pooler = ToyPooler(tokenizer=known, labels=("good", "bad"), max_tokens=1024)
    author = Author(known)
    poolers = {engine_key(served.rewards["classifier"]) or "": pooler}
    app = await toy_server.serve(served, author, poolers=poolers)  # type: ignore[arg-type]
    return Thinker(httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toy", timeout=60), author)


@pytest.fixture(scope="module")
async def thinker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Thinker]:
    made = await make_thinker(tmp_path_factory.mktemp("thinker"), "deepseek_r1")
    async with made.http:
        yield made


async def test_rules_read_the_answer(thinker: Thinker) -> None:
    thinker.author.write('<think>It should be JSON.</think>\n{"a": 1}')
    assert await thinker.value("json") == 1.0
    assert await thinker.value("word") == 0.0
    thinker.author.write('It should be JSON.</think>\n{"a": 1}')  # the prompt has opened the thoughts
    assert await thinker.value("json") == 1.0


async def test_extractors_read_the_answer(thinker: Thinker) -> None:
    thinker.author.write("So the answer is 40? Hm. No.</think>\n**42**")
    answer = await thinker.search({"strategy": "vote", "params": {"n": 2}})
    assert answer["alignment"]["choices"][0]["answer"] == "42"
    assert await thinker.value("number", given={"answer": "42"}) == 1.0
    assert await thinker.value("number", given={"answer": "40"}) == 0.0


@pytest.mark.parametrize(("part", "text"), [("answer", "abc"), ("thoughts", "de"), ("both", "<think>de</think>abc")])
async def test_a_reward_reads_its_part(thinker: Thinker, part: str, text: str) -> None:
    thinker.author.write("<think>de</think>abc")
    assert await thinker.value(f"on_{part}") == -(len(text) - 1)
    tokens = [*thinker.author.tokens(text), *(["end"] if part != "thoughts" else [])]
    if part == "thoughts":  # with the marks around them, as they were drawn
        tokens = [*tokens, "<think>", "</think>"]
    assert await thinker.value(f"tokens_{part}") == -(len(tokens) - 1)


async def test_a_classifier_reads_calls_and_no_thoughts(thinker: Thinker) -> None:
    """Of a conversation and a response, as its template has no place for tools: spelt out."""
    thinker.author.write(f"<think>Paris?</think>Let me see.{CALL}")
    alignment = {"strategy": "best_of_n", "reward": "classifier.good", "params": {"n": 1}}
    answer = await thinker.search(alignment, tools=TOOLS)
    tokenizer = thinker.author.tokenizer
    spelt_out = 'Let me see.\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}'
    turns = [
        {"role": "user", "content": f"Tools:\n{json.dumps(TOOLS[0]['function'])}\n\nhi"},
        {"role": "assistant", "content": spelt_out},
    ]
    pooler = ToyPooler(tokenizer=tokenizer, labels=("good", "bad"), max_tokens=1024)
    [[good, _]] = await pooler.score([tokenizer.apply_chat_template(turns)["input_ids"]])
    assert answer["alignment"]["choices"][0]["value"] == pytest.approx(good)


async def test_reports_show_the_parts(thinker: Thinker) -> None:
    thinker.author.write(f"<think>Paris?</think>Let me see.{CALL}")
    answer = await thinker.search(
        {"strategy": "best_of_n", "reward": "word", "params": {"n": 1}, "return": ["candidates"]}, tools=TOOLS
    )
    [candidate] = answer["alignment"]["choices"][0]["candidates"]
    assert (candidate["text"], candidate["thoughts"]) == ("Let me see.", "Paris?")
    [call] = candidate["tool_calls"]
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Paris", "days": 3})
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning"]) == ("Let me see.", "Paris?")


async def test_an_answer_that_never_began_is_empty_and_says_so(thinker: Thinker) -> None:
    thinker.author.write("<think>a long time of thoughts without an end</think>b")
    wish = {"strategy": "best_of_n", "reward": "on_answer", "params": {"n": 2}, "return": ["candidates"]}
    answer = await thinker.search(wish, max_tokens=4)
    [choice] = answer["alignment"]["choices"]
    assert choice["value"] == -1.0  # of no character, where one is wished for
    assert {candidate["text"] for candidate in choice["candidates"]} == {""}
    assert any("amid its thoughts" in warning for warning in answer["alignment"]["warnings"])
    assert not answer["choices"][0]["message"]["content"]


async def test_an_answer_that_never_began_is_not_chosen_where_another_ended(thinker: Thinker) -> None:
    """No phrase stands in an empty answer, so by this reward it would be the best."""
    short, long = "<think>a</think>aa b", "<think>" + "a long time of thoughts " * 20
    thinker.author.write(long, short)
    thinker.author.answers = [thinker.author.answers[0][:-1], thinker.author.answers[1]]
    answer = await thinker.search({"strategy": "best_of_n", "reward": "avoids", "params": {"n": 2}})
    assert answer["choices"][0]["message"]["content"] == "aa b"


@pytest.mark.parametrize("path", PATHS)
async def test_every_path_is_read_alike(thinker: Thinker, path: str) -> None:
    wish = {"strategy": "best_of_n", "reward": "on_answer", "params": {"n": 2}}
    thinker.author.write("<think>d</think>abcdef", "<think>defghi</think>abc")
    answer = await thinker.search(wish, path)
    assert answer["alignment"]["choices"][0]["value"] == -2
    thinker.author.write(
        "abcd"
    )  # without a mark: of a bare prompt an answer, and elsewhere thoughts, as for the client
    answer = await thinker.search(wish, path)
    assert answer["alignment"]["choices"][0]["value"] == (-3 if path == "/v1/completions" else -1)


TEXTS = st.text(st.sampled_from('ab 1.{}"\n,é'), min_size=1, max_size=24)


@pytest.mark.parametrize("name", NAMES)
async def test_thoughts_change_no_reward(thinker: Thinker, name: str) -> None:
    """Random texts around random thoughts, as a client's responses and as a search's answers."""

    @settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(TEXTS, TEXTS, st.booleans()), min_size=4, max_size=4))
    def collect(drawn: list[tuple[str, str, bool]]) -> None:
        cases.extend(drawn)

    cases: list[tuple[str, str, bool]] = []
    collect()
    texts = [text for _, text, _ in cases]
    around = [("<think>" if opened else "") + thoughts + "</think>" + text for thoughts, text, opened in cases]
    assert await thinker.scores(name, *around) == await thinker.scores(name, *texts)
    thinker.author.write(around[0])
    more = {"given": GIVEN[name]} if name in GIVEN else {}
    assert [await thinker.value(name, **more)] == await thinker.scores(name, texts[0])


async def test_votes_on_calls(thinker: Thinker) -> None:
    """Arguments in another order and 3.0 for 3 are one call; the winner's calls reach the client."""
    thinker.author.write(OTHER_CALL, CALL, "<think>a</think>" + SAME_CALL, "none")
    wish: dict[str, Any] = {"strategy": "vote", "params": {"n": 4, "extractor": "tool_call"}}
    client = AsyncOpenAI(base_url="http://toy/v1", api_key="none", http_client=thinker.http)
    body: dict[str, Any] = {"model": "toy", "messages": HI, "tools": TOOLS, "extra_body": {"alignment": wish}}
    # vLLM's parser takes a completion without a mark for thoughts, so it holds no call
    thinker.author.write(*(f"<think>a</think>{text}" for text in (OTHER_CALL, CALL, SAME_CALL, "none")))
    answer = await client.chat.completions.create(**body)
    [call] = answer.choices[0].message.tool_calls or []
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris", "days": 3})
    [choice] = answer.model_extra["alignment"]["choices"]  # type: ignore[index]
    assert json.loads(choice["answer"]) == {"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}
    assert (choice["extracted"], choice["votes"]) == (3, 2)
    wish["params"]["extractor"] = {"tool_call": "name"}
    answer = await client.chat.completions.create(**body)
    [choice] = answer.model_extra["alignment"]["choices"]  # type: ignore[index]
    assert (choice["answer"], choice["votes"]) == ("get_weather", 3)


@pytest.mark.parametrize("strategy", ["best_of_n", "vote", "mbr"])
async def test_a_winners_calls_stream(thinker: Thinker, strategy: str) -> None:
    wish: dict[str, Any] = {"strategy": strategy, "params": {"n": 3}}
    wish |= {"reward": "word"} if strategy == "best_of_n" else {}
    wish["params"] |= {"extractor": "tool_call"} if strategy == "vote" else {}
    thinker.author.write(*(f"<think>a</think>{text}" for text in (CALL, SAME_CALL, CALL)))
    client = AsyncOpenAI(base_url="http://toy/v1", api_key="none", http_client=thinker.http)
    stream = await client.chat.completions.create(
        model="toy", messages=HI, tools=TOOLS, stream=True, extra_body={"alignment": wish}
    )  # type: ignore[call-overload]
    thoughts = name = arguments = ""
    async for event in stream:
        for choice in event.choices:
            thoughts += getattr(choice.delta, "reasoning", None) or ""
            for call in choice.delta.tool_calls or ():
                name += call.function.name or ""
                arguments += call.function.arguments or ""
    assert (thoughts, name, json.loads(arguments)) == ("a", "get_weather", {"city": "Paris", "days": 3})


async def test_answers_drawn_together_stand_behind_their_thoughts(thinker: Thinker) -> None:
    """The thoughts are of both, so the client gets them with either."""
    thinker.author.write("<think>which?</think>### Response 1\nabcd\n### Response 2\na")
    wish = {"strategy": "best_of_n", "reward": "on_answer", "params": {"n": 2, "diverse": {"together": 2}}}
    answer = await thinker.search({**wish, "return": ["candidates"]})
    message, [choice] = answer["choices"][0]["message"], answer["alignment"]["choices"]
    assert (message["reasoning"], message["content"]) == ("which?", "a")
    assert [c["text"] for c in choice["candidates"]] == ["abcd", "a"]


async def test_likeness_is_of_answers(thinker: Thinker) -> None:
    """By their thoughts the first two are the most alike, by their answers the last two."""
    thoughts = "one two three four five six seven eight nine ten"
    texts = [f"<think>{thoughts}</think>x", f"<think>{thoughts}</think>y", "<think>a</think>z", "<think>b</think>z"]
    for utility in ("rouge1", "token_f1"):
        thinker.author.write(*texts)
        answer = await thinker.search({"strategy": "mbr", "params": {"n": 4, "utility": utility}})
        assert answer["choices"][0]["message"]["content"] == "z"


UNTRIED = {
    "cohere_command3": "needs the package cohere_melody",
    "cohere_command4": "needs the package cohere_melody",
    "hf": "goes with the tool parser hf alone",
    "olmo3": "spells its marks with pieces of one vocabulary",
    "openai_gptoss": "reads an encoding that is downloaded",
}
"""Reasoning parsers that cannot be tried here, and why."""

MARKS: dict[str, tuple[str, ...]] = {
    "gemma4": ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|turn>", "<|tool_response>"),
    "granite": ("Here is my thought process:", "Here is my response:"),
    "hunyuan_a13b": ("<think>\n", "\n</think>\n<answer>\n"),
    "inkling": (
        *("<|content_thinking|>", "<|end_message|><|content_text|>", "<|end_message|>", "<|content_text|>"),
        *("<|message_model|>", "<|content_invoke_tool_json|>", "<|content_invoke_tool_text|>"),
    ),
    "kimi_k3": ("<|open|>think<|sep|>", "<|close|>think<|sep|><|open|>response<|sep|>"),
    "k2_horizon": (
        *("<ifm|think>", "</ifm|think>", "<ifm|think_fast>", "</ifm|think_fast>"),
        *("<ifm|think_faster>", "</ifm|think_faster>", "<ifm|tool_calls>"),
    ),
    "minimax_m3": ("<mm:think>", "</mm:think>"),
    "mistral": ("[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]"),
    "poolside_v1": ("<think>", "</think>", "<assistant>"),
    "seed_oss": ("<seed:think>", "</seed:think>"),
}
"""parser -> what opens its thoughts, what ends them, and what else its vocabulary must have; <think> elsewhere"""

WHOLE = {
    "hy_v3": "thinks only as its template says",
    "minimax_m2_append_think": "leaves the thoughts in the content, as it says",
    "muse_glimmer": "looks for messages to itself",
    "plamo3": "thinks only as its template says",
    "poolside_v1": "thinks only as its template says",
    "step3": "leaves the opening mark in the thoughts",
}
"""Parsers that take these texts otherwise, and how."""


def test_every_reasoning_parser_is_known() -> None:
    assert set(MARKS) | set(UNTRIED) <= set(ReasoningParserManager.list_registered())


@pytest.mark.slow
@pytest.mark.parametrize("parser", sorted(set(ReasoningParserManager.list_registered()) - set(UNTRIED)))
async def test_rewards_read_the_content(tmp_path: Path, parser: str) -> None:
    """Whatever vLLM's parser makes of a completion: the candidate's answer is the client's content."""
    opening, ending, *others = MARKS.get(parser, ("<think>", "</think>"))
    made = await make_thinker(tmp_path, parser, (opening, ending, *others))
    async with made.http:
        for text in (f"{opening}de{ending}abc", f"de{ending}abc", f"{opening}de", "abc"):
            made.author.write(text)
            wish = {"strategy": "best_of_n", "reward": "on_answer", "params": {"n": 1}, "return": ["candidates"]}
            more = {"chat_template_kwargs": {"thinking": True}} if parser == "deepseek_v3" else {}
            answer = await made.search(wish, **more)
            message, [choice] = answer["choices"][0]["message"], answer["alignment"]["choices"]
            content = message["content"] or ""
            assert choice["candidates"][0]["text"] == content, text
            assert choice["candidates"][0].get("thoughts", "") == (message.get("reasoning") or ""), text
            assert choice["value"] == -abs(len(content) - 1), text
            if text == f"{opening}de{ending}abc" and parser not in WHOLE:
                assert (content, message["reasoning"].strip()) == ("abc", "de")
