"""What a person does on the page."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.async_api import Locator, Page, Route

TABS = ("Chat", "Compare", "Which do you prefer?", "Take it with you")


async def ask(page: Page, text: str = "hi") -> None:
    await page.get_by_role("textbox", name="Message", exact=True).fill(text)
    await page.keyboard.press("Enter")


async def wait_for_answer(page: Page, at: int = -1) -> Locator:
    """The turn at that place, once its costs are there."""
    turn = page.locator(".turn").nth(at)
    await turn.locator(".costs").wait_for()
    return turn


async def open_tab(page: Page, name: str) -> None:
    await page.get_by_role("tab", name=name).click()


async def set_field(page: Page, label: str, value: object) -> None:
    await page.get_by_label(label, exact=True).fill(str(value))


def stream(*texts: str, **last: Any) -> str:
    """The server-sent events of an answer in pieces."""
    events = [{"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} for text in texts]
    end = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": len(texts)}, **last}
    return "".join(f"data: {json.dumps(event)}\n\n" for event in (*events, end)) + "data: [DONE]\n\n"


async def answer_with(page: Page, body: str) -> None:
    """Chats get this stream from now on, and not what the server would say."""

    async def fulfil(route: Route) -> None:
        await route.fulfill(status=200, content_type="text/event-stream", body=body)

    await page.route("**/v1/chat/completions", fulfil)
