"""Charts: ticks, and what they show of few, equal, missing and very many values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from tests.browser.modules import call, open_blank, show

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with open_blank("http://blank.invalid") as page:
        yield page


def numbers(figure: Any, selector: str) -> list[float]:
    return [float(text) for text in figure.locator(selector).all_text_contents()]


def table(figure: Any) -> list[list[str]]:
    script = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    rows: list[list[str]] = figure.locator("tbody tr").evaluate_all(script)
    return rows


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (-3.7, 12.2), (0.0013, 0.0021), (-1e300, 1e300), (1e6, 1e6 + 1), (5, 5), (0, 0), (-2, -2), (1e-12, 3e-12)],
)
def test_ticks_are_round_even_and_enclose_what_they_are_for(page: Any, low: float, high: float) -> None:
    ticks = call(page, "charts", "niceTicks", low, high)
    assert 2 <= len(ticks) <= 9
    assert ticks[0] <= low + 1e-9 * abs(low)
    assert ticks[-1] >= high - 1e-9 * abs(high)
    steps = [b - a for a, b in pairwise(ticks)]
    assert min(steps) > 0
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-6, abs=0)
    power = 10.0 ** math.floor(math.log10(steps[0]) + 1e-6)
    [step] = [factor * power for factor in (1, 2, 5) if steps[0] == pytest.approx(factor * power, rel=1e-6, abs=0)]
    assert [tick / step for tick in ticks] == pytest.approx([round(tick / step) for tick in ticks], rel=1e-9, abs=1e-6)


def test_ticks_of_counts_are_whole(page: Any) -> None:
    assert call(page, "charts", "niceTicks", 0, 2, {"whole": True}) == [0, 1, 2]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3, "3"), (1 / 3, "0.3333"), (-0.00001234, "-0.0000123"), (1234567, "1230000"), (4e21, "4e+21")],
)
def test_numbers_are_short(page: Any, value: float, text: str) -> None:
    assert call(page, "charts", "formatFigure", value) == text


@pytest.mark.parametrize(
    ("values", "counted"),
    [([2.5], 1), ([1, 1, 1, 1], 4), ([0, None, 5, None], 2), ([-3, -1, 0, 0, 0, 2, 9], 7), ([0.1] * 3 + [0.2], 4)],
)
def test_every_value_is_in_one_column(page: Any, values: list[float | None], counted: int) -> None:
    figure = show(page, "charts", "histogram", values, {"label": "Rewards"})
    counts = [int(text) for text in figure.locator("rect.bar").evaluate_all("bars => bars.map(b => b.dataset.count)")]
    assert sum(counts) == counted
    known = [value for value in values if value is not None]
    for (span, count), edge in zip(table(figure), counts, strict=True):
        low, high = (float(part) for part in span.split(" to "))
        assert int(count) == edge == sum(low - 1e-9 <= v < high - 1e-9 for v in known) or max(known) >= high - 1e-9
    missing = len(values) - counted
    assert figure.get_by_text(f"{missing} of {len(values)} have no value.").count() == bool(missing)


def test_the_marked_value_is_pointed_out_without_colour(page: Any) -> None:
    figure = show(page, "charts", "histogram", [1, 2, 3, 7], {"label": "Rewards", "marked": 7})
    assert figure.locator("g.mark text").text_content() == "chosen: 7"
    assert figure.locator("g.mark line").get_attribute("stroke-dasharray")
    assert "The chosen one has 7" in figure.get_by_role("img", name="Rewards").get_attribute("aria-label")


@pytest.mark.parametrize("values", [[], [None, None]])
def test_nothing_to_draw_is_said(page: Any, values: list[Any]) -> None:
    for function, arguments in (
        ("histogram", [values, {"label": "Empty"}]),
        ("lines", [[{"name": "one", "values": values}], {"label": "Empty", "x": "step", "y": "reward"}]),
        ("bars", [[{"name": "one", "value": value} for value in values], {"label": "Empty"}]),
    ):
        figure = show(page, "charts", function, *arguments)
        assert figure.locator("svg").count() == 0
        assert "no value" in figure.inner_text()


def test_lines_differ_by_dash_shape_and_a_label_at_each(page: Any) -> None:
    series = [{"name": f"chain {c}", "values": [c + step for step in range(5)]} for c in range(4)]
    figure = show(page, "charts", "lines", series, {"label": "Reward by step", "x": "step", "y": "reward"})
    assert figure.locator("g.line text").all_text_contents() == [f"chain {c}" for c in range(4)]
    dashes = figure.locator("polyline").evaluate_all("all => all.map(l => l.getAttribute('stroke-dasharray'))")
    shapes = figure.locator("g.line").evaluate_all("all => all.map(g => g.querySelector('path').getAttribute('d'))")
    assert len(set(dashes)) == len(set(shapes)) == 4
    heights = sorted(figure.locator("g.line text").evaluate_all("all => all.map(t => Number(t.getAttribute('y')))"))
    assert min(b - a for a, b in pairwise(heights)) >= 13
    assert set(figure.locator("text.name").all_text_contents()) == {"step", "reward"}
    assert table(figure)[2] == ["2", "2", "3", "4", "5"]


def test_a_gap_is_a_gap_and_a_point_alone_a_mark(page: Any) -> None:
    series = [{"name": "one", "values": [1, None, 3, 4], "filled": [True, False, False, True]}]
    figure = show(page, "charts", "lines", series, {"label": "Reward", "x": "step", "y": "reward"})
    points = figure.locator("polyline").evaluate_all("all => all.map(l => l.getAttribute('points').split(' ').length)")
    assert points == [1, 2]
    assert (figure.locator("path.marker").count(), figure.locator("path.hollow").count()) == (2, 1)
    figure = show(page, "charts", "lines", [{"name": "one", "values": [5]}], {"label": "R", "x": "step", "y": "reward"})
    assert figure.locator("path.marker").count() == 1


def test_places_are_where_the_axis_says(page: Any) -> None:
    """A point lies between two ticks' lines as its value does between their values."""
    values = [0.5, 2.25, -1.0]
    figure = show(page, "charts", "lines", [{"name": "one", "values": values}], {"label": "R", "x": "s", "y": "r"})
    ticks = numbers(figure, "text.tick.y")
    lines = figure.locator("line.grid").evaluate_all("all => all.map(l => Number(l.getAttribute('y1')))")
    points = figure.locator("polyline").get_attribute("points").split(" ")
    slope = (lines[-1] - lines[0]) / (ticks[-1] - ticks[0])
    for value, point in zip(values, points, strict=True):
        assert float(point.split(",")[1]) == pytest.approx(lines[0] + slope * (value - ticks[0]), abs=0.02)


