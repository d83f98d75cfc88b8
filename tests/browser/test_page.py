"""The page as a whole: for everybody, at every width, behind a prefix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.acts import TABS, ask, open_tab, set_field, wait_for_answer
from tests.browser.conftest import Watch
from tests.server.conftest import KEY
from tests.waiting import until

if TYPE_CHECKING:
    from playwright.async_api import Page, Route

SERIOUS = ("serious", "critical")


async def find_violations(page: Page) -> list[str]:
    from axe_playwright_python.async_playwright import Axe

    found: Any = (await Axe().run(page)).response["violations"]
    return [
        f"{one['id']}: {one['help']}: {node['html'][:200]}"
        for one in found
        if one["impact"] in SERIOUS
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_no_serious_barrier(page: Page, theme: Any) -> None:
    await page.emulate_media(color_scheme=theme, reduced_motion="reduce")
    await page.get_by_label("Strategy").select_option("best_of_n")
    await set_field(page, "warmth, exactly", 1)
    await ask(page)
    await wait_for_answer(page)
    await page.get_by_text("What happened").click()
    for summary in await page.locator(".settings summary").all():
        await summary.click()
    for tab in TABS:
        await open_tab(page, tab)
        assert await find_violations(page) == [], tab
    await open_tab(page, "Compare")
    await page.get_by_role("button", name="Compare", exact=True).click()
    await page.locator("table.scores").wait_for()
    assert await find_violations(page) == []
    await page.get_by_role("button", name="Key", exact=True).click()
    assert await find_violations(page) == []


async def test_a_refusal_is_no_barrier_either(page: Page, watch: Watch) -> None:
    watch.refusals.add(400)
    await set_field(page, "Temperature", -1)
    await ask(page)
    await page.locator(".notice").wait_for()
    assert await find_violations(page) == []


async def test_a_narrow_window_scrolls_only_down(page: Page) -> None:
    await page.set_viewport_size({"width": 390, "height": 844})
    await page.reload()
    await page.get_by_role("tab", name="Chat").wait_for()
    await page.get_by_text("Settings", exact=True).click()
    await page.get_by_label("Strategy").select_option("best_of_n")
    await set_field(page, "warmth, exactly", 1)
    await ask(page, "word " * 40 + "w" * 300)
    await wait_for_answer(page)
    await page.get_by_text("What happened").click()
    for tab in TABS:
        await open_tab(page, tab)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
    await open_tab(page, "Compare")
    await page.get_by_role("button", name="Compare", exact=True).click()
    await page.locator("table.scores").wait_for()
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_tabs_by_keyboard(page: Page) -> None:
    await page.get_by_role("tab", name="Chat").focus()
    for name in (*TABS[1:], TABS[0]):
        await page.keyboard.press("ArrowRight")
        assert await page.get_by_role("tab", selected=True).inner_text() == name
        assert await page.get_by_role("tabpanel").count() == 1
    await page.keyboard.press("End")
    assert await page.get_by_role("tab", selected=True).inner_text() == TABS[-1]


async def test_the_theme_can_be_switched_and_stays(page: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    before = await page.evaluate(ground)
    await page.get_by_role("button", name="Switch to dark").click()
    dark = await page.evaluate(ground)
    assert dark != before
    await page.reload()
    assert await page.evaluate(ground) == dark


async def test_behind_a_prefix_that_a_proxy_strips(blank: Page, watch: Watch) -> None:
    """What a proxy does: `/some/where/x` is asked for, and the server gets `/x`."""
    prefix = f"{watch.origin}/some/where"

    async def strip(route: Route) -> None:
        response = await route.fetch(url=route.request.url.replace(prefix, watch.origin))
        await route.fulfill(response=response)

    await blank.route(f"{prefix}/**", strip)
    await blank.add_init_script(f"sessionStorage.setItem('trimtab.key', '{KEY}')")
    await blank.goto(f"{prefix}/")
    await ask(blank)
    await wait_for_answer(blank)
    assert [request.url for request in watch.requests if not request.url.startswith(f"{prefix}/")] == []


async def test_a_dead_server_is_said_and_asked_again(blank: Page, watch: Watch) -> None:
    watch.refusals.add(0)
    await blank.add_init_script(f"sessionStorage.setItem('trimtab.key', '{KEY}')")
    await blank.route("**/v1/alignment", lambda route: route.abort("connectionrefused"))
    await blank.goto("/")
    alert = blank.get_by_role("alert")
    await alert.wait_for()
    assert "The server does not answer." in await alert.inner_text()
    await blank.unroute("**/v1/alignment")
    await blank.get_by_role("button", name="Try again").click()
    await blank.get_by_role("tab", name="Chat").wait_for()


async def test_it_says_so_where_nothing_can_be_preferred(blank: Page, watch: Watch) -> None:
    """A server with a base alone."""
    bare: dict[str, Any] = {"objectives": {}, "rewards": {}, "guides": [], "presets": {}, "preference_prompts": {}}

    async def strip(route: Route) -> None:
        response = await route.fetch()
        await route.fulfill(response=response, json={**(await response.json()), **bare, "auto_weights": False})

    await blank.add_init_script(f"sessionStorage.setItem('trimtab.key', '{KEY}')")
    await blank.route("**/v1/alignment", strip)
    await blank.goto("/")
    await ask(blank)
    await wait_for_answer(blank)
    for tab in TABS:
        await open_tab(blank, tab)
    await until(lambda: len(watch.bodies()) == 1)
