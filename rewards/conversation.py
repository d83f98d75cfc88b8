"""A conversation with tools as plain turns, for whatever reads roles and texts alone.

    tools      before the first words of the system or the user:   Tools:
                                                                   {"name": "look", "parameters": {…}}
    calls      in the assistant's turn, behind its text:           {"name": "look", "arguments": {"at": "it"}}
    results    in a turn of the tool's:                            Result of look: seen

One line of JSON for each tool and call. Where the assistant called several tools in a turn, a result says which of the
calls it is of: "Result of call 2, look: seen". A result of no call in sight is a "Result".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from trimtab.rewards.protocols import Response

Message = Mapping[str, Any]

RESULT = "tool"
"""The role of a result."""
MAX_DEPTH = 100
"""Objects and lists in a call's arguments, one inside the other."""


def has_calls(messages: Sequence[Message]) -> bool:
    """Whether tools are called in a conversation, or answer."""
    return any("tool_calls" in message or message["role"] == RESULT for message in messages)


def as_message(response: Response) -> Message:
    """The assistant's message that a response is. Its calls have ids as strict templates want them: nine letters and
    digits."""
    calls = [
        {"id": f"call{i:05}", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for i, call in enumerate(response.calls, 1)
    ]
    return {"role": "assistant", "content": response.text} | ({"tool_calls": calls} if calls else {})


def spell_out_response(response: Response) -> str:
    """Its text, calls included."""
    [turn] = spell_out_calls([as_message(response)])
    return turn["content"]


def parse_arguments(call: Message) -> Any:
    """A call's arguments; their text, where that is no JSON or no template could show it: nested beyond what a body may
    be, or with half of a surrogate pair."""
    text = call["function"]["arguments"]
    with suppress(ValueError, RecursionError):
        arguments = json.loads(text)
        json.dumps(arguments, ensure_ascii=False).encode()
        if is_shallow(arguments):
            return arguments
    return text


def is_shallow(value: Any) -> bool:
    """Whether its objects and lists are nested no more than `MAX_DEPTH` deep."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        children = (outer.values() if isinstance(outer, dict) else outer for outer in level)
        level = [inner for inners in children for inner in inners if isinstance(inner, dict | list)]
        if not level:
            return True
    return False


def spell_out(messages: Sequence[Message], tools: Sequence[Message]) -> list[dict[str, str]]:
    """{"role", "content"} of each message, tools, calls and results included."""
    return spell_out_tools(spell_out_calls(messages), tools)


def spell_out_calls(messages: Sequence[Message]) -> list[dict[str, str]]:
    """{"role", "content"} of each message, calls and results included."""
    names: dict[str, str] = {}
    turns = []
    for message in messages:
        content = message["content"]
        if message["role"] == RESULT:
            name = names.get(message.get("tool_call_id", ""), message.get("name", ""))
            content = f"Result of {name}: {content}" if name else f"Result: {content}"
        if calls := message.get("tool_calls", ()):
            names |= dict(_name_calls(calls))
            content = "\n".join([*filter(None, [content]), *map(_spell_out_call, calls)])
        turns.append({"role": message["role"], "content": content})
    return turns


def spell_out_tools(messages: Sequence[Message], tools: Sequence[Message]) -> list[Any]:
    """The messages, with the tools before the first words of the system or the user."""
    if not tools:
        return list(messages)
    text = "\n".join(["Tools:", *(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)])
    if not messages or messages[0]["role"] not in ("system", "user"):
        return [{"role": "system", "content": text}, *messages]
    first, *rest = messages
    return [{**first, "content": f"{text}\n\n{first['content']}"}, *rest]


def as_dialogue(turns: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Plain turns without tools of their own, for templates that know two speakers who alternate: results are the
    user's words, one turn with each other and with what the user says on them."""
    dialogue: list[dict[str, str]] = []
    joins = False
    for turn in turns:
        role, content = turn["role"], turn["content"]
        is_result = role == RESULT
        role = "user" if is_result else role
        if joins and role == "user":
            content = f"{dialogue.pop()['content']}\n\n{content}"
        dialogue.append({"role": role, "content": content})
        joins = (joins or is_result) and role == "user"
    return dialogue


def _name_calls(calls: Sequence[Message]) -> Iterator[tuple[str, str]]:
    """id -> how a result refers to the call"""
    for i, call in enumerate(calls, 1):
        name = call["function"]["name"]
        yield call.get("id", ""), name if len(calls) == 1 else f"call {i}, {name}"


def _spell_out_call(call: Message) -> str:
    shown = {"name": call["function"]["name"], "arguments": parse_arguments(call)}
    return json.dumps(shown, ensure_ascii=False)
