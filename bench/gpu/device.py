"""The device's best speeds, and its utilisation."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

HZ = 10
"""Samples a second. NVML averages over the last sixth of a second to a second."""


def fastest(work: Callable[[], object], repeats: int = 10) -> float:
    """Seconds."""
    cuda = torch.cuda.is_available()

    def once() -> float:
        start = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    return min(once() for _ in range(repeats))


def limits(*, quick: bool) -> dict[str, float]:
    """Bytes a second read and moved, and bf16 operations a second.

    Reading is a sum over one large tensor, which writes nothing. A copy reads and writes, so its bytes count twice.
    The faster of the two stands for what the memory can do.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.ones((1 << 26 if quick else 1 << 30), dtype=torch.float32, device=device)  # 256 MiB or 4 GiB
    y = torch.empty_like(x)
    size = x.numel() * x.element_size()
    read, moved = size / fastest(x.sum), 2 * size / fastest(lambda: y.copy_(x))
    n = 1024 if quick else 8192
    a = torch.randn(n, n, dtype=torch.bfloat16, device=device)
    return {
        "sum_bytes_per_s": read,
        "copy_bytes_per_s": moved,
        "bandwidth": max(read, moved),
        "flops": 2 * n**3 / fastest(lambda: a @ a),
    }


@contextmanager
def utilisation() -> Iterator[list[float]]:
    """Samples, from 0 to 1, of the share of time in which the first GPU ran anything; none where NVML sees no GPU."""
    samples: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        nvml = _nvml()
        if nvml is None:
            return
        with suppress(nvml.NVMLError):
            nvml.nvmlInit()
            gpu = nvml.nvmlDeviceGetHandleByIndex(0)
            while not ended.wait(1 / HZ):
                samples.append(nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def _nvml() -> Any:
    """nvidia-ml-py, or vLLM's copy of it."""
    for name in ("pynvml", "vllm.third_party.pynvml"):
        with suppress(ImportError):
            return importlib.import_module(name)
    return None
