"""A browser before a toy server: Debian's Chromium, driven by Playwright.

A test fails for whatever the page says on its console, violations of its policy among it, and for a request to another
host.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.server.conftest import DEMO, KEY, Running, serve, until_up
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from playwright.async_api import Browser, ConsoleMessage, Page, Request

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = "no Chromium is on the PATH, so NO TEST OF THE PLAYGROUND RAN: apt-get install chromium"
SLOW = 0.77
"""The temperature at which the server pauses before each token."""
PAUSE = f"""
import asyncio
from trimtab.runtime.toy_engine import ToyEngine
generate = ToyEngine.generate
async def generate_slowly(self, prompt, sampling, **more):
    async for chunk in generate(self, prompt, sampling, **more):
        if sampling.temperature == {SLOW}:
            await asyncio.sleep(0.4)
        yield chunk
ToyEngine.generate = generate_slowly
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", default=None, metavar="FOLDER", help="where the long walk keeps what it sees")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHROMIUM is None:
        for item in items:
            if "chromium" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason=MISSING))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if any(MISSING in str(report.longrepr) for report in terminalreporter.stats.get("skipped", ())):
        terminalreporter.section("the browser is missing", sep="!", red=True, bold=True)
        terminalreporter.line(MISSING)


@dataclass
class Watch:
    """What the page did that it should not have."""

    origin: str
    faults: list[str] = field(default_factory=list)
    refusals: set[int] = field(default_factory=set)
    """Statuses that the test has the server answer with; 0 is no answer. The browser's console names each."""
    requests: list[Request] = field(default_factory=list)

    def attach(self, page: Page) -> None:
        page.on("console", self.hear)
        page.on("pageerror", lambda error: self.faults.append(f"uncaught: {error}"))
        page.on("request", self.see)

    def hear(self, message: ConsoleMessage) -> None:
        if message.type not in ("error", "warning"):
            return
        statuses = {f"status of {status}" for status in self.refusals} | ({"net::ERR"} if 0 in self.refusals else set())
        if not (message.text.startswith("Failed to load resource") and any(s in message.text for s in statuses)):
            self.faults.append(f"{message.type}: {message.text}")

    def see(self, request: Request) -> None:
        self.requests.append(request)
        if not request.url.startswith((f"{self.origin}/", "data:", "blob:")):
            self.faults.append(f"another host: {request.url}")

    def bodies(self) -> list[dict[str, Any]]:
        """Of the chats that were asked for."""
        return [request.post_data_json for request in self.requests if request.url.endswith("/v1/chat/completions")]


@pytest.fixture(scope="session")
def playable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The demo on a toy engine, with a key."""
    yield from until_up(serve(DEMO, tmp_path_factory.mktemp("playable") / "log", "--engine", "toy", patch=PAUSE))


@pytest.fixture(scope="module")
def describe(served_toy: Running) -> dict[str, Any]:
    """What the toy server offers."""
    body: dict[str, Any] = httpx.get(f"{served_toy.url}/v1/alignment").json()
    return body


@pytest.fixture(scope="session")
async def chromium() -> AsyncIterator[Browser]:
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
def watch(playable: Running) -> Iterator[Watch]:
    watch = Watch(playable.url)
    yield watch
    assert watch.faults == []


@pytest.fixture
async def blank(chromium: Browser, playable: Running, watch: Watch) -> AsyncIterator[Page]:
    """A page that has opened nothing yet, and has no key."""
    context = await chromium.new_context(viewport={"width": 1280, "height": 900}, base_url=playable.url)
    context.set_default_timeout(PATIENCE * 1000)
    page = await context.new_page()
    watch.attach(page)
    yield page
    await context.close()


@pytest.fixture
async def page(blank: Page) -> Page:
    """The playground, ready, with the key."""
    await blank.add_init_script(f"sessionStorage.setItem('trimtab.key', '{KEY}')")
    await blank.goto("/")
    await blank.get_by_role("tab", name="Chat").wait_for()
    return blank
