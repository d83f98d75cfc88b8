"""What a request asks, as messages: what rewards read beside the answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from server.body import Json

Messages = tuple[dict[str, str], ...]


def messages(document: Json) -> Messages:
    """{"role", "content"} of a chat, responses or Anthropic request; none for bare prompts, whose tokens say it all.

    What is malformed is left out: vLLM's own request model refuses it.
    """
    found: list[dict[str, str]] = []
    for role, key in (("system", "system"), ("system", "instructions")):
        if text := _text(document.get(key)):
            found.append({"role": role, "content": text})
    asked = document.get("messages", document.get("input"))
    if isinstance(asked, str) and "messages" not in document:
        found.append({"role": "user", "content": asked})
    for item in asked if isinstance(asked, list) else ():
        if isinstance(item, Mapping) and isinstance(item.get("role"), str):
            found.append({"role": item["role"], "content": _text(item.get("content"))})
    return tuple(found) if any(message["role"] == "user" for message in found) else ()


def _text(content: Any) -> str:
    """The text of a message's content: a string, or a list of parts."""
    return content if isinstance(content, str) else "\n".join(_parts(content))


def _parts(content: Any) -> Iterator[str]:
    for part in content if isinstance(content, list) else ():
        text = part.get("text") if isinstance(part, Mapping) else part
        if isinstance(text, str):
            yield text
