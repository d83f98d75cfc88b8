"""One long walk over the real demo, as a person takes it. `--screenshots FOLDER` keeps what was seen."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.acts import ask, open_tab, set_field, wait_for_answer
from tests.browser.conftest import Watch
from tests.browser.test_page import find_violations
from tests.server.conftest import DEMO, KEY, Running, serve, until_up
from tests.waiting import PATIENCE, until

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytestmark = [pytest.mark.engine, pytest.mark.slow]

QUESTION = "How do I clean a copper pan?"
Shoot = Callable[[str], Awaitable[None]]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Running]:
    yield from until_up(serve(DEMO, tmp_path / "log"))


@pytest.fixture
async def page(chromium: Browser, demo: Running) -> AsyncIterator[Page]:
    context = await chromium.new_context(
        viewport={"width": 1280, "height": 900},
        base_url=demo.url,
        permissions=["clipboard-read", "clipboard-write"],
        reduced_motion="reduce",
    )
    context.set_default_timeout(PATIENCE * 1000)
    yield await context.new_page()
    await context.close()


@pytest.fixture
def shoot(page: Page, request: pytest.FixtureRequest) -> Shoot:
    folder = request.config.getoption("screenshots")

    async def keep(name: str) -> None:
        if folder is not None:
            await page.screenshot(path=Path(folder) / f"playground-{name}.png")

    return keep


async def use(page: Page, strategy: str, **params: object) -> None:
    await page.get_by_label("Strategy").select_option(strategy)
    group = page.get_by_role("group", name=f"Parameters of {strategy}")
    for name, value in params.items():
        await group.get_by_label(name, exact=True).fill(str(value))


async def test_a_long_walk(page: Page, demo: Running, shoot: Shoot) -> None:
    watch = Watch(demo.url)
    watch.attach(page)
    watch.refusals |= {401, 0}

    # A wrong key, then the right one, which the address does not hold.
    await page.goto("/")
    for key in ("sk-wrong", KEY):
        await page.get_by_label("Key", exact=True).fill(key)
        await page.get_by_role("button", name="Use it").click()
        if key != KEY:
            await page.get_by_role("alert").get_by_text("key").first.wait_for()
    await page.get_by_role("tab", name="Chat").wait_for()
    assert KEY not in page.url
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    assert await page.evaluate(paint) > 0

    # Chat, plainly; then guided by a slider, with each token by its KL.
    await set_field(page, "Seed", 1)
    await ask(page, QUESTION)
    plain = await (await wait_for_answer(page)).locator(".text").inner_text()
    assert plain
    await set_field(page, "warmth, exactly", 2)
    await ask(page, QUESTION)
    turn = await wait_for_answer(page)
    assert await turn.locator(".text").inner_text() != plain
    await turn.get_by_text("What happened").click()
    await turn.locator(".guided").wait_for()
    kl = await turn.locator(".token[data-kl]").evaluate_all("tokens => tokens.map(t => Number(t.dataset.kl))")
    assert max(kl) > 0.02
    assert await turn.locator(".token.kl-0").count() < await turn.locator(".token").count()
    await turn.locator(".guided").scroll_into_view_if_needed()
    await shoot("guided")
    assert await find_violations(page) == []

    # Plain beside aligned.
    await open_tab(page, "Compare")
    await page.get_by_role("button", name="Compare", exact=True).click()
    await page.locator("table.scores").wait_for()
    assert (
        await page.get_by_role("region", name="Left").locator(".text").inner_text()
        != await page.get_by_role("region", name="Right").locator(".text").inner_text()
    )
    await shoot("compare")

    # Best of 16: all candidates, the winner marked.
    await open_tab(page, "Chat")
    await use(page, "best_of_n", n=16)
    await ask(page, QUESTION)
    turn = await wait_for_answer(page)
    await turn.get_by_text("What happened").click()
    candidates = turn.locator(".pool .candidate")
    await candidates.first.wait_for()
    assert await candidates.count() == 16
    values = await candidates.evaluate_all("rows => rows.map(row => Number(row.dataset.value))")
    assert values == sorted(values, reverse=True)
    assert "winner" in (await candidates.first.get_attribute("class") or "")
    text = await turn.locator(".text").first.inner_text()
    assert (await turn.locator(".pool .winner blockquote").text_content() or "").split() == text.split()
    await turn.locator(".pool").scroll_into_view_if_needed()
    await shoot("best-of-16")

    # QAlign: reward against step.
    await use(page, "qalign", chains=2, steps=6)
    await ask(page, QUESTION)
    turn = await wait_for_answer(page)
    await turn.get_by_text("What happened").click()
    await turn.locator(".chains").wait_for()
    assert await turn.locator(".chains figure").count() == 2
    await turn.locator(".chains").scroll_into_view_if_needed()
    await shoot("qalign")
    assert await find_violations(page) == []

    # Five choices, the longer answer each time, become weights; an answer by them.
    await open_tab(page, "Which do you prefer?")
    await page.get_by_role("button", name="Draw answers").click()
    for n in range(5):
        await page.get_by_role("heading", name="Which do you prefer?").wait_for()
        texts = await page.locator(".pair article > p").all_text_contents()
        await page.locator(".prefer .question").focus()
        await page.keyboard.press("1" if len(texts[0]) > len(texts[1]) else "2")
        await page.get_by_text(f"{n + 1} choice{'s' if n else ''} so far").wait_for()
    await page.locator(".weights figure").scroll_into_view_if_needed()
    await shoot("prefer")
    await page.get_by_role("button", name="Use these weights").click()
    assert float(await page.get_by_label("brevity, exactly").input_value() or 0) < 0
    await page.get_by_label("Strategy").select_option("")
    await ask(page, QUESTION)
    await wait_for_answer(page)

    # The request as a command line, which runs; the settings as a link, which holds them.
    weights = await page.get_by_label("brevity, exactly").input_value()
    await open_tab(page, "Take it with you")
    await page.get_by_role("button", name="Copy curl").click()
    command = await page.evaluate("navigator.clipboard.readText()")
    assert KEY not in command
    ran = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-c", command.replace("curl ", "curl -sf ", 1)],
        env={**os.environ, "TRIMTAB_API_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert '"finish_reason"' in ran.stdout
    await shoot("take-away")
    await page.reload()
    await page.get_by_role("tab", name="Chat").wait_for()
    assert await page.get_by_label("brevity, exactly").input_value() == weights

    # A narrow window; then the server dies amid a search.
    await page.set_viewport_size({"width": 390, "height": 844})
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    await shoot("narrow")
    await page.set_viewport_size({"width": 1280, "height": 900})
    await use(page, "qalign", chains=4, steps=200)
    await ask(page, QUESTION)
    await page.get_by_role("progressbar", name="Progress of the search").wait_for()
    os.killpg(demo.process.pid, signal.SIGKILL)
    notice = page.locator(".turn .notice")
    await notice.wait_for()
    assert "server" in await notice.inner_text()
    await until(lambda: page.get_by_role("button", name="Send", exact=True).is_enabled())
    assert watch.faults == []
