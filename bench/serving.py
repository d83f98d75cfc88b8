"""A server to measure: one that runs already, or one that is started for it and stopped afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

START_LIMIT = 600.0
"""Seconds that a model may take to load."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def start_server(command: Sequence[str], port: int, ready: str, log: Path) -> Iterator[str]:
    """The base URL of a server, as soon as `ready` answers 200; raises RuntimeError with the end of its log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + START_LIMIT
        while True:
            with contextlib.suppress(OSError, urllib.error.HTTPError), urllib.request.urlopen(url + ready, timeout=5):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start; {log} ends:\n{log.read_text()[-2000:]}")
            time.sleep(0.25)
        yield url
    finally:
        if process.poll() is None:
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def cpu_seconds(url: str) -> float:
    """Processor time of a local server so far, its engines' processes included."""
    port = int(url.rpartition(":")[2])
    [pid] = {c.pid for c in psutil.net_connections("tcp") if c.laddr.port == port and c.status == psutil.CONN_LISTEN}
    server = psutil.Process(pid)
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return float(sum(t.user + t.system for t in times))


@contextlib.contextmanager
def trimtab(url: str | None, config: Path | None, *overrides: str) -> Iterator[str]:
    """The base URL of a running server, or else of a new `trimtab serve`."""
    if url is not None:
        yield url.rstrip("/")
        return
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "trimtab.server.cli",
        "serve",
        *([str(config)] if config else []),
        "--port",
        str(port),
    ]
    command += [part for override in overrides for part in ("--set", override)]
    with start_server(command, port, "/ready", Path("out/trimtab.log")) as base:
        yield base
