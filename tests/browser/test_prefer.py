"""Which do you prefer? A person who chooses by one objective gets weights that favour it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.browser.modules import open_blank
from tests.server.conftest import Running

pytestmark = pytest.mark.slow

PANEL = """async ([describe, settings]) => {
    const { createPreferPanel } = await import("./js/prefer.js");
    const post = async (path, body, signal) => {
        const response = await fetch(path, {
            method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal,
        });
        const answer = await response.json();
        if (!response.ok) throw new Error(answer.error.message);
        return answer;
    };
    window.sent = [];
    window.used = [];
    const api = {
        infer: (body, signal) => (sent.push(body), post("v1/alignment/infer", body, signal)),
        chat: async (body, { signal }) => {
            const { choices, alignment } = await post("v1/chat/completions", body, signal);
            return { message: choices[0].message, alignment };
        },
    };
    const panel = createPreferPanel({ api, describe, getSettings: () => settings, useWeights: (w) => used.push(w) });
    document.getElementById("main").replaceChildren(panel);
}"""


@pytest.fixture(scope="module")
def browser_page(served_toy: Running) -> Iterator[Any]:
    with open_blank(served_toy.url) as page:
        yield page


@pytest.fixture
def page(browser_page: Any, describe: dict[str, Any]) -> Any:
    browser_page.evaluate(PANEL, [describe, {"max_tokens": 12, "temperature": 1}])
    return browser_page


def draw(page: Any, prompt: str = "hi") -> None:
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("button", name="Draw answers").click()
    page.get_by_role("heading", name="Which do you prefer?").wait_for()


def settle(page: Any, choices: int) -> None:
    page.get_by_text(f"{choices} choice{'s' * (choices != 1)} so far").wait_for()


def scores(served_toy: Running, prompt: str, texts: list[str]) -> list[float]:
    body = {"messages": [{"role": "user", "content": prompt}], "responses": texts, "reward": "warmth"}
    answer = httpx.post(f"{served_toy.url}/v1/alignment/score", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return [score["value"] for score in answer.json()["scores"]]


def test_five_choices_by_one_objective_give_weights_for_it(page: Any, served_toy: Running) -> None:
    draw(page)
    for n in range(5):
        texts = page.locator(".pair article > p").all_text_contents()
        first, second = scores(served_toy, "hi", texts)
        page.locator(".question").focus()
        page.keyboard.press("1" if first > second else "2")
        settle(page, n + 1)
    page.get_by_role("button", name="Use these weights").click()
    [weights] = page.evaluate("window.used")
    assert max(weights, key=weights.get) == "warmth"
    assert weights["warmth"] > 0.5
    last = page.evaluate("window.sent.at(-1)")
    assert len(last["comparisons"]) == 5
    figure = page.locator(".weights figure")
    assert figure.locator("path.whisker").count() == len(weights)
    assert figure.locator("tbody tr").count() == len(weights)


def test_no_pair_is_asked_twice(page: Any) -> None:
    draw(page)
    seen = set()
    for n in range(4):
        pair = frozenset(page.locator(".pair article > p").all_text_contents())
        assert pair not in seen
        seen.add(pair)
        page.get_by_role("button", name="Neither").click()
        page.wait_for_function("n => window.sent.length === n + 2", arg=n)
        page.locator(".question button:enabled").first.wait_for()
    settle(page, 0)
    assert page.evaluate("window.sent.at(-1).comparisons") == []


def test_a_choice_is_taken_back_and_all_begins_again(page: Any) -> None:
    draw(page)
    texts = page.locator(".pair article > p").all_text_contents()
    page.get_by_role("button", name="I prefer this (key 2)").click()
    settle(page, 1)
    [comparison] = page.evaluate("window.sent.at(-1).comparisons")
    assert [comparison["chosen"], comparison["rejected"]] == texts[::-1]
    page.get_by_role("button", name="Undo").click()
    settle(page, 0)
    assert page.evaluate("window.sent.at(-1).comparisons") == []
    assert page.locator(".pair article > p").all_text_contents() == texts
    assert page.get_by_role("button", name="Use these weights").is_disabled()
    page.get_by_role("button", name="Start again").click()
    assert page.locator(".pair").count() == page.locator(".weights figure").count() == 0


def test_keys_are_text_where_a_text_is_written(page: Any) -> None:
    draw(page)
    asked = page.evaluate("window.sent.length")
    page.get_by_label("Prompt").fill("")
    page.get_by_label("Prompt").press_sequentially("120")
    assert page.get_by_label("Prompt").input_value() == "120"
    assert page.evaluate("window.sent.length") == asked


def test_a_failure_is_told_and_the_choice_can_be_made_again(page: Any) -> None:
    draw(page)
    page.route("**/v1/alignment/infer", lambda route: route.fulfill(status=503, json={"error": {"message": "gone"}}))
    page.locator(".question").focus()
    page.keyboard.press("1")
    page.get_by_role("alert").get_by_text("gone").wait_for()
    page.unroute("**/v1/alignment/infer")
    page.locator(".question").focus()
    page.keyboard.press("1")
    settle(page, 1)
    assert not page.get_by_role("alert").inner_text()


def test_a_server_without_rewards_says_so(page: Any, describe: dict[str, Any]) -> None:
    objectives = {name: {**facts, "reward": None} for name, facts in describe["objectives"].items()}
    page.evaluate(PANEL, [{**describe, "objectives": objectives}, {}])
    assert "no objective with a reward" in page.locator("#main").inner_text()
    assert page.locator("#main button").count() == 0
