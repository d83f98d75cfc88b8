"""One real server for the session, as a person starts it: the demo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import require_mark
from trimtab.decoders import STRATEGIES, example_request
from trimtab.server.config import Config, load

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO = ROOT / "demo" / "config.yaml"
KEY = "sk-of-the-tests-9f1c"
PATIENCE = 420.0
"""Seconds until a server must be up, or have given up."""


@pytest.fixture(scope="session")
def config_path() -> Path:
    return DEMO


@pytest.fixture(scope="session")
def config(config_path: Path) -> Config:
    return load(config_path)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@dataclass(frozen=True)
class Running:
    """`trimtab serve` in a session of processes of its own."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def members(self) -> list[int]:
        """Every process of its session that is no zombie."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session, *_ = stat.read_text().rpartition(") ")[2].split()
            except OSError:  # gone meanwhile
                continue
            if int(session) == self.process.pid and state != "Z":
                found.append(int(stat.parent.name))
        return found

    def wait(self, seconds: float = PATIENCE) -> int:
        return self.process.wait(seconds)

    def told(self) -> str:
        return self.log.read_text(errors="replace")


def serve(path: Path, log: Path, *more: str, port: int | None = None, key: str = KEY, patch: str = "") -> Running:
    """`patch`: Python that runs in the server's process first."""
    if "toy" not in more:
        require_mark("trimtab serve")
    port = port or free_port()
    script = ["-c", f"{patch}\nfrom trimtab.server.cli import main\nmain()"] if patch else ["-m", "trimtab.server.cli"]
    command = [sys.executable, *script, "serve", str(path), "--port", str(port), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRIMTAB_API_KEY": key, "VLLM_LOGGING_LEVEL": "INFO"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    return Running(process, port, log)


def end(running: Running) -> None:
    """What a test has left, if it failed: only the processes that it started."""
    for pid in running.members():
        os.kill(pid, 9)
    running.wait()


@pytest.fixture(scope="session")
def server(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("serve") / "log"
    running = serve(
        config_path,
        log,
        "--set",
        "max_body_mib=16",
        "--set",
        "engine.max_logprobs=20",
        "--set",
        REWARD,
        "--set",
        "limits={drain_s: 10, max_tokens: 100_000_000}",
    )
    yield from until_up(running)


def until_up(running: Running) -> Iterator[Running]:
    """A server for as long as a fixture lasts."""
    try:
        deadline = time.monotonic() + PATIENCE
        while not _up(running):
            assert running.process.poll() is None, running.told()
            assert time.monotonic() < deadline, running.told()
            time.sleep(0.2)
        yield running
    finally:
        end(running)


def _up(running: Running) -> bool:
    try:
        return httpx.get(f"{running.url}/ready").status_code == 200
    except httpx.TransportError:
        return False


def check_company(together: Sequence[Any], alone: Sequence[Any]) -> None:
    """Answers drawn beside others are what they are alone, but for one of them.

    In another batch float32 rounds otherwise, and one draw in some hundred thousand lies nearer than that to the next
    token; there are thousands in a test. What mixes requests up shows in more than one.
    """
    changed = [one for one, other in zip(together, alone, strict=True) if one != other]
    assert len(changed) <= 1, changed


def wishes(config: Config) -> dict[str, dict[str, Any]]:
    """strategy -> an `alignment` that asks for it: the example of its row, and something to prefer."""
    found = {name: example_request(name, list(config.guides)) for name in STRATEGIES}
    for name, wish in found.items():
        if "direction" in STRATEGIES[name].takes:
            wish["weights"] = {"helpfulness": 1.0, "brevity": 0.5}
        elif "reward" in STRATEGIES[name].takes:
            wish["reward"] = "short"
    del found["guided"]["strategy"]  # what guides alone mean
    return found


SEARCHES = [name for name, row in STRATEGIES.items() if "reward" in row.takes]
READERS = [name for name, row in STRATEGIES.items() if row.draws == "readings"]
"""Those that read the model's distributions, as no grammar or penalty has changed them."""
PIECED = [name for name, row in STRATEGIES.items() if row.draws == "pieces"] + READERS
"""Those that put an answer together from several draws."""
INSTRUCTED = [name for name, row in STRATEGIES.items() if "direction" in row.takes]
"""Those that instruct the model, for which a bare prompt has no place."""
REWARD = "rewards.short={kind: length, unit: characters, target: 20}"
"""A reward that any model can be asked for."""
