"""What a request asks, as messages: what rewards read beside the answers, and what an instruction joins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trimtab.server.request.body import Json

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"

Messages = tuple[dict[str, str], ...]


def parse_messages(document: Json) -> Messages:
    """{"role", "content"} of a chat, responses or Anthropic request; none for bare prompts, whose tokens say it all.

    What is malformed is left out: vLLM's own request model refuses it.
    """
    parsed: list[dict[str, str]] = []
    for role, key in (("system", "system"), ("system", "instructions")):
        if text := _text(document.get(key)):
            parsed.append({"role": role, "content": text})
    items = document.get("messages", document.get("input"))
    if isinstance(items, str) and "messages" not in document:
        parsed.append({"role": "user", "content": items})
    for item in items if isinstance(items, list) else ():
        if isinstance(item, Mapping) and isinstance(item.get("role"), str):
            parsed.append({"role": item["role"], "content": _text(item.get("content"))})
    return tuple(parsed) if any(message["role"] == "user" for message in parsed) else ()


def _text(content: Any) -> str:
    """The text of a message's content: a string, or a list of parts."""
    return content if isinstance(content, str) else "\n".join(_parts(content))


def _parts(content: Any) -> Iterator[str]:
    for part in content if isinstance(content, list) else ():
        text = part.get("text") if isinstance(part, Mapping) else part
        if isinstance(text, str):
            yield text


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
    items = [{"role": "user", "content": content}] if isinstance(content, str) else list(content or ())
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
