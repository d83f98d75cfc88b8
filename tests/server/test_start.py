"""Starts that fail: one clear line, a status, and no process left behind."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from tests.server.conftest import PATIENCE, Running, end, free_port, serve
from trimtab.server.config import load

pytestmark = pytest.mark.engine  # those that are refused have loaded vLLM first
Edited = Callable[..., Path]


@pytest.fixture
def edited(config_path: Path, tmp_path: Path) -> Edited:
    """The server's configuration with some keys changed, as a file of its own."""

    def edited(**keys: object) -> Path:
        config = load(config_path)
        whole = {**yaml.safe_load(config_path.read_text()), "base": config.base, "auto_weights": config.auto_weights}
        whole["guides"] = {name: guide.model for name, guide in config.guides.items()}
        for key, value in keys.items():
            whole[key] = {**whole[key], **value} if isinstance(value, dict) else value
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(whole))
        return tmp_path / "config.yaml"

    return edited


def failed(path: Path, log: Path, *more: str, port: int | None = None) -> str:
    """The one line that a failed start says."""
    running = serve(path, log, *more, port=port)
    try:
        assert running.wait() == 1, running.told()
        assert running.members() == []
    finally:
        end(running)
    told = running.told()
    assert "Traceback" not in told
    lines = [line for line in told.splitlines() if line.startswith("trimtab: ")]
    assert lines == told.splitlines()[-1:], told
    return lines[0]


def test_a_guide_that_is_not_there(edited: Edited, tmp_path: Path) -> None:
    path = edited(guides={"missing": "./no/where"})
    said = failed(path, tmp_path / "log")
    assert said.startswith(f"trimtab: {path}:")
    assert said.endswith(f"guides.missing.model: there is no {tmp_path / 'no/where'}")


def test_a_preset_that_nothing_can_carry_out(edited: Edited, tmp_path: Path) -> None:
    said = failed(edited(presets={"odd": {"strategy": "gided"}}), tmp_path / "log")
    assert "presets.odd: unknown strategy 'gided'" in said
    assert said.endswith("Did you mean 'guided'?")


def test_a_port_that_is_taken(config_path: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = failed(config_path, tmp_path / "log", port=port)
    assert said == f"trimtab: cannot listen on 127.0.0.1 port {port}: Address already in use"


def test_an_engine_option_that_is_none(edited: Edited, tmp_path: Path) -> None:
    path = edited(engine={"dtype": "float7"})
    message = "engine.dtype: invalid choice: 'float7'"
    assert re.match(rf"trimtab: {re.escape(str(path))}:\d+: {re.escape(message)}", failed(path, tmp_path / "log"))


def test_a_guide_with_another_tokenizer(edited: Edited, config_path: Path, tmp_path: Path) -> None:
    config = load(config_path)
    name, guide = next(iter(config.guides.items()))
    other = tmp_path / "other"
    tokenizer = AutoTokenizer.from_pretrained(guide.model)
    for file in Path(guide.model).iterdir():
        other.mkdir(exist_ok=True)
        (other / file.name).write_bytes(file.read_bytes())
    tokenizer.save_pretrained(other)
    raw = other / "tokenizer.json"
    first, second = tokenizer.convert_ids_to_tokens([70, 71])
    swapped = (
        raw.read_text().replace(f'"{first}": 70', f'"{second}": 70', 1).replace(f'"{second}": 71', f'"{first}": 71', 1)
    )
    assert swapped != raw.read_text()
    raw.write_text(swapped)
    path = edited(guides={name: str(other)})
    said = failed(path, tmp_path / "log")
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if text.startswith(f"  {name}: {other}"))
    assert said.startswith(f"trimtab: {path}:{line}: guides.{name}: another tokenizer than the base's: 2 of ")


def test_sigterm_during_the_start(config_path: Path, tmp_path: Path) -> None:
    running = serve(config_path, tmp_path / "log", port=free_port())
    try:
        deadline = time.monotonic() + PATIENCE
        while "EngineCore pid" not in running.told():
            assert running.process.poll() is None, running.told()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.process.send_signal(signal.SIGTERM)
        assert running.wait() == 128 + signal.SIGTERM
        assert gone(running), running.told()
    finally:
        end(running)


def gone(running: Running) -> bool:
    deadline = time.monotonic() + PATIENCE
    while running.members():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
