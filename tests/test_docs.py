"""Documentation that is made from the code says what the code says."""

from __future__ import annotations

import pytest

from trimtab.server.docs import DOCS, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name](), "run `python -m trimtab.server.docs`"
