"""What a request asks, as messages: what rewards read beside the answers, and what an instruction joins."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trimtab.server.errors import ApiError
from trimtab.server.request.body import Json
from trimtab.server.wording import quote

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"

Messages = tuple[dict[str, str], ...]


def check_messages(document: Json) -> None:
    """Raises ApiError for messages that are of no message's shape, which vLLM meets with errors of Python's."""
    messages = document.get("messages", [])
    if isinstance(messages, str):
        return  # vLLM says it well
    if not isinstance(messages, list):
        raise ApiError(f"messages must be an array of messages; got {quote(messages)}", param="messages")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ApiError(f"messages.{i} must be an object; got {quote(message)}", param=f"messages.{i}")
        if not isinstance(message.get("content"), str | list | None):
            shown = quote(message["content"])
            valid = "a text, an array of parts or null"
            raise ApiError(f"messages.{i}.content must be {valid}; got {shown}", param=f"messages.{i}.content")
        if not isinstance(message.get("tool_calls"), list | None):
            shown = quote(message["tool_calls"])
            at = f"messages.{i}.tool_calls"
            raise ApiError(f"{at} must be an array of calls; got {shown}", param=at)


def parse_messages(path: str, document: Json) -> Messages:
    """{"role", "content"} of a chat, responses or Anthropic request; none for bare prompts, whose tokens say it all.

    It reads what vLLM renders at that path and nothing else. What is malformed is left out: vLLM's own request model
    refuses it. Calls of tools stand in the content as JSON, thoughts do not.
    """
    if path == COMPLETIONS:
        return ()
    system = document.get({RESPONSES: "instructions", MESSAGES: "system"}.get(path, ""))
    parsed = [{"role": "system", "content": text}] if (text := _text(system)) else []
    items = document.get("input" if path == RESPONSES else "messages")
    if isinstance(items, str) and path == RESPONSES:
        items = [{"role": "user", "content": items}]
    for item in items if isinstance(items, list) else ():
        if isinstance(item, Mapping):
            parsed += _parse_item(item)
    return tuple(parsed)


def _parse_item(item: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """The messages that an item of a conversation stands for."""
    content = item.get("content")
    if item.get("type") in ("function_call", "custom_tool_call"):
        yield {"role": "assistant", "content": _call(item)}
    if item.get("type") in ("function_call_output", "custom_tool_call_output"):
        yield {"role": "tool", "content": _text(item.get("output"))}
    if not isinstance(item.get("role"), str):
        return
    parts = _objects(content)
    results = [part for part in parts if part.get("type") == "tool_result"]
    for result in results:
        yield {"role": "tool", "content": _text(result.get("content"))}
    calls = [call.get("function", call) for call in _objects(item.get("tool_calls"))]
    calls += [part for part in parts if part.get("type") == "tool_use"]
    text = "\n".join([*filter(None, [_text(content)]), *(_call(call) for call in calls if isinstance(call, Mapping))])
    if text or not results:
        yield {"role": "system" if item["role"] == "developer" else item["role"], "content": text}


def _objects(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list; none of what is no list."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _call(call: Mapping[str, Any]) -> str:
    """A tool that the assistant calls, as JSON."""
    arguments: Any = next((call[key] for key in ("arguments", "input") if key in call), {})
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    return json.dumps({"name": call.get("name"), "arguments": arguments}, ensure_ascii=False)


def _text(content: Any) -> str:
    """The text of a message's content: a string, or a list of parts."""
    return content if isinstance(content, str) else "\n".join(_parts(content))


def _parts(content: Any) -> Iterator[str]:
    for part in content if isinstance(content, list) else ():
        text = part.get("text", part.get("refusal")) if isinstance(part, Mapping) else part
        if isinstance(text, str):
            yield text


def split_conversation(path: str, document: Json) -> tuple[Messages, str]:
    """The conversation, and the beginning of its answer where the request has one continued; "" elsewhere.

    Raises ApiError for a request whose answer no reward could tell from the conversation.
    """
    messages, last = parse_messages(path, document), None
    if document.get("previous_response_id"):
        raise _unreadable("previous_response_id", "it stands for messages that no reward can read")
    if path == RESPONSES and isinstance(document.get("input"), list) and document["input"]:
        last = document["input"][-1]
        if not isinstance(last, Mapping) or last.get("status") not in ("in_progress", "incomplete"):
            return messages, ""
        field = "input"
    elif path == CHAT and _is_true(document.get("continue_final_message")):
        last, field = (document.get("messages") or [None])[-1], "continue_final_message"
    elif path == CHAT and document.get("add_generation_prompt") is not None:
        if not _is_true(document["add_generation_prompt"]):
            raise _unreadable("add_generation_prompt", "without it the answer is no message of the assistant's")
        return messages, ""
    elif path == MESSAGES and messages and messages[-1]["role"] == "assistant":
        raise _unreadable("messages", "the last one is the assistant's, and this path does not continue it")
    else:
        return messages, ""
    is_text = isinstance(last, Mapping) and last.get("type", "message") == "message" and not last.get("tool_calls")
    if not is_text or not messages or messages[-1]["role"] != "assistant":
        raise _unreadable(field, "what is continued must be a text of the assistant's")
    return messages[:-1], messages[-1]["content"]


def _unreadable(field: str, why: str) -> ApiError:
    return ApiError(f"{field} cannot be combined with rewards: {why}", param=field, code="unsupported_pair")


def _is_true(value: object) -> bool:
    """As vLLM's request models read it; what is neither true nor false they refuse."""
    try:
        return TypeAdapter(bool).validate_python(value)
    except ValidationError:
        return False


def instruct(path: str, document: Json, instruction: str, role: str) -> Json:
    """The body under an instruction: joined to its system message, or ("user") before the user's last words.

    An instruction comes first, and a blank line parts it from what it joins. Raises ValueError where there is nothing
    to join.
    """
    if path == COMPLETIONS:
        raise ValueError("what instructs the model needs a chat request: a bare prompt has no messages")
    key = "input" if path == RESPONSES else "messages"
    system = {RESPONSES: "instructions", MESSAGES: "system"}.get(path)
    if role == "system" and system is not None:
        return document | {system: _join(instruction, document.get(system))}
    content = document.get(key)
    content = [{"role": "user", "content": content}] if isinstance(content, str) else content
    items = list(content) if isinstance(content, list) else []
    roles = ("system", "developer") if role == "system" else ("user",)
    places = [i for i, item in enumerate(items) if isinstance(item, Mapping) and item.get("role") in roles]
    if role == "system" and 0 not in places:
        return document | {key: [{"role": "system", "content": instruction}, *items]}
    if not places:
        raise ValueError("what instructs the model needs a message of the user's")
    place = 0 if role == "system" else places[-1]
    items[place] = {**items[place], "content": _join(instruction, items[place].get("content"))}
    return document | {key: items}


def _join(instruction: str, content: Any) -> Any:
    """An instruction before a message's content, in its first part where that is text."""
    if not isinstance(content, list):
        return f"{instruction}\n\n{content}" if content else instruction
    head = content[0] if content else None
    if isinstance(head, Mapping) and isinstance(head.get("text"), str):
        return [{**head, "text": f"{instruction}\n\n{head['text']}"}, *content[1:]]
    return [{"type": "text", "text": instruction}, *content]
