"""The playground's modules by themselves: imported into a blank page of a server, whose body shows what they make."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import CHROMIUM, MISSING

PLAYGROUND = Path(__file__).parent.parent.parent / "server" / "playground"
BLANK = "<!doctype html><html lang=en><meta charset=utf-8><title>blank</title><body><main id=main></main>"
TYPES = {".js": "text/javascript", ".css": "text/css"}


@contextmanager
def open_blank(url: str) -> Iterator[Any]:
    """Playwright's page at `url`/blank, with the modules under js/; raises on a test's end what it threw."""
    from playwright import sync_api

    if CHROMIUM is None:
        pytest.skip(MISSING)
    errors: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.route(f"{url}/blank", lambda route: route.fulfill(body=BLANK, content_type="text/html"))
        for path in PLAYGROUND.rglob("*"):
            if path.suffix in TYPES:
                serve_file(page, f"{url}/{path.relative_to(PLAYGROUND)}", path)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{url}/blank")
        yield page
        browser.close()
    assert not errors


def serve_file(page: Any, url: str, path: Path) -> None:
    page.route(url, lambda route: route.fulfill(path=path, content_type=TYPES[path.suffix]))


def call(page: Any, module: str, function: str, *arguments: Any) -> Any:
    """What a module's function returns, as JSON has it."""
    script = "async ([m, f, a]) => (await import(`./js/${m}.js`))[f](...a)"
    return page.evaluate(script, [module, function, list(arguments)])


def show(page: Any, module: str, function: str, *arguments: Any) -> Any:
    """The element that a module's function returns, as all that the page shows."""
    script = """async ([m, f, a]) => {
        const node = (await import(`./js/${m}.js`))[f](...a);
        document.getElementById("main").replaceChildren(node);
    }"""
    page.evaluate(script, [module, function, list(arguments)])
    return page.locator("#main > *")
