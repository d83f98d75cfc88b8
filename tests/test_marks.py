"""`make quick` starts no engine: what starts one is marked, and fails where the mark was forgotten."""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path

import pytest

from tests import conftest
from tests.server.conftest import serve


def test_an_engine_starts_only_under_its_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    def start() -> int | None:
        process = get_context("fork").Process(target=len, args=((),), name="EngineCore_DP0")
        process.start()
        process.join()
        return process.exitcode

    with pytest.raises(pytest.fail.Exception, match="EngineCore_DP0 starts in a test without"):
        start()
    monkeypatch.setattr(conftest, "marked", True)
    assert start() == 0


def test_a_server_with_engines_starts_only_under_its_mark(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="trimtab serve starts in a test without"):
        serve(tmp_path / "config.yaml", tmp_path / "log")
