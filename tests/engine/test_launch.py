"""Engines side by side: all up, or none; and processes that are forked where vLLM would spawn them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any, cast

import psutil
import pytest

from tests.waiting import PATIENCE
from trimtab.engine import launch
from trimtab.engine.fork_server import TORCH_SETTINGS, fork_engines, prepare_environment, run_forked
from trimtab.engine.launch import EngineSpec, Progress, running_engines

pytestmark = pytest.mark.slow


class Client:
    def __init__(self) -> None:
        self.up = True

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def shutdown(self, timeout: float | None) -> None:
        self.up = False


class Spec:
    """Takes a while to start, and then fails if it has an error."""

    def __init__(self, name: str, error: Exception | None = None, seconds: float = 0.0) -> None:
        self.name, self.error, self.seconds = name, error, seconds
        self.client = Client()
        self.config: Any = type("Config", (), {"shutdown_timeout": 0})

    def start(self) -> Client:
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return self.client


def specs(*made: Spec) -> list[EngineSpec]:
    return cast("list[EngineSpec]", list(made))


@pytest.fixture(params=["together", "in turn"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "can_start_together", lambda _: request.param == "together")


async def test_engines_are_up_in_their_order_and_all_down_after(order: None) -> None:
    made = [Spec("base", seconds=0.2), Spec("a"), Spec("b")]
    began = time.monotonic()
    async with running_engines(specs(*made)) as clients:
        assert clients == [spec.client for spec in made]
    assert time.monotonic() - began < PATIENCE
    assert not any(spec.client.up for spec in made)


async def test_one_that_does_not_start_ends_the_others(order: None, caplog: pytest.LogCaptureFixture) -> None:
    made = [Spec("base", seconds=0.2), Spec("a", RuntimeError("no weights"))]
    with pytest.raises(RuntimeError, match="no weights"):
        async with running_engines(specs(*made)):
            pytest.fail("it started")
    assert not made[0].client.up
    assert "a did not start" in caplog.text


async def test_an_error_while_they_run_ends_all(order: None) -> None:
    made = [Spec("base"), Spec("a")]
    with pytest.raises(ZeroDivisionError):
        async with running_engines(specs(*made)):
            1 / 0  # noqa: B018
    assert not any(spec.client.up for spec in made)


def test_the_log_says_what_is_awaited() -> None:
    assert str(Progress({"base": 3.14, "a": None})) == "engines: base 3.1 s · a waiting"


def test_the_environment_is_what_vllm_would_make_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.config import VllmConfig

    names = ["LD_PRELOAD", *TORCH_SETTINGS]
    made = []
    for prepare in (prepare_environment, VllmConfig):
        for name in names:
            monkeypatch.delenv(name, raising=False)
        prepare()
        made.append({name: os.environ.get(name) for name in names})
    assert made[0] == made[1]
    prepare_environment()
    assert os.environ.get("LD_PRELOAD") == made[1]["LD_PRELOAD"], "a second time changes nothing"


def test_a_forked_look_at_a_class() -> None:
    fork_engines()
    pid = os.getpid()
    assert run_forked(lambda: os.getpid()) != pid
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run_forked(lambda: 1 / 0)
    with pytest.raises(RuntimeError, match="died"):
        run_forked(lambda: os._exit(1))


SIGNALLED = """
import os, signal, sys, time
from multiprocessing import forkserver
from trimtab.engine.fork_server import EngineProcess, running_fork_server
if __name__ == "__main__":
    with running_fork_server():
        process = EngineProcess(target=time.sleep, args=(600,))
        process.start()
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGTERM)
        time.sleep(0.5)
        print(process.is_alive(), flush=True)
        process.terminate()
        process.join(10)
        print(process.exitcode, flush=True)
"""


def test_a_signal_to_all_leaves_the_fork_server(tmp_path: Any) -> None:
    """As `timeout` sends it, and systemd: an engine was then taken for dead, left alone, and waited for without end."""
    script = tmp_path / "signalled.py"
    script.write_text(SIGNALLED)
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    command = [sys.executable, str(script)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.split() == ["True", str(-signal.SIGTERM)]


PARENT = """
import os, time
from multiprocessing import forkserver
from trimtab.engine.fork_server import EngineProcess
if __name__ == "__main__":
    forkserver.set_forkserver_preload([])
    forkserver.ensure_running()
    os.environ["SET_LATER"] = "yes"
    process = EngineProcess(target=time.sleep, args=(600,))
    process.start()
    print(process.pid, flush=True)
    EngineProcess(target=os.system, args=("echo $SET_LATER",)).start()
    time.sleep(600)
"""


@pytest.mark.parametrize("which", ["parent", "fork server"])
def test_a_forked_process_ends_with_what_started_it(which: str, tmp_path: Any) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    environment = {**os.environ, "PYTHONPATH": root}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    with parent:
        try:
            assert parent.stdout is not None
            child = psutil.Process(int(parent.stdout.readline()))
            assert parent.stdout.readline() == "yes\n"
            if which == "fork server":  # the parent takes the child for dead then, and ends
                [server] = [p for p in psutil.Process(parent.pid).children() if "forkserver" in " ".join(p.cmdline())]
                server.send_signal(signal.SIGKILL)
                time.sleep(0.2)
                assert child.is_running()
            parent.kill()
            parent.wait()
            _, alive = psutil.wait_procs([child], timeout=PATIENCE)
            assert not alive
        finally:
            parent.kill()
