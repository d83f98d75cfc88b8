"""What a request asks, as messages: what rewards read beside the answers, and what an instruction joins."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trimtab.runtime.contexts import Instruction
from trimtab.server.errors import ApiError
from trimtab.server.request.body import Json
from trimtab.server.wording import quote

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"

Messages = tuple[dict[str, Any], ...]

TEXTS = frozenset({"text", "input_text", "output_text", "refusal", "tool_reference"})
"""Types of parts that are text, in one API or another."""
SILENT = frozenset({"thinking", "redacted_thinking", "reasoning_text", "summary_text"})
"""Those that rewards are not shown, because they are thoughts."""
CALLS = frozenset({"tool_use", "tool_result", "tool_addition", "tool_removal"})
"""Those that are no part of a message's words: what vLLM makes calls, results and tools of."""
MEDIA = frozenset(
    {"image_url", "image_pil", "image_embeds", "input_audio", "audio_url", "audio_embeds", "video_url", "video_embeds"}
    | {"prompt_embeds"}
)
"""Keys by which vLLM tells what is no text, whatever its type."""


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


def parse_messages(chat: Json) -> Messages:
    """The messages of a chat request's body, as `rewards.protocols.Question` has them.

    What is malformed is left out: vLLM's own request model refuses it. Thoughts are left out too.
    """
    messages = chat.get("messages")
    return tuple(
        _parse_message(message)
        for message in (messages if isinstance(messages, list) else ())
        if isinstance(message, Mapping) and isinstance(message.get("role"), str) and not _is_thought(message)
    )


def _parse_message(message: Mapping[str, Any]) -> dict[str, Any]:
    role = message["role"]
    parsed = {"role": "system" if role == "developer" else role, "content": _text(message.get("content"))}
    parsed |= {key: message[key] for key in ("tool_call_id", "name") if isinstance(message.get(key), str)}
    if role == "assistant" and (calls := [*_parse_calls(message.get("tool_calls"))]):
        parsed["tool_calls"] = calls
    return parsed


def _parse_calls(calls: Any) -> Iterator[dict[str, Any]]:
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            arguments = function.get("arguments") or "{}"
            if not isinstance(arguments, str):
                arguments = json.dumps(arguments, ensure_ascii=False)
            ids = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
            yield {**ids, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _is_thought(message: Mapping[str, Any]) -> bool:
    """Whether it is a turn of thoughts and nothing else."""
    return bool(message.get("reasoning")) and not message.get("content") and not message.get("tool_calls")


def parse_tools(chat: Json) -> tuple[Mapping[str, Any], ...]:
    """The tools of a chat request's body; what is malformed, vLLM's own request model refuses."""
    tools = chat.get("tools")
    return tuple(tool for tool in (tools if isinstance(tools, list) else ()) if isinstance(tool, Mapping))


def _text(content: Any) -> str:
    """The text of a message's content: a string, or a list of parts."""
    return content if isinstance(content, str) else "\n".join(_parts(content))


def _parts(content: Any) -> Iterator[str]:
    for part in content if isinstance(content, list) else ():
        keys = ("text", "refusal", *(("name",) if _type(part) == "tool_reference" else ()))
        text = next((part[key] for key in keys if key in part), None) if isinstance(part, Mapping) else part
        if isinstance(text, str):
            yield text


def _type(part: Any) -> Any:
    return part.get("type") if isinstance(part, Mapping) else None


def find_unreadable(path: str, document: Json) -> Iterator[tuple[str, str]]:
    """(place, type) of each part of a conversation that is neither text nor a call, a result or a thought."""
    if path == COMPLETIONS:
        return
    if path == MESSAGES:
        yield from _find_unreadable(document.get("system"), "system")
    key = "input" if path == RESPONSES else "messages"
    items = document.get(key)
    for i, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, Mapping):
            for field in ("content", "output"):
                yield from _find_unreadable(item.get(field), f"{key}.{i}.{field}")


def _find_unreadable(content: Any, at: str) -> Iterator[tuple[str, str]]:
    for i, part in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(part, Mapping):
            continue
        kind, media = _type(part), sorted(MEDIA & part.keys())
        if kind == "tool_result":
            yield from _find_unreadable(part.get("content"), f"{at}.{i}.content")
        elif media or (isinstance(kind, str) and kind not in TEXTS | SILENT | CALLS):
            yield f"{at}.{i}", str(kind or media[0])


def split_conversation(path: str, document: Json, chat: Json) -> tuple[Messages, str]:
    """The conversation, and the beginning of its answer where the request has one continued; "" elsewhere.

    `chat` is the body `document` as a chat request has it. Raises ApiError for a request whose answer no reward could
    tell from the conversation.
    """
    messages, last = parse_messages(chat), None
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
    if not is_text or not messages or messages[-1]["role"] != "assistant" or "tool_calls" in messages[-1]:
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


SYSTEM = ("system", "developer")
"""Roles of system messages."""


def instruct(path: str, document: Json, instruction: Instruction) -> Json:
    """The body under an instruction: joined to its system message, or ("user") before the user's last words.

    An instruction comes first, and a blank line parts it from what it joins. Raises ValueError where there is nothing
    to join.
    """
    text, role = instruction.text, instruction.role
    if path == COMPLETIONS:
        raise ValueError("what instructs the model needs a chat request: a bare prompt has no messages")
    key = "input" if path == RESPONSES else "messages"
    system = {RESPONSES: "instructions", MESSAGES: "system"}.get(path)
    if instruction.replaces_system:
        document = _drop_system(document, key, system)
    if not text:
        return document
    if role == "system" and system is not None:
        return document | {system: _join(text, document.get(system))}
    content = document.get(key)
    content = [{"role": "user", "content": content}] if isinstance(content, str) else content
    items = list(content) if isinstance(content, list) else []
    roles = SYSTEM if role == "system" else ("user",)
    places = [i for i, item in enumerate(items) if isinstance(item, Mapping) and item.get("role") in roles]
    if role == "system" and 0 not in places:
        return document | {key: [{"role": "system", "content": text}, *items]}
    if not places:
        raise ValueError("what instructs the model needs a message of the user's")
    place = 0 if role == "system" else places[-1]
    items[place] = {**items[place], "content": _join(text, items[place].get("content"))}
    return document | {key: items}


def _drop_system(document: Json, key: str, system: str | None) -> Json:
    """The body without its system messages: of those under `key`, and of the field `system` where the path has one."""
    document = {name: value for name, value in document.items() if name != system}
    if isinstance(items := document.get(key), list):
        document[key] = [item for item in items if not (isinstance(item, Mapping) and item.get("role") in SYSTEM)]
    return document


def _join(instruction: str, content: Any) -> Any:
    """An instruction before a message's content, in its first part where that is text."""
    if not isinstance(content, list):
        return f"{instruction}\n\n{content}" if content else instruction
    head = content[0] if content else None
    if isinstance(head, Mapping) and isinstance(head.get("text"), str):
        return [{**head, "text": f"{instruction}\n\n{head['text']}"}, *content[1:]]
    return [{"type": "text", "text": instruction}, *content]
