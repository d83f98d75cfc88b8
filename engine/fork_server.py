"""On CPU: engine processes forked from one process that has vLLM imported already.

vLLM spawns an engine's process there, and each process imports vLLM anew: some ten seconds of a core. Python's own fork
server imports it once (`multiprocessing.forkserver`), has no thread while it forks, and shares the memory of what it
imported. On a GPU nothing here does anything.

What a process reads of its environment when it is loaded, or when torch is imported, the forked ones have as the fork
server had it: `prepare_environment` sets it to what vLLM would. The rest they get as it is when they start.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, TypeVar, cast

T = TypeVar("T")

PRELOAD = ["trimtab.engine", "vllm.v1.engine.core", "trimtab.engine.cpu", "trimtab.engine.composite"]
"""Modules that the fork server imports, and so what they import. One that is not found is left to the processes."""

TORCH_SETTINGS = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1"}
"""What torch reads at import; the values that vLLM sets on CPU."""

OPENMP = ("libgomp", "libomp", "libiomp")


class EngineProcess(ForkServerProcess):
    """Has the environment of the moment it starts, as a spawned process has, and ends when the process that started it
    has ended, however that was."""

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the fork server ignores it
        threading.Thread(target=exit_with_parent, daemon=True).start()
        super().run()


class EngineProcessContext(ForkServerContext):
    Process = EngineProcess


def run_forked(function: Callable[[], T]) -> T:
    """In place of how vLLM looks at a model's class: it starts a Python for each that it has not seen before."""
    import cloudpickle  # type: ignore[import-untyped]

    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = EngineProcess(target=send_result, args=(cloudpickle.dumps(function), sender))
    process.start()
    sender.close()
    try:
        result, error = receiver.recv()
    except EOFError:
        result, error = None, "the process died"
    process.join()
    if error is not None:
        raise RuntimeError(f"Error raised in subprocess:\n{error}")
    return cast(T, result)


def send_result(function: bytes, sender: Connection) -> None:
    from vllm.plugins import load_general_plugins

    try:
        load_general_plugins()
        sender.send((pickle.loads(function)(), None))
    except Exception:
        sender.send((None, traceback.format_exc()))


def exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def fork_engines() -> None:
    """What vLLM starts from this process from now on is forked, if it runs on CPU."""
    from vllm.model_executor.models import registry
    from vllm.platforms import current_platform
    from vllm.v1.engine import utils

    if current_platform.is_cpu():
        prepare_environment()
        forkserver.set_forkserver_preload(PRELOAD)
        utils.get_mp_context = EngineProcessContext
        registry._run_in_subprocess = run_forked


@contextmanager
def running_fork_server() -> Iterator[None]:
    """The fork server at work before it is needed: it imports while this process imports. Needs no vLLM to be imported.

    Ends the server, and so must end after the engines.
    """
    if not built_for_cpu():
        yield
        return
    prepare_environment()
    forkserver.set_forkserver_preload(PRELOAD)
    # A terminal, or who stops a service, sends them to all, and this process decides: it takes what the fork server has
    # forked for dead once that is gone.
    with ignore_signals(signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        forkserver.ensure_running()
    try:
        yield
    finally:
        end_fork_server()


@contextmanager
def ignore_signals(*signals: signal.Signals) -> Iterator[None]:
    """Ignored by processes that are started meanwhile, and stay so there. For the main thread."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def end_fork_server() -> None:
    """With the process beside it that watches over what multiprocessing shares. Python has no public way to."""
    server: Any = forkserver._forkserver
    os.kill(server._forkserver_pid, signal.SIGKILL)  # it may still be importing
    server._stop()
    tracker: Any = resource_tracker._resource_tracker
    tracker._stop()


def built_for_cpu() -> bool:
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:  # vLLM's wheel for CPU has another name
        return True


def prepare_environment() -> None:
    """What vLLM's CPU platform sets for the processes that it spawns, where it cannot be set later."""
    os.environ.update(TORCH_SETTINGS)
    loaded = os.environ.get("LD_PRELOAD", "")
    libraries = [loaded] if loaded else []
    if not any(name in loaded for name in OPENMP):
        libraries += find_libraries("torch", "../torch.libs/libgomp*.so*", "lib/libgomp*.so*")[:1]
    if "libtcmalloc" not in loaded:
        libraries[:0] = find_libraries("vllm", "libs/libtcmalloc_minimal*.so*", "libs/libtcmalloc.so*")[:1]
    if libraries:
        os.environ["LD_PRELOAD"] = ":".join(libraries)


def find_libraries(package: str, *patterns: str) -> list[str]:
    """Files of a package that is not imported for it."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    return [os.path.normpath(file) for pattern in patterns for file in folder.glob(pattern)]