def test_ticks_that_lie_close_read_differently(page: Any) -> None:
    series = [{"name": "one", "values": [1_000_000, 1_000_001]}]
    figure = show(page, "charts", "lines", series, {"label": "R", "x": "step", "y": "reward"})
    ticks = numbers(figure, "text.tick.y")
    assert len(set(ticks)) == len(ticks)
    assert (ticks[0], ticks[-1]) == (1_000_000, 1_000_001)


def test_more_than_can_be_drawn_is_said(page: Any) -> None:
    series = [{"name": f"chain {c}", "values": list(range(2000))} for c in range(9)]
    figure = show(page, "charts", "lines", series, {"label": "Reward", "x": "step", "y": "reward"})
    assert "6 of 9 lines are drawn." in figure.inner_text()
    assert "One of 5 steps is drawn." in figure.inner_text()
    assert "The first 200 of 2000 rows." in figure.text_content()


def test_bars_and_intervals(page: Any) -> None:
    items = [{"name": "a", "value": -1.5}, {"name": "b", "value": 3, "marked": True}, {"name": "c", "value": None}]
    figure = show(page, "charts", "bars", items, {"label": "Rewards"})
    widths = figure.locator("rect.bar").evaluate_all("all => all.map(r => Number(r.getAttribute('width')))")
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01)
    assert "▸ b" in figure.inner_text()
    assert table(figure) == [["a", "-1.5"], ["b", "3"], ["c", "none"]]
    items = [{"name": "warmth", "value": 0.5, "low": -0.25, "high": 0.75}]
    figure = show(page, "charts", "bars", items, {"label": "Weights", "low": -1, "high": 1})
    assert figure.locator("path.whisker").count() == figure.locator("circle").count() == 1
    assert table(figure) == [["warmth", "0.5", "-0.25", "0.75"]]


def test_text_is_no_markup(page: Any) -> None:
    items = [{"name": "<img src=x onerror=alert(1)>", "value": 1}]
    figure = show(page, "charts", "bars", items, {"label": "<b>bold</b>"})
    assert figure.locator("img, b").count() == 0
    assert "<b>bold</b>" in figure.inner_text()
