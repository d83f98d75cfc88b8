"""What happened: a real report of every strategy in the table is shown whole, and its numbers are the report's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.browser.modules import call, open_blank, show
from tests.server.conftest import DEMO, Running, wishes
from trimtab.decoders import STRATEGIES
from trimtab.server.config import load

pytestmark = pytest.mark.slow

HI = [{"role": "user", "content": "How do I clean a copper pan?"}]
VIEWS = {
    "candidates": ".pool",
    "rewards": ".rewards",
    "transformed": ".rewards",
    "direction": "figure",
    "trace": ".guided, .chains, .decisions",
}
"""key of a report -> what shows it, beside the keys that are shown under their names"""


@pytest.fixture(scope="module")
def page(served_toy: Running) -> Iterator[Any]:
    with open_blank(served_toy.url) as page:
        yield page


@pytest.fixture(scope="module")
def answers(served_toy: Running, describe: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """strategy -> what the server answers with all that it can return"""
    found = {}
    for name, wish in wishes(load(DEMO)).items():
        if "reward" in wish:
            del wish["reward"]
            wish["weights"] = {"helpfulness": 1.0, "brevity": 0.5}
        wish["return"] = [k for k in describe["strategies"][name]["return"] if k not in ("progress", "best")]
        body = {"model": "trimtab-demo", "messages": HI, "seed": 1, "max_tokens": 12, "alignment": wish}
        answer = httpx.post(f"{served_toy.url}/v1/chat/completions", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        found[name] = answer.json()
    return found


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_report_is_shown(page: Any, answers: Any, describe: Any, name: str) -> None:
    alignment = answers[name]["alignment"]
    shown = show(page, "happened", "showHappened", alignment, describe)
    assert name in shown.locator(".strategy").inner_text()
    assert describe["strategies"][name]["description"] in shown.locator(".strategy").inner_text()
    assert str(alignment["sampled_tokens"]) in shown.locator("[data-key=sampled_tokens]").inner_text()
    for choice in alignment.get("choices", []):
        section = shown.locator(f"section[data-index='{choice['index']}']")
        for key in choice.keys() - {"index"}:
            assert section.locator(VIEWS.get(key, f"[data-key={key}]")).count(), f"{key} is not shown"
    for key in alignment.keys() & {"params", "weights", "guides"}:
        assert shown.locator(f".rest [data-key={key}]").count() == 1
    assert not shown.get_by_text("undefined").count()
    assert not shown.get_by_text("[object Object]").count()
    assert not shown.get_by_text("NaN").count()


@pytest.mark.parametrize("name", [n for n in STRATEGIES if n in ("guided", "genarm", "mod", "dera", "contrastive")])
def test_tokens_have_the_traces_numbers(page: Any, answers: Any, describe: Any, name: str) -> None:
    [choice] = answers[name]["alignment"]["choices"]
    trace = choice["trace"]
    show(page, "happened", "showHappened", answers[name]["alignment"], describe)
    tokens = page.locator(".tokens button.token")
    script = "all => all.map(b => [Number(b.dataset.kl), Number(b.dataset.logZ), b.className])"
    drawn = tokens.evaluate_all(script)
    assert [kl for kl, _, _ in drawn] == trace["kl_exact"]
    assert [z for _, z, _ in drawn] == trace["log_z"]
    levels = [sum(kl >= least for least in (0.02, 0.1, 0.5, 1)) for kl in trace["kl_exact"]]
    assert [name for _, _, name in drawn] == [f"token kl-{level}" for level in levels]
    text = answers[name]["choices"][0]["message"]["content"]
    assert "".join(tokens.all_text_contents()).removesuffix("■") == text


def test_a_token_tells_of_itself_by_keyboard_and_by_pointer(page: Any, answers: Any, describe: Any) -> None:
    alignment = answers["guided"]["alignment"]
    trace = {"kl_exact": [0.25, 0.0], "log_z": [-0.5, 0.125], "texts": ["Oh", "\n"], "log_weight": None}
    show(page, "happened", "showHappened", {**alignment, "choices": [{"index": 0, "trace": trace}]}, describe)
    tokens, detail = page.locator(".tokens button.token"), page.locator(".token-detail")
    tokens.first.focus()
    assert "“Oh”: KL 0.25 nats, log Z -0.5" in detail.inner_text()
    for guide, exponent in alignment["guides"].items():
        assert f"{guide} {exponent:g}" in detail.inner_text()
    page.keyboard.press("ArrowRight")
    assert "“⏎”: KL 0 nats, log Z 0.125" in detail.inner_text()
    assert tokens.evaluate_all("all => all.map(b => b.tabIndex)") == [-1, 0]
    tokens.first.hover()
    assert "“Oh”" in detail.inner_text()


@pytest.mark.parametrize("name", [n for n, row in STRATEGIES.items() if "candidates" in row.shows])
def test_candidates_are_ranked_and_the_winner_is_marked(page: Any, answers: Any, describe: Any, name: str) -> None:
    [choice] = answers[name]["alignment"]["choices"]
    show(page, "happened", "showHappened", answers[name]["alignment"], describe)
    script = "all => all.map(c => [Number(c.dataset.index), c.dataset.value, c.classList.contains('winner')])"
    rows = page.locator(".candidate").evaluate_all(script)
    assert sorted(index for index, _, _ in rows) == [c["index"] for c in choice["candidates"]]
    values = [float(value) for _, value, _ in rows if value is not None]
    assert values == sorted(values, reverse=True)
    assert [index for index, _, won in rows if won] == [choice["candidate"]]
    winner = page.locator(".candidate.winner blockquote").text_content()
    assert winner == (answers[name]["choices"][0]["message"]["content"] or "(empty)")
    if values:
        mark = page.locator(".pool g.mark text").text_content()
        assert float(mark.removeprefix("chosen: ")) == pytest.approx(choice["value"], rel=1e-3)


def test_chains_are_drawn_step_by_step(page: Any, answers: Any, describe: Any) -> None:
    [choice] = answers["qalign"]["alignment"]["choices"]
    show(page, "happened", "showHappened", answers["qalign"]["alignment"], describe)
    assert page.locator(".chains g.line").count() == len(choice["trace"])
    assert page.locator(".chains path.marker").count() == sum(1 + sum(c["accepted"]) for c in choice["trace"])
    assert "R̂" in page.locator("[data-key=r_hat]").inner_text()


@pytest.mark.parametrize(
    ("value", "words"), [(1.004, "agree with"), (1.05, "nearly"), (2, "not agree"), (None, "cannot")]
)
def test_r_hat_is_put_in_words(page: Any, describe: Any, value: float | None, words: str) -> None:
    alignment = {"strategy": "qalign", "choices": [{"index": 0, "r_hat": value}]}
    show(page, "happened", "showHappened", alignment, describe)
    assert words in page.locator("[data-key=r_hat]").inner_text()


def test_decisions_name_their_candidates_in_text(page: Any, answers: Any, describe: Any) -> None:
    for name in ("args", "transfer_q"):
        [choice] = answers[name]["alignment"]["choices"]
        show(page, "happened", "showHappened", answers[name]["alignment"], describe)
        decisions = page.locator(".decision")
        assert decisions.count() == choice["decisions"]
        first = choice["trace"][0]
        rows = decisions.first.locator("tbody tr")
        assert rows.count() == len(first["tokens"])
        assert rows.nth(first["chosen"]).locator("td").first.inner_text() == "chosen"
        for c, text in enumerate(first["texts"]):
            assert (text or "the end") in rows.nth(c).inner_text()


def test_votes_are_shares_of_all(page: Any, describe: Any) -> None:
    pool = [{"index": i, "value": None, "text": t, "answer": t, "vote": 1.0} for i, t in enumerate("4544")]
    report = {"index": 0, "value": None, "candidate": 0, "answer": "4", "share": 0.75, "votes": 3.0, "candidates": pool}
    show(page, "happened", "showHappened", {"strategy": "vote", "choices": [report]}, describe)
    assert "75 %" in page.locator("[data-key=share]").inner_text()
    rows = page.locator(".pool figure").filter(has_text="Votes by answer").locator("tbody tr")
    assert rows.all_text_contents() == ["40.75", "50.25"]


def test_what_is_unknown_is_shown_as_it_is(page: Any, describe: Any) -> None:
    choice = {
        "index": 0, "novelty": 1.25, "nested": {"deep": [1, {"er": None}]}, "figures": {"odd": "yes"},
        "trace": {"of": "another kind"}, "rewards": 3, "decisions": [{"tokens": 3, "kept": 2}], "value": {"odd": 1},
    }  # fmt: skip
    alignment = {"strategy": "of tomorrow", "elsewhere": [7, 8], "outcome": "eclipse", "choices": [choice]}
    show(page, "happened", "showHappened", alignment, describe)
    shown = page.locator("#main").inner_text()
    for text in ("of tomorrow", "eclipse", "novelty", "1.25", '"er": null', "odd", "yes", "another kind", "kept", "7"):
        assert text in shown


def test_hostile_text_stays_text(page: Any, describe: Any) -> None:
    evil = "<img src=x onerror=alert(1)>"
    pool = [{"index": 0, "value": 1.0, "text": evil, "rewards": {evil: 1.0}, evil: evil}]
    trace = {"kl_exact": [1.0], "log_z": [0.0], "texts": [evil]}
    alignment = {
        "strategy": evil, "warnings": [evil], evil: evil,
        "choices": [{"index": 0, "candidates": pool, "trace": trace, "preference_prompt": evil, "answer": evil}],
    }  # fmt: skip
    show(page, "happened", "showHappened", alignment, describe)
    assert page.locator("#main img").count() == 0


@pytest.mark.parametrize("alignment", [None, {}, {"strategy": "plain"}, {"strategy": "guided", "choices": []}])
def test_little_is_said_of_little(page: Any, describe: Any, alignment: Any) -> None:
    assert show(page, "happened", "showHappened", alignment, describe).inner_text()
    assert call(page, "happened", "levelOf", None) == 0
