"""Documentation that is made from the code says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trimtab.server.docs import DOCS, PAGES, describe, first_sentence, render_table

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name](), "run `python -m trimtab.server.docs`"


def test_a_cell_is_one_line_whose_bars_are_no_borders() -> None:
    lines = render_table(("a", "b"), [("x |\n  y", "z  z"), ("", "w")])
    assert lines == ["| a | b |", "|---|---|", r"| x \| y | z z |", "|  | w |"]


@pytest.mark.parametrize("name", PAGES)
def test_every_row_has_its_table_s_cells(name: str) -> None:
    lines = (DOCS / name).read_text().splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("|") and before.startswith("|"):
            assert line.endswith("|"), line
            assert borders(line) == borders(before), line


def borders(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line))


def test_a_description_goes_on_to_its_formula() -> None:
    class Build:
        """What it gives:

            f(x) = |x|
              for all x

        being never
        negative.

        Nobody reads this.
        """

    assert describe(Build) == "What it gives:\n\n```\nf(x) = |x|\n  for all x\n```\n\nbeing never negative."
    Build.__doc__ = "What it gives.\n\n    f(x)\n"
    assert describe(Build) == "What it gives."
    Build.__doc__ = "What it gives:\n\n    f(x)\n\nIt is read elsewhere."
    assert describe(Build) == "What it gives:\n\n```\nf(x)\n```"


def test_length_and_readability_show_what_they_compute() -> None:
    page = (DOCS / "rewards.md").read_text()
    assert "\n1 - max(min - l, 0) / min - max(l - max, 0) / max\n" in page
    assert "\n4.71 characters / words + 0.5 words / sentences - 21.43\n" in page
    kinds = page[page.index("\n### ") :]
    assert not re.search(r":\n\n(\||No keys)", kinds), "a description ends before what it announces"


def test_the_first_sentence_of_a_docstring() -> None:
    assert first_sentence("ARGS (arXiv 2402.01694): the next\ntoken. Not this.\n\nNor this.") == (
        "ARGS (arXiv 2402.01694): the next token"
    )
    assert first_sentence("An F1:\n\n    u(x)") == "An F1"


def test_every_module_says_what_it_is() -> None:
    empty = [
        line for line in (DOCS / "architecture.md").read_text().splitlines() if re.search(r"^\| `.*\|\s+\|$", line)
    ]
    assert not empty


def test_what_is_withstood_names_tests_that_are_there() -> None:
    page = (DOCS / "operations.md").read_text()
    rows = page[page.index("## What it withstands") : page.index("## Stress tests")]
    file, count = "", 0
    for named, test in re.findall(r"`((?:[\w/]+/)?test_\w+\.py)?(?:::(test_\w+))?`", rows):
        file, count = named or file, count + bool(named or test)
        path = ROOT / file if file.startswith("tests/") else ROOT / "tests/server" / file
        if named or test:
            assert path.exists(), file
            assert not test or f"def {test}(" in path.read_text(), f"{file}::{test}"
    assert count > 40, "the table's form has changed"
