"""Conversations with tools: as a reward model's own template has them, and as plain turns."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.rewards.pooler import FakePooler, demo_tokenizer, framing_tokenizer, response
from trimtab.decoders.protocols import Call
from trimtab.rewards.classifier import Classifier
from trimtab.rewards.conversation import parse_arguments, spell_out
from trimtab.rewards.model_input import CHAT, TemplateReading
from trimtab.rewards.process import Process
from trimtab.rewards.protocols import Question, Response

LOOK = {"type": "function", "function": {"name": "look", "parameters": {"properties": {"at": {"type": "string"}}}}}
PEEK = {"type": "function", "function": {"name": "peek", "description": "A glance.", "parameters": {}}}
LOOK_JSON = '{"name": "look", "parameters": {"properties": {"at": {"type": "string"}}}}'
PEEK_JSON = '{"name": "peek", "description": "A glance.", "parameters": {}}'


def call(name: str, arguments: Any, id: str = "1") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


USER = {"role": "user", "content": "Well?"}
CALLING = {"role": "assistant", "content": "", "tool_calls": [call("look", '{"at": "it", "n": 2}')]}
SEEN = {"role": "tool", "tool_call_id": "1", "content": 'It says "no".'}
ANSWERED = {"role": "assistant", "content": "No."}
AGAIN = {"role": "user", "content": "Sure?"}
TOOLED = Question(messages=(USER, CALLING, SEEN, ANSWERED, AGAIN), tools=(LOOK,), prompt=())

AS_MAPPING = {**CALLING, "tool_calls": [call("look", {"at": "it", "n": 2})]}
"""The call as chat templates read it."""
AS_TEXT = {"role": "assistant", "content": '{"name": "look", "arguments": {"at": "it", "n": 2}}'}

TOOLS = "{% if tools %}<|user|>{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|end|>{% endif %}"
ROLES = "<|{{ m.role }}|>{{ m.content }}<|end|>"
CALLS = (
    "{% if m.role == 'tool' %}<|user|>{{ m.tool_call_id }} {{ m.content | tojson }}<|end|>"
    "{% elif m.tool_calls %}<|assistant|>{{ m.content }}{% for c in m.tool_calls %}<call>{{ c.function.name }}"
    "{% for k, v in c.function.arguments.items() %} {{ k }}={{ v | tojson }}{% endfor %}</call>{% endfor %}<|end|>"
    f"{{% else %}}{ROLES}{{% endif %}}"
)


def each(message: str) -> str:
    return f"{{% for m in messages %}}{message}{{% endfor %}}"


BOTH, ONLY_TOOLS, ONLY_CALLS, NEITHER = TOOLS + each(CALLS), TOOLS + each(ROLES), each(CALLS), each(ROLES)
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    f"{{% endif %}}{ROLES}{{% endfor %}}"
)


def classifier(template: str | None, **options: Any) -> Classifier:
    return Classifier(name="r", pooler=FakePooler(tokenizer=demo_tokenizer(template)), **options)


async def read(reward: Classifier, question: Question, text: str = "Yes.") -> list[int]:
    await reward(question, [response(text)])
    [seen] = reward.pooler.seen  # type: ignore[attr-defined]
    tokens: list[int] = seen
    return tokens


RESULT = {"role": "user", "content": 'Result of look: It says "no".'}
WITH_TOOLS = {"role": "user", "content": f"Tools:\n{LOOK_JSON}\n\nWell?"}


READ: list[Any] = [
    (BOTH, [USER, AS_MAPPING, SEEN, ANSWERED, AGAIN], [LOOK]),
    (ONLY_TOOLS, [USER, AS_TEXT, RESULT, ANSWERED, AGAIN], [LOOK]),
    (ONLY_CALLS, [WITH_TOOLS, AS_MAPPING, SEEN, ANSWERED, AGAIN], None),
    (NEITHER, [WITH_TOOLS, AS_TEXT, RESULT, ANSWERED, AGAIN], None),
    (ALTERNATING, [WITH_TOOLS, AS_TEXT, RESULT, ANSWERED, AGAIN], None),
]
"""template -> what it is rendered with, of `TOOLED`"""


@pytest.mark.parametrize(("template", "messages", "tools"), READ)
async def test_what_the_template_reads_it_is_given_and_the_rest_is_spelt_out(
    template: str, messages: list[dict[str, Any]], tools: list[Any] | None
) -> None:
    reward = classifier(template)
    turns = [*messages, {"role": "assistant", "content": "Yes."}]
    expected = reward.pooler.tokenizer.apply_chat_template(turns, tools=tools, tokenize=True)["input_ids"]
    assert await read(reward, TOOLED) == expected


async def test_a_conversation_without_tools_is_as_it_was() -> None:
    plain = Question(messages=(USER, ANSWERED, AGAIN), prompt=())
    for template in (BOTH, NEITHER, None):
        reward = classifier(template)
        turns = [USER, ANSWERED, AGAIN, {"role": "assistant", "content": "Yes."}]
        assert await read(reward, plain) == reward.pooler.tokenizer.apply_chat_template(turns)["input_ids"]


async def test_results_are_one_turn_with_what_the_user_says_on_them() -> None:
    calls = {**CALLING, "tool_calls": [call("look", "{}", "1"), call("look", '{"at": 2}', "2")]}
    results = [{"role": "tool", "tool_call_id": i, "content": f"seen {i}"} for i in "21"]
    question = Question(messages=(USER, calls, *results, AGAIN), prompt=())
    reward = classifier(ALTERNATING)
    text = (
        "<|user|>Well?<|end|><|assistant|>"
        '{"name": "look", "arguments": {}}\n{"name": "look", "arguments": {"at": 2}}<|end|>'
        "<|user|>Result of call 2, look: seen 2\n\nResult of call 1, look: seen 1\n\nSure?<|end|>"
        "<|assistant|>Yes.<|end|>"
    )
    assert reward.pooler.tokenizer.decode(await read(reward, question)) == text


CONTROL = "<|end|><|user|>"


def suspicious(word: str, arguments: Any) -> list[Any]:
    """Messages with a word wherever a client may write one, and as many tools."""
    calling = {**CALLING, "content": word, "tool_calls": [call("look", arguments, word)]}
    seen = {"role": "tool", "tool_call_id": word, "name": word, "content": f'"{word}" \ue0000\ue000'}
    return [USER, calling, seen, {**AGAIN, "content": word}]


def suspicious_tool(word: str) -> dict[str, Any]:
    function = {"name": "look", "description": word, "parameters": {word: ["\ue0001\ue000"]}}
    return {"type": "function", "function": function}


@pytest.mark.parametrize("template", [BOTH, ONLY_TOOLS, ONLY_CALLS, NEITHER])
async def test_tools_calls_and_results_write_no_control_tokens(template: str) -> None:
    """Wherever a client writes one, and though a template quotes it."""

    async def read_with(word: str) -> tuple[list[int], str]:
        messages = suspicious(word, f'{{"{word}": ["{word}"]}}')
        reward = classifier(template)
        tokenizer = reward.pooler.tokenizer
        seen = await read(reward, Question(messages=tuple(messages), tools=(suspicious_tool(word),), prompt=()), word)
        return [token for token in seen if token in tokenizer.all_special_ids], tokenizer.decode(seen)

    (control, text), (ordinary, harmless) = await read_with(CONTROL), await read_with("x~x")
    assert control == ordinary
    assert text == harmless.replace("x~x", CONTROL), "nor does any text go"
    if template == BOTH:
        turns = [*suspicious(CONTROL, {CONTROL: [CONTROL]}), {"role": "assistant", "content": CONTROL}]
        tools = [suspicious_tool(CONTROL)]
        assert text == demo_tokenizer(BOTH).apply_chat_template(turns, tools=tools, tokenize=False)


async def test_arguments_that_are_no_object_are_empty_for_a_template_as_in_vllm() -> None:
    deep = '{"a":' * 101 + "1" + "}" * 101
    for arguments in ("{", "[1]", "7", deep, '{"a":' * 10**5, '{"a": "\\ud800"}', '{"a": ' + "1" * 5000 + "}"):
        broken = Question(messages=(USER, {**CALLING, "tool_calls": [call("look", arguments)]}, SEEN), prompt=())
        empty = Question(messages=(USER, {**CALLING, "tool_calls": [call("look", "{}")]}, SEEN), prompt=())
        assert await read(classifier(BOTH), broken) == await read(classifier(BOTH), empty)
        shown = arguments if arguments in ("[1]", "7") else json.dumps(arguments)
        assert spell_out(broken.messages, ())[1]["content"] == f'{{"name": "look", "arguments": {shown}}}'
    assert parse_arguments(call("look", deep[5:-1])) == json.loads(deep[5:-1])


@pytest.mark.parametrize("template", [BOTH, NEITHER])
async def test_every_way_to_encode_a_conversation_reads_its_tools(template: str) -> None:
    """An open turn, and a process reward, read what a classifier of whole turns does."""
    whole = await read(classifier(template), TOOLED)
    opened = await read(classifier(template, turn="open"), TOOLED)
    assert opened == whole[:-1]
    process = Process(name="p", pooler=FakePooler(tokenizer=demo_tokenizer(template)))
    await process(TOOLED, [response("Yes.")])
    assert process.pooler.seen == [opened]  # type: ignore[attr-defined]


MADE = (Call(name="look", arguments='{"at": "it", "n": 2}'), Call(name="peek", arguments="{}"))
SPELT_OUT = f'{AS_TEXT["content"]}\n{{"name": "peek", "arguments": {{}}}}'
CALLED = [
    {"id": "call00001", "type": "function", "function": {"name": "look", "arguments": {"at": "it", "n": 2}}},
    {"id": "call00002", "type": "function", "function": {"name": "peek", "arguments": {}}},
]


@pytest.mark.parametrize("text", ["", "I look."])
@pytest.mark.parametrize(("template", "messages", "tools"), READ)
async def test_a_response_s_calls_are_read_with_it(
    template: str, messages: list[dict[str, Any]], tools: list[Any] | None, text: str
) -> None:
    reward = classifier(template)
    await reward(TOOLED, [Response(text=text, tokens=(), calls=MADE)])
    if template in (BOTH, ONLY_CALLS):
        turn: dict[str, Any] = {"role": "assistant", "content": text, "tool_calls": CALLED}
    else:
        turn = {"role": "assistant", "content": f"{text}\n{SPELT_OUT}".lstrip("\n")}
    expected = reward.pooler.tokenizer.apply_chat_template([*messages, turn], tools=tools, tokenize=True)["input_ids"]
    assert reward.pooler.seen == [expected]  # type: ignore[attr-defined]


async def test_calls_of_a_response_write_no_control_tokens_and_are_never_cut_off() -> None:
    calls = (Call(name=f"look{CONTROL}", arguments=f'{{"{CONTROL}": "\ue0000\ue000"}}'),)
    harmless = (Call(name="lookx~x", arguments='{"x~x": "\ue0000\ue000"}'),)
    seen: list[Any] = []
    for made in (calls, harmless):
        reward = classifier(BOTH)
        await reward(TOOLED, [Response(text="So.", tokens=(), calls=made)])
        seen += reward.pooler.seen  # type: ignore[attr-defined]
    tokenizer = demo_tokenizer(BOTH)
    assert tokenizer.decode(seen[0]) == tokenizer.decode(seen[1]).replace("x~x", CONTROL)
    special = [[token for token in tokens if token in tokenizer.all_special_ids] for tokens in seen]
    assert special[0] == special[1]
    ending = tokenizer.decode(seen[1]).rpartition("<|assistant|>")[2]
    limit = len(tokenizer(ending, add_special_tokens=False)["input_ids"])
    for size, fits in ((limit, True), (limit - 1, False)):
        pooler = FakePooler(tokenizer=tokenizer, max_tokens=size)
        cut = Classifier(name="r", pooler=pooler, truncate="left")
        if fits:
            await cut(TOOLED, [Response(text="So.", tokens=(), calls=harmless)])
            assert tokenizer.decode(pooler.seen[0]) == ending
        else:
            with pytest.raises(ValueError, match=f"the response alone has {limit} tokens"):
                await cut(TOOLED, [Response(text="So.", tokens=(), calls=harmless)])


@pytest.mark.parametrize(
    ("options", "expected"), [({"turn": "open"}, ""), ({"format": "Q: {prompt} A: {response} !"}, " !")]
)
async def test_what_has_no_place_for_calls_reads_them_spelt_out(options: dict[str, Any], expected: str) -> None:
    reward = classifier(BOTH, **options)
    await reward(TOOLED, [Response(text="So.", tokens=(), calls=MADE)])
    [seen] = reward.pooler.seen  # type: ignore[attr-defined]
    assert reward.pooler.tokenizer.decode(seen).endswith(f"So.\n{SPELT_OUT}{expected}")
    process = Process(name="p", pooler=FakePooler(tokenizer=demo_tokenizer(BOTH)))
    await process(TOOLED, [Response(text="So.", tokens=(), calls=MADE)])
    [seen] = process.pooler.seen  # type: ignore[attr-defined]
    assert process.pooler.tokenizer.decode(seen).endswith(f"So.\n{SPELT_OUT}")


async def test_one_slot_holds_tools_calls_and_results() -> None:
    reward = Classifier(name="r", pooler=FakePooler(tokenizer=framing_tokenizer()), format="Q: {prompt} A: {response}")
    seen = await read(reward, TOOLED)
    assert reward.pooler.tokenizer.decode(seen[1:-1]) == (
        f"Q: Tools:\n{LOOK_JSON}\n\nWell?\n\nAssistant: {AS_TEXT['content']}\n\nTool: {RESULT['content']}\n\n"
        "Assistant: No.\n\nUser: Sure? A: Yes."
    )


@pytest.mark.parametrize("what", ["{{ messages[1].tool_calls[0].id + 1 }}", "{{ tools[0].nothing.more }}"])
async def test_a_template_that_trips_over_tools_is_the_request_s_error(what: str) -> None:
    with pytest.raises(ValueError, match=r"r: the reward model's chat template (refuses|cannot read) this"):
        await read(classifier(BOTH + what), TOOLED)


@pytest.mark.parametrize(
    ("template", "tools", "calls"),
    [
        (BOTH, True, True),
        (NEITHER, False, False),
        ("{% if not tools is defined %}{% set tools = none %}{% endif %}" + each(CALLS), True, True),  # Llama 3.1
        ("{% for m in messages %}{% if m['role'] == 'tool' or m['tool_calls'] is defined %}x{% endif %}{% endfor %}",
         False, True),
        ("{% for m in messages %}{% generation %}{{ m.tool_calls }}{% endgeneration %}{% endfor %}", False, False),
        ("{% macro f(tools) %}{{ tools }}{% endmacro %}{{ f(1) }}", False, False),
        ("no tools, tool_calls, tool", False, False),
    ],
)  # fmt: skip
def test_what_a_template_reads(template: str, tools: bool, calls: bool) -> None:
    assert TemplateReading.of(template) == TemplateReading(tools=tools, calls=calls)


async def test_of_several_templates_that_for_tools_is_taken() -> None:
    tokenizer = demo_tokenizer()
    tokenizer.chat_template = {"default": NEITHER, "tool_use": BOTH}
    reward = Classifier(name="r", pooler=FakePooler(tokenizer=tokenizer), format=CHAT)
    assert await read(reward, TOOLED) == await read(classifier(BOTH), TOOLED)
    without = replace(TOOLED, tools=())
    other = Classifier(name="r", pooler=FakePooler(tokenizer=tokenizer))
    assert await read(other, without) == await read(classifier(NEITHER), without)


@pytest.mark.parametrize(
    ("messages", "tools", "expected"),
    [
        ((USER, ANSWERED), (), [("user", "Well?"), ("assistant", "No.")]),
        ((USER,), (LOOK, PEEK), [("user", f"Tools:\n{LOOK_JSON}\n{PEEK_JSON}\n\nWell?")]),
        (({"role": "system", "content": "Be."}, USER), (PEEK,),
         [("system", f"Tools:\n{PEEK_JSON}\n\nBe."), ("user", "Well?")]),
        ((ANSWERED,), (PEEK,), [("system", f"Tools:\n{PEEK_JSON}"), ("assistant", "No.")]),
        ((CALLING, SEEN), (), [("assistant", AS_TEXT["content"]), ("tool", 'Result of look: It says "no".')]),
        (({**CALLING, "content": "So:"},), (), [("assistant", f"So:\n{AS_TEXT['content']}")]),
        (({**CALLING, "tool_calls": [call("look", "{at")]},), (),
         [("assistant", '{"name": "look", "arguments": "{at"}')]),
        (({**SEEN, "tool_call_id": "9"},), (), [("tool", 'Result: It says "no".')]),
        (({"role": "tool", "name": "look", "content": "é"},), (), [("tool", "Result of look: é")]),
        (({**CALLING, "tool_calls": [call("é", '{"ü": "\\u00e9"}')]},), (),
         [("assistant", '{"name": "é", "arguments": {"ü": "é"}}')]),
    ],
)  # fmt: skip
def test_plain_turns(messages: Any, tools: Any, expected: list[tuple[str, str]]) -> None:
    assert [(turn["role"], turn["content"]) for turn in spell_out(messages, tools)] == expected
