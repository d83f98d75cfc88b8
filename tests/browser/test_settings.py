"""The form of the settings, the request that it stands for, and the link that holds it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.acts import answer_with, ask, open_tab, set_field, stream, wait_for_answer
from tests.browser.conftest import Watch
from tests.server.conftest import KEY
from tests.waiting import until

if TYPE_CHECKING:
    from playwright.async_api import Page


async def last_body(page: Page, watch: Watch) -> dict[str, Any]:
    """Of a question that is asked now; without what the page adds for itself."""
    before = len(watch.bodies())
    await ask(page)
    await until(lambda: len(watch.bodies()) > before)
    await until(lambda: page.get_by_role("button", name="Send", exact=True).is_enabled())
    body = dict(watch.bodies()[-1])
    assert body.pop("stream") is True
    assert body.pop("stream_options") == {"include_usage": True}
    body.pop("messages")
    alignment = {key: value for key, value in body.pop("alignment", {}).items() if key != "return"}
    return body | ({"alignment": alignment} if alignment else {})


async def test_what_is_at_its_default_is_not_sent(page: Page, watch: Watch) -> None:
    assert await last_body(page, watch) == {"model": "trimtab-demo"}


async def test_sliders_and_fields_change_the_request(page: Page, watch: Watch) -> None:
    slider = page.get_by_role("slider", name="warmth", exact=True)
    await slider.focus()
    for _ in range(10):
        await page.keyboard.press("ArrowRight")
    assert await page.get_by_label("warmth, exactly").input_value() == "0.5"
    await set_field(page, "brevity, exactly", -1.25)
    await set_field(page, "Seed", 7)
    await set_field(page, "Max. tokens", 5)
    await set_field(page, "Tokens drawn", 100)
    assert await last_body(page, watch) == {
        "model": "trimtab-demo",
        "seed": 7,
        "max_tokens": 5,
        "alignment": {"weights": {"warmth": 0.5, "brevity": -1.25}, "budget": {"max_sampled_tokens": 100}},
    }
    await page.get_by_role("button", name="Reset").click()
    assert await last_body(page, watch) == {"model": "trimtab-demo"}


async def test_the_pad_sets_two_weights_by_keyboard_and_by_pointer(page: Page, watch: Watch) -> None:
    await page.get_by_text("Two at a time").click()
    pad = page.get_by_role("slider", name=re.compile("^Weights of .*, left to right, and brevity, down to up$"))
    await pad.focus()
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowDown"):
        await page.keyboard.press(key)
    assert await pad.get_attribute("aria-valuetext") == "helpfulness 0.2, brevity -0.5"
    asked = await last_body(page, watch)
    assert asked["alignment"] == {"weights": {"helpfulness": 0.2, "brevity": -0.5}}
    box = await pad.bounding_box()
    assert box is not None
    await pad.click(position={"x": box["width"] * 0.5, "y": box["height"] * 0.5})
    assert await pad.get_attribute("aria-valuetext") == "helpfulness 0, brevity 0"
    await page.get_by_label("Across").select_option("warmth")
    await pad.focus()
    await page.keyboard.press("ArrowLeft")
    assert (await last_body(page, watch))["alignment"] == {"weights": {"warmth": -0.1}}


async def test_a_strategy_s_form_is_its_schema(page: Page, watch: Watch) -> None:
    await page.get_by_label("Strategy").select_option("beam")
    await set_field(page, "warmth, exactly", 1)
    group = page.get_by_role("group", name="Parameters of beam")
    assert await group.get_by_label("n", exact=True).get_attribute("placeholder") == "16"
    assert "candidates drawn; whole from 1 to 4096" in await group.inner_text()
    await group.get_by_label("n", exact=True).fill("4")
    await group.get_by_label("width").fill("2")
    await group.get_by_label("variant").select_option("dvts")
    await group.get_by_label("prefix_reward").fill('"concise"')
    assert (await last_body(page, watch))["alignment"] == {
        "strategy": "beam",
        "weights": {"warmth": 1},
        "params": {"n": 4, "width": 2, "variant": "dvts", "prefix_reward": "concise"},
    }
    await page.get_by_label("Strategy").select_option("dera")
    group = page.get_by_role("group", name="Parameters of dera")
    assert await group.get_by_label("aligned").get_attribute("placeholder") == "required"
    assert await group.get_by_label("n", exact=True).count() == 0


@pytest.mark.parametrize(
    ("strategy", "label", "value", "words"),
    [
        ("best_of_n", "n", "1000", "alignment.params.n must be at most 256 on this server; got 1000"),
        ("best_of_n", "n", "many", "got 'many'"),
        ("best_of_n", "warmth, exactly", "much", "alignment.weights.warmth must be a number"),
        ("", "Temperature", "-1", "temperature must be non-negative"),
        ("", "Milliseconds", "0", "greater than or equal to 1"),
        ("dera", "lambda", "", "alignment.params.aligned is required"),
    ],
)
async def test_the_server_s_message_stands_at_its_field(
    page: Page, watch: Watch, strategy: str, label: str, value: str, words: str
) -> None:
    watch.refusals.add(400)
    await page.get_by_label("Strategy").select_option(strategy)
    if strategy == "best_of_n":
        await set_field(page, "warmth, exactly", 1)
    await set_field(page, label, value)
    await ask(page)
    error = page.locator(".field.refused > .error")
    await error.wait_for()
    assert words in await error.inner_text()
    control = page.locator(".field.refused [aria-invalid]")
    described = await control.get_attribute("aria-describedby")
    assert await error.get_attribute("id") in str(described).split()
    await page.get_by_role("button", name="Show the field").click()
    assert await control.evaluate("element => element === document.activeElement")
    await page.keyboard.type("1")
    assert await page.locator(".field.refused").count() == 0


async def test_a_preset_is_a_model(page: Page, watch: Watch) -> None:
    await page.get_by_label("Model or preset").select_option("trimtab-demo-best")
    await page.get_by_role("group", name="Parameters of best_of_n").wait_for()
    assert await last_body(page, watch) == {"model": "trimtab-demo-best"}


async def test_a_link_holds_the_settings_and_nothing_else(page: Page, watch: Watch) -> None:
    await set_field(page, "warmth, exactly", 0.75)
    await page.get_by_label("Strategy").select_option("best_of_n")
    await page.get_by_role("group", name="Parameters of best_of_n").get_by_label("n", exact=True).fill("3")
    await ask(page, "a secret question")
    await wait_for_answer(page)
    link = page.url
    assert "#" in link
    script = """async (text) => JSON.stringify((await import("./playground/js/takeaway.js")).decodeSettings(text))"""
    held = await page.evaluate(script, link.partition("#")[2])
    assert "secret" not in held
    assert KEY not in held
    other = await page.context.new_page()
    watch.attach(other)
    await other.add_init_script(f"location.protocol === 'http:' && sessionStorage.setItem('trimtab.key', '{KEY}')")
    await other.goto(link)
    assert await other.get_by_label("warmth, exactly").input_value() == "0.75"
    group = other.get_by_role("group", name="Parameters of best_of_n")
    assert await group.get_by_label("n", exact=True).input_value() == "3"
    for bad in ("#nonsense", "#s1.e30", "#s1.%%%", "#s1.bnVsbA"):
        await other.goto("about:blank")
        await other.goto(link.partition("#")[0] + bad)
        await other.get_by_role("tab", name="Chat").wait_for()
        assert await other.get_by_label("warmth, exactly").input_value() == "0"


async def test_two_settings_side_by_side(page: Page, watch: Watch) -> None:
    await set_field(page, "warmth, exactly", 1)
    await open_tab(page, "Compare")
    await page.get_by_role("button", name="Compare", exact=True).click()
    await page.locator("table.scores").wait_for()
    plain, steered = watch.bodies()
    assert plain["seed"] == steered["seed"]
    assert plain["alignment"]["strategy"] == "plain"
    assert steered["alignment"]["weights"] == {"warmth": 1}
    assert plain["messages"] == steered["messages"]
    sides = page.get_by_role("tabpanel", name="Compare").locator(".columns section")
    texts = [await sides.nth(k).locator(".text").inner_text() for k in (0, 1)]
    marked = [await sides.nth(k).locator("mark").all_inner_texts() for k in (0, 1)]
    assert marked == ([[], []] if texts[0] == texts[1] else [[text] if text else [] for text in texts])
    for k in (0, 1):
        assert "tokens/s" in await sides.nth(k).locator(".costs").inner_text()
    assert await page.locator("table.scores tbody tr").count() == 4
    await page.get_by_role("button", name="Pin these settings on the left").click()
    await set_field(page, "caution, exactly", 1)
    await page.get_by_role("button", name="Compare", exact=True).click()
    await until(lambda: len(watch.bodies()) == 4)
    left, right = watch.bodies()[2:]
    assert left["alignment"]["weights"] == {"warmth": 1}
    assert right["alignment"]["weights"] == {"warmth": 1, "caution": 1}
    await until(lambda: page.get_by_role("button", name="Compare", exact=True).is_enabled())


async def test_an_empty_answer_is_compared_too(page: Page) -> None:
    await answer_with(page, stream())
    await open_tab(page, "Compare")
    await page.get_by_role("button", name="Compare", exact=True).click()
    await page.locator("table.scores").wait_for()
    assert await page.get_by_text("The answers are the same.").is_visible()
    assert await page.get_by_text("The answer is empty.").count() == 2


@pytest.mark.parametrize(
    ("left", "right", "shared"),
    [
        ("a b c", "a b c", ["abc", "abc"]),
        ("a b c d", "a x c", ["ac", "ac"]),
        ("", "a", ["", ""]),
        ("a a b", "b a a", ["aa", "aa"]),
    ],
)
async def test_words_are_aligned(page: Page, left: str, right: str, shared: list[str]) -> None:
    script = """async ([left, right]) => (await import("./playground/js/diff.js")).alignWords(left, right)"""
    words = [left.split(), right.split()]
    flags = await page.evaluate(script, words)
    kept = [[w for w, is_shared in zip(*side, strict=True) if is_shared] for side in zip(words, flags, strict=True)]
    assert ["".join(side) for side in kept] == shared
