"""Take it with you: what is written runs, whatever the texts, and gives the answer that the page's body gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.browser.modules import call, open_blank
from tests.server.conftest import DEMO, KEY, Running
from trimtab.server.config import load
from trimtab.server.request.plan import plan

pytestmark = pytest.mark.slow

HOSTILE = [
    "plain",
    "it's $HOME `id` $(id) \\ \" ! % ~ * \r\n\t a",
    "'; echo gone; '",
    "a\\'b\\\\'c '' \"\"\" ''' # {x} %s",
    "ünï 你好 🦊 \u2028 \u2029 \u0085 \x7f \xa0 \ufeff \ufffe",
    "\x00 \x01 \x1b[31m \b \f",
    ": - ? [ ] { } & * | > @ null yes 1e3",
    "</script><img src=x onerror=alert(1)>",
    "",
]
BODIES: list[dict[str, Any]] = [
    {"alignment": {"strategy": "plain"}},
    {"alignment": {"weights": {"warmth": 0.5, "brevity": -1}, "return": ["trace", "progress"]}, "temperature": 0.7},
    {
        "alignment": {"strategy": "best_of_n", "weights": {"helpfulness": 1}, "params": {"n": 4, "diverse": None}},
        "stream": True,
        "stream_options": {"include_usage": True},
        "top_k": 2,
    },
    {"alignment": {"strategy": "blockwise", "weights": {"warmth": 1e-7}, "params": {"step": "'\n\"\\ 🦊\x7f\u2028"}}},
    {},
]


@pytest.fixture(scope="module")
def page(served_toy: Running) -> Iterator[Any]:
    with open_blank(served_toy.url) as page:
        yield page


def body_of(content: str, more: dict[str, Any]) -> dict[str, Any]:
    messages = [{"role": "user", "content": content or " "}]
    return {"model": "trimtab-demo", "messages": messages, "seed": 5, "max_tokens": 9, **more}


def answer_of(served_toy: Running, body: dict[str, Any]) -> Any:
    whole = {key: value for key, value in body.items() if key not in ("stream", "stream_options")}
    if "return" in whole.get("alignment", {}):
        whole["alignment"] = {**whole["alignment"], "return": ["trace"]}
    answer = httpx.post(f"{served_toy.url}/v1/chat/completions", json=whole, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def execute(command: list[str], folder: Path, **environment: str) -> str:
    ran = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert not list(folder.iterdir())
    return ran.stdout


@pytest.mark.parametrize("more", BODIES, ids=range(len(BODIES)))
def test_the_curl_gives_the_pages_answer(page: Any, served_toy: Running, tmp_path: Path, more: dict[str, Any]) -> None:
    body = body_of(HOSTILE[1], more)
    command = call(page, "takeaway", "writeCurl", body, f"{served_toy.url}/")
    answer = json.loads(execute(["bash", "-euc", command], tmp_path))
    assert answer["choices"][0]["message"]["content"] == answer_of(served_toy, body)


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_a_shell_reads_any_text_back(page: Any, tmp_path: Path, content: str) -> None:
    """As bash hands it on; what curl would send is the same JSON."""
    command = call(page, "takeaway", "writeCurl", body_of(content, {}), "http://h'ost/pre fix/v1/")
    script = 'curl() { printf "%s\\0" "$@"; }\n' + command
    words = execute(["bash", "-euc", script], tmp_path, TRIMTAB_API_KEY=KEY).split("\0")
    assert words[0] == "http://h'ost/pre fix/v1/chat/completions"
    assert f"Authorization: Bearer {KEY}" in words
    assert json.loads(words[words.index("--data-raw") + 1]) == body_of(content, {})
    assert KEY not in command


@pytest.mark.parametrize("more", BODIES, ids=range(len(BODIES)))
def test_the_python_gives_the_pages_answer(page: Any, served_toy: Running, tmp_path: Path, more: Any) -> None:
    body = body_of(HOSTILE[1], more)
    program = call(page, "takeaway", "writePython", body, served_toy.url)
    shown = execute([sys.executable, "-c", program], tmp_path, TRIMTAB_API_KEY="none")
    assert shown.removesuffix("\n") == answer_of(served_toy, body)


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_python_reads_any_text_back(page: Any, content: str) -> None:
    class Recorder:
        def __init__(self, **_: Any) -> None:
            self.chat = self.completions = self

        def create(self, **arguments: Any) -> Any:
            sent.append(arguments)
            raise StopIteration

    sent: list[dict[str, Any]] = []
    body = body_of(content, {"alignment": {"params": {content: [True, None, 0.5]}}})
    program = call(page, "takeaway", "writePython", body, "http://host").replace("from openai import OpenAI", "")
    with pytest.raises(StopIteration):
        exec(program, {"OpenAI": Recorder})
    extra = sent[0].pop("extra_body")
    assert sent[0] | extra == body


@pytest.mark.parametrize("writer", ["writeOpenAI", "writeFetch"])
@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_javascript_reads_any_text_back(page: Any, writer: str, content: str) -> None:
    body = body_of(content, {"alignment": {"params": {content: content, "__proto__": {"x": content}}}})
    text = json.dumps(body)
    code = page.evaluate(
        "async ([w, b]) => (await import('./js/takeaway.js'))[w](JSON.parse(b), 'http://host/')", [writer, text]
    )
    script = """async (code) => {
        const AsyncFunction = (async () => {}).constructor;
        let sent = null;
        class OpenAI {
            constructor(options) {
                if (options.baseURL !== "http://host/v1") throw new Error(options.baseURL);
                this.chat = { completions: { create: async (b) => { sent = JSON.stringify(b); throw "enough"; } } };
            }
        }
        const fetch = async (url, { body }) => { sent = body; throw "enough"; };
        const process = { env: {} };
        const program = code.replace(/^import .*$/m, "");
        await new AsyncFunction("OpenAI", "fetch", "process", program)(OpenAI, fetch, process).catch((e) => {
            if (e !== "enough") throw e;
        });
        return sent;
    }"""
    assert json.loads(page.evaluate(script, code)) == body


@pytest.mark.parametrize("more", BODIES, ids=range(len(BODIES)))
def test_the_preset_means_what_the_request_means(page: Any, tmp_path: Path, more: dict[str, Any]) -> None:
    body = body_of("hi", more)
    text = call(page, "takeaway", "writePreset", body, "null")
    file = DEMO.parent / "config.yaml"
    config = load(file)
    written = file.read_text()
    folder = tmp_path / "demo"
    folder.mkdir()
    for part in DEMO.parent.iterdir():
        if part.name != "config.yaml":
            (folder / part.name).symlink_to(part)
    (folder / "config.yaml").write_text(written[: written.index("presets:")] + text + written[written.index("host:") :])
    preset = load(folder / "config.yaml").presets["null"]
    alignment = {k: v for k, v in body.get("alignment", {"strategy": "plain"}).items() if k != "return"}
    assert plan(preset, config) == plan(alignment, config)


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_yaml_reads_any_text_back(page: Any, content: str) -> None:
    alignment = {"strategy": content, "params": {content: [content, 1e-7, 1e21, True, None]}}
    text = call(page, "takeaway", "writePreset", {"alignment": alignment}, content)
    [(name, preset)] = yaml.safe_load(text)["presets"].items()
    assert (name, preset["strategy"]) == (content, content)
    assert next(iter(preset["params"])) == content
    assert preset["params"][content][0] == content


SETTINGS: list[dict[str, Any]] = [
    {"model": "trimtab-demo", "strategy": "", "weights": {}, "params": {}, "seed": None, "budget": {}, "system": ""},
    {"model": "m", "weights": "auto", "seed": "not a number", "system": "Be kind. 🦊 'quotes' ünï"},
    {"weights": {"warmth": -0.5}, "params": {"n": 4, "diverse": {"groups": 2}}, "reward": {"of": ["a", "b"]}},
    {},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=range(len(SETTINGS)))
def test_settings_come_back_from_a_link(page: Any, settings: dict[str, Any]) -> None:
    text = call(page, "takeaway", "encodeSettings", settings)
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
    assert call(page, "takeaway", "decodeSettings", text) == settings
    assert call(page, "takeaway", "decodeSettings", f"#{text}") == settings


def test_a_link_holds_neither_key_nor_conversation(page: Any) -> None:
    secret = {"key": KEY, "apiKey": KEY, "messages": [{"content": KEY}], "conversation": KEY}
    text = call(page, "takeaway", "encodeSettings", {"model": "m", **secret})
    assert call(page, "takeaway", "decodeSettings", text) == {"model": "m"}


@pytest.mark.parametrize(
    "text",
    ["", "#", "s1.", "s1.!", "s1.AAAA", "s2.e30", "s1.bnVsbA", "s1.W10", "s1.eyJrZXkiOjF9", "s1.eyJ3ZWlnaHRzIjoxfQ"],
)
def test_what_is_no_settings_is_null(page: Any, text: str) -> None:
    assert call(page, "takeaway", "decodeSettings", text) is None


def test_each_form_has_a_copy_button(page: Any, served_toy: Running) -> None:
    preset = {"strategy": "best_of_n", "weights": {"caution": 2}}
    page.evaluate(
        """async ([body, url, preset]) => {
            const { createTakeaway } = await import("./js/takeaway.js");
            window.copied = [];
            Object.defineProperty(navigator, "clipboard", { value: { writeText: async (t) => copied.push(t) } });
            window.body = body;
            const facts = { getBody: () => window.body, getSettings: () => ({ model: body.model }), url, model: "m" };
            document.getElementById("main").replaceChildren(createTakeaway({ ...facts, presets: { careful: preset } }));
        }""",
        [body_of("hi", BODIES[1]) | {"model": "careful"}, served_toy.url, preset],
    )
    forms = page.locator(".takeaway details")
    names = forms.evaluate_all("all => all.map(d => d.dataset.form)")
    assert names == ["curl", "Python (openai)", "JavaScript (openai)", "JavaScript (fetch)", "Preset (YAML)", "Link"]
    page.evaluate("window.body = { ...window.body, seed: 77 }")
    for form in forms.all():
        if form.get_attribute("open") is None:
            form.locator("summary").click()
        form.get_by_role("button").click()
    copied = page.evaluate("window.copied")
    assert copied == page.locator(".takeaway code").all_text_contents()
    assert all("77" in text for text in copied[:4])
    assert page.get_by_role("status").inner_text() == "Copied: Link."
    whole = {"m-mine": {**preset, "weights": BODIES[1]["alignment"]["weights"]}}
    assert yaml.safe_load(copied[4])["presets"] == whole, "the request's alignment, over its preset's"
