"""Examples and the README's requests, run on a toy server with the demo's names."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import Running

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
HERE = "http://127.0.0.1:8000"
"""Where the documentation's server is."""
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
CURLS = [block for language, block in BLOCKS if block.startswith("curl ")]
PYTHON = [block for language, block in BLOCKS if language == "python"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs(
    example: Path, served_toy: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIMTAB_URL", f"{served_toy.url}/v1")
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_the_readme_has_both_kinds() -> None:
    assert len(CURLS) >= 5
    assert len(PYTHON) >= 1


@pytest.mark.parametrize("block", CURLS, ids=range(len(CURLS)))
def test_the_readme_s_curl_is_answered(block: str, served_toy: Running) -> None:
    command, url, *options = shlex.split(block)
    assert command == "curl"
    assert options[:-1] == ["-H", "content-type: application/json", "-d"]
    headers = {"content-type": "application/json"}
    answer = httpx.post(url.replace(HERE, served_toy.url), headers=headers, content=options[-1], timeout=60)
    assert answer.status_code == 200, answer.text
    assert '"alignment' in answer.text


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_the_readme_s_python_runs(block: str, served_toy: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert HERE in block
    exec(block.replace(HERE, served_toy.url), {})
    _, alignment = capsys.readouterr().out.strip().split("\n")
    assert "'strategy': 'guided'" in alignment
