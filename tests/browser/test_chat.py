"""The chat: turns, streams, a way to stop, and every way to fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from tests.browser.acts import answer_with, ask, set_field, stream, wait_for_answer
from tests.browser.conftest import SLOW, Watch
from tests.server.conftest import KEY, Running
from tests.waiting import until

if TYPE_CHECKING:
    from playwright.async_api import Page, Route

HOSTILE = """\
<img src=x onerror="window.broken = 1"> <script>window.broken = 2</script>
[one](javascript:window.broken=3) [two](data:text/html,<script>1</script>) [three](JaVaScRiPt:1)
[four](//evil.example/x) ![a picture](https://evil.example/p.png) <javascript:alert(1)> [five](vbscript:x) [six](file:///etc/passwd)
[good](https://good.example/a?b=c) and **bold** `<b>code</b>` &lt;b&gt;

```html
<script>window.broken = 4</script>
```

<iframe src="https://evil.example"></iframe>

| a | b |
|---|---|
| <svg onload=alert(1)> | [x](javascript:1) |

- <style>body { display: none }</style>
"""


async def test_an_answer_streams(page: Page) -> None:
    await set_field(page, "Temperature", SLOW)
    await set_field(page, "Seed", 1)
    await ask(page)
    shown = page.locator(".turn .answer .text")
    seen: set[str] = set()

    async def look() -> bool:
        seen.add(await shown.inner_text() if await shown.is_visible() else "")
        return await page.locator(".turn .costs").count() > 0

    await until(look)
    assert len(seen) > 2
    costs = await page.locator(".turn .costs").inner_text()
    assert "tokens/s" in costs
    assert "first after" in costs
    assert await page.get_by_role("status").first.inner_text() == "The answer is complete."


async def test_a_stream_stops_and_what_came_is_kept(page: Page, watch: Watch) -> None:
    await set_field(page, "Temperature", SLOW)
    await set_field(page, "Seed", 1)
    await ask(page)
    await until(lambda: page.locator(".turn .text p").is_visible())
    await page.get_by_role("button", name="Stop").click()
    turn = await wait_for_answer(page)
    assert "Stopped: this is as far as it came." in await turn.inner_text()
    assert not await page.get_by_role("button", name="Stop").is_visible()
    came = await turn.locator(".text").inner_text()
    await ask(page, "and then")
    await until(lambda: len(watch.bodies()) == 2)
    assert watch.bodies()[1]["messages"] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": came},
        {"role": "user", "content": "and then"},
    ]
    await page.get_by_role("button", name="Stop").click()


async def test_a_search_shows_how_far_it_is_and_stops_with_its_best(page: Page) -> None:
    await page.get_by_label("Strategy").select_option("qalign")
    await set_field(page, "warmth, exactly", 1)
    await set_field(page, "Temperature", SLOW)
    await set_field(page, "Seed", 1)
    await ask(page)
    best = page.locator(".turn .best")
    await best.wait_for()
    progress = page.get_by_role("progressbar", name="Progress of the search")
    assert 0 < float(await progress.get_attribute("value") or 0) < float(await progress.get_attribute("max") or 0)
    assert "tokens drawn" in await page.locator(".turn .progress").inner_text()
    await page.get_by_role("button", name="Stop").click()
    turn = await wait_for_answer(page)
    assert "this is the best so far, worth" in await turn.locator(".costs").inner_text()
    text = await turn.locator(".text").inner_text()
    assert text
    assert set(text) <= {"a", "b"}


async def test_a_turn_is_edited_and_asked_anew(page: Page, watch: Watch) -> None:
    for at, text in enumerate(("first", "second")):
        await ask(page, text)
        await wait_for_answer(page, at)
    await page.get_by_role("button", name="Edit").first.click()
    box = page.get_by_role("textbox", name="Your message, to be changed")
    assert await box.input_value() == "first"
    await box.fill("third")
    await page.get_by_role("button", name="Send again").click()
    await until(lambda: len(watch.bodies()) == 3)
    await wait_for_answer(page)
    assert watch.bodies()[2]["messages"] == [{"role": "user", "content": "third"}]
    assert await page.locator(".turn").count() == 1


async def test_the_keyboard_alone_asks(page: Page) -> None:
    for _ in range(80):
        await page.keyboard.press("Tab")
        if await page.evaluate("document.activeElement.placeholder") == "Message":
            break
    await page.keyboard.type("line one")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("line two")
    await page.keyboard.press("Enter")
    turn = await wait_for_answer(page)
    assert "line one\nline two" in await turn.locator(".question").inner_text()


async def test_markdown_of_a_hostile_model_is_inert(page: Page, watch: Watch) -> None:
    pieces = [HOSTILE[i : i + 7] for i in range(0, len(HOSTILE), 7)]
    await answer_with(page, stream(*pieces))
    await ask(page)
    turn = await wait_for_answer(page)
    body = turn.locator(".text")
    for tag in ("img", "script", "iframe", "svg", "style", "object", "embed", "form", "input", "base", "meta", "link"):
        assert await body.locator(tag).count() == 0
    links = await body.locator("a").evaluate_all("all => all.map(a => [a.href, a.rel])")
    assert [href for href, _ in links] == ["https://good.example/a?b=c"]
    assert "noreferrer" in links[0][1]
    attributes = await body.locator("*").evaluate_all("all => all.flatMap(e => e.getAttributeNames())")
    assert set(attributes) <= {"href", "rel", "target", "tabindex", "class", "role", "aria-label", "start"}
    text = await body.inner_text()
    assert '<img src=x onerror="window.broken = 1">' in text
    assert "[image: a picture]" in text
    assert await body.locator("pre code").inner_text() == "<script>window.broken = 4</script>"
    assert await body.locator("strong").inner_text() == "bold"
    assert await page.evaluate("window.broken") is None


@pytest.mark.parametrize(
    "text", ["*" * 20000, "`a" * 10000, "[" * 20000, "> " * 5000, "- " * 5000, "_a" * 10000, "|" * 9000]
)
async def test_no_text_holds_the_page_up(page: Page, text: str) -> None:
    seconds = await page.evaluate(
        """async (text) => {
            const { renderMarkdown } = await import("./playground/js/markdown.js");
            const began = performance.now();
            renderMarkdown(text);
            return (performance.now() - began) / 1000;
        }""",
        text,
    )
    assert seconds < 5


async def test_the_key_is_asked_for_and_stays_in_the_tab(blank: Page, watch: Watch) -> None:
    watch.refusals.add(401)
    await blank.goto("/")
    key = blank.get_by_label("Key", exact=True)
    await key.wait_for()
    assert await key.get_attribute("type") == "password"
    await key.fill("wrong")
    await blank.keyboard.press("Enter")
    await key.wait_for(state="visible")
    await key.fill(KEY)
    await blank.keyboard.press("Enter")
    await ask(blank)
    await wait_for_answer(blank)
    kept = await blank.evaluate(
        "[JSON.stringify({...localStorage}), document.cookie, location.href, document.body.innerHTML]"
    )
    assert not any(KEY in place for place in kept)
    assert not any(KEY in request.url for request in watch.requests)
    asked = [request for request in watch.requests if request.url.endswith("/v1/chat/completions")]
    assert [await request.header_value("authorization") for request in asked] == [f"Bearer {KEY}"]
    await blank.reload()
    await blank.get_by_role("tab", name="Chat").wait_for()


async def test_a_busy_server_is_waited_for(page: Page, watch: Watch) -> None:
    watch.refusals.add(429)
    error = {"error": {"message": "no room for it", "param": None, "code": "rate_limit_exceeded"}}
    tries = []

    async def refuse(route: Route) -> None:
        tries.append(route)
        if len(tries) > 1:
            return await route.continue_()
        await route.fulfill(status=429, headers={"retry-after": "2"}, json=error)

    await page.route("**/v1/chat/completions", refuse)
    await ask(page)
    alert = page.get_by_role("alert")
    assert await alert.inner_text() == "The server is busy: no room for it. It asks for a wait of 2 seconds."
    again = page.locator(".notice").get_by_role("button", name="Try again")
    assert await again.is_disabled()
    assert "Try again in" in await again.inner_text()
    await until(lambda: again.is_enabled())
    await again.click()
    await wait_for_answer(page)
    assert len(tries) == 2


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (503, "takes no requests at the moment: it is closing"),
        (500, "The server failed: it is closing"),
        (404, "it is closing"),
    ],
)
async def test_refusals_have_plain_words(page: Page, watch: Watch, status: int, words: str) -> None:
    watch.refusals.add(status)

    async def refuse(route: Route) -> None:
        await route.fulfill(status=status, json={"error": {"message": "it is closing", "param": None, "code": "x"}})

    await page.route("**/v1/chat/completions", refuse)
    await ask(page)
    assert words in await page.get_by_role("alert").inner_text()


async def test_an_error_amid_a_stream_is_said_and_what_came_stays(page: Page) -> None:
    event = {"error": {"message": "the reward died", "type": "server_error", "param": None, "code": "reward_error"}}
    body = stream("some ", "text").partition('data: {"choices": []')[0] + f"data: {json.dumps(event)}\n\n"
    await answer_with(page, body)
    await ask(page)
    assert await page.get_by_role("alert").inner_text() == "The answer broke off: the reward died"
    assert await page.locator(".turn .text").inner_text() == "some text"


class Cable:
    """A way to a server that can be cut."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.writers: list[asyncio.StreamWriter] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def lay(self) -> None:
        self.server = await asyncio.start_server(self.connect, "127.0.0.1", 0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers += [writer, back]
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.create_task(self.pass_on(source, sink))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()

    async def cut(self) -> None:
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()
        await asyncio.gather(*self.tasks)


@pytest.fixture
async def cable(playable: Running) -> AsyncIterator[Cable]:
    cable = Cable(playable.port)
    await cable.lay()
    yield cable
    await cable.cut()


async def test_a_server_that_goes_amid_a_stream(blank: Page, watch: Watch, cable: Cable) -> None:
    watch.origin = cable.url
    watch.refusals.add(0)
    await blank.add_init_script(f"sessionStorage.setItem('trimtab.key', '{KEY}')")
    await blank.goto(cable.url)
    await set_field(blank, "Temperature", SLOW)
    await set_field(blank, "Seed", 1)
    await ask(blank)
    await until(lambda: blank.locator(".turn .text p").is_visible())
    await cable.cut()
    alert = blank.get_by_role("alert")
    await alert.wait_for()
    assert await alert.inner_text() == "The answer broke off: the connection to the server was lost."
    assert set(await blank.locator(".turn .text").inner_text()) <= {"a", "b"}
    await blank.get_by_role("button", name="Try again").click()
    await until(lambda: blank.get_by_text("The server does not answer.").is_visible())


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
async def test_events_may_be_split_anywhere(page: Page, size: int) -> None:
    """And have comments between them, lines that end in CR LF, and data in several lines."""
    text = ': hi\r\ndata: {"a":\r\ndata:  "ü€"}\r\n\r\n: keep-alive\n\nevent: x\ndata:{"b":1}\n\ndata: [DONE]\n\n'
    events = await page.evaluate(
        """async ([text, size]) => {
            const { readEvents } = await import("./playground/js/api.js");
            const bytes = new TextEncoder().encode(text);
            const body = new ReadableStream({ start(controller) {
                for (let i = 0; i < bytes.length; i += size) controller.enqueue(bytes.slice(i, i + size));
                controller.close();
            } });
            const events = [];
            for await (const data of readEvents({ body })) events.push(data);
            return events;
        }""",
        [text, size],
    )
    assert events == ['{"a":\n "ü€"}', '{"b":1}', "[DONE]"]
