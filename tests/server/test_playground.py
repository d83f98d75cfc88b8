"""The playground's files over HTTP: whole, open, light, and nothing else of the server open with them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi import FastAPI

from tests.server import toy_server
from trimtab.server.config import load
from trimtab.server.http.playground import FOLDER, Playground, list_files
from trimtab.server.metrics import REQUESTS

KEY, ADMIN = "a-key-of-the-test", "an-admin-s-key-of-the-test"
HEAVIEST = 150_000
"""Bytes of the page in all."""
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
NAMED = {
    ".js": re.compile(r"""^(?:import|\}|export)[^"'\n]*\bfrom ["']([^"']+)["']|\bimport\(["']([^"']+)""", re.MULTILINE),
    ".html": re.compile(r"""(?:src|href)=["']([^"']+)["']"""),
    ".css": re.compile(r"""(?:url\(|@import)\s*["']?([^"')]+)"""),
    ".svg": re.compile(r"""href=["']([^"']+)["']"""),
}
"""What a file of a kind has the browser fetch."""


async def elsewhere(scope: Any, receive: Any, send: Any) -> None:
    """The app behind: it answers 418 to all."""
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


def http(app: Any, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toy", headers=headers)


@pytest.mark.parametrize("path", sorted(list_files()))
async def test_each_file_with_its_headers(path: str) -> None:
    file = list_files()[path]
    async with http(Playground(elsewhere)) as raw:
        answer = await raw.get(path)
        again = await raw.get(path, headers={"if-none-match": f'"other", W/{answer.headers["etag"]}'})
        changed = await raw.get(path, headers={"if-none-match": '"other"'})
    assert (answer.status_code, answer.content) == (200, file.read_bytes())
    kinds = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
    assert answer.headers["content-type"].split(";")[0] == kinds[file.suffix]
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    directives = (part.strip().partition(" ") for part in answer.headers["content-security-policy"].split(";"))
    assert {name: values for name, _, values in directives} == POLICY
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])
    assert changed.status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/playground", "/playground/", "/playground/index.html", "/playground/../state.py", "/playground/js/", "//"],
)
async def test_what_is_no_file_of_it_is_the_app_s(path: str) -> None:
    async with http(Playground(elsewhere)) as raw:
        assert (await raw.get(httpx.URL("http://toy", raw_path=path.encode()))).status_code == 418


def test_all_that_files_name_is_there_and_relative() -> None:
    """With and without a prefix of a proxy's: no address begins with a slash or names a host."""
    served = set(list_files())
    for path, file in list_files().items():
        for match in NAMED[file.suffix].finditer(file.read_text()):
            name = next(filter(None, match.groups()))
            if name == "docs":  # vLLM's page, beside ours
                continue
            assert not re.match(r"/|[a-z]+:", name), f"{path} names {name}"
            assert str(httpx.URL("http://toy" + path).join(name).path) in served, f"{path} names {name}"


def test_no_inline_style_or_script() -> None:
    page = list_files()["/"].read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|<base\b", page)
    for file in FOLDER.rglob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", file.read_text()), file


def test_every_module_says_what_it_does() -> None:
    for file in FOLDER.rglob("*.js"):
        assert file.read_text().startswith("// "), file


def test_its_weight() -> None:
    assert sum(file.stat().st_size for file in list_files().values()) < HEAVIEST


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_server.checkpoint(tmp_path_factory.mktemp("open"))


@pytest.fixture(scope="module")
async def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FastAPI, Path]:
    """A server with keys, and its configuration file."""
    path = tmp_path_factory.mktemp("played") / "config.yaml"
    engine = {"dtype": "float32", "max_model_len": 256, "enforce_eager": True}
    keys = {"api_keys": [KEY], "admin_keys": [ADMIN]}
    path.write_text(yaml.safe_dump({"base": str(folder), "name": "toy", "engine": engine, **keys}))
    toy = toy_server.toy_engine(folder)
    return await toy_server.app(toy_server.site(load(path), toy, load_config=lambda: load(path))), path


async def test_it_is_open_and_the_rest_is_not(served: tuple[FastAPI, Path]) -> None:
    app, _ = served

    def count() -> float:
        return sum(sample.value for metric in REQUESTS.collect() for sample in metric.samples)

    before = count()
    async with http(app) as raw:
        for path, file in list_files().items():
            answer = await raw.get(path)
            assert (answer.status_code, answer.content) == (200, file.read_bytes())
            assert answer.headers["x-request-id"]
            head = await raw.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == str(len(answer.content))
        for path in ("/v1/alignment", "/v1/models", "/playground/nothing", "/docs", "/metrics"):
            assert (await raw.get(path)).status_code == 401, path
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            refused = await raw.request(method, "/")
            assert (refused.status_code, refused.json()["error"]["code"]) == (405, "method_not_allowed")
            assert refused.headers["allow"] == "GET, HEAD"
    assert count() == before


async def test_it_can_be_turned_off_and_on_again(served: tuple[FastAPI, Path]) -> None:
    app, path = served
    text = path.read_text()
    async with http(app, authorization=f"Bearer {ADMIN}") as raw:
        for on in (False, True):
            path.write_text(f"{text}\nplayground: {str(on).lower()}\n")
            assert (await raw.post("/admin/reload")).json() == {"changed": ["playground"]}
            for file in list_files():
                assert (await raw.get(file)).status_code == (200 if on else 404)
            refused = await raw.post("/")
            assert refused.status_code == (405 if on else 404)
