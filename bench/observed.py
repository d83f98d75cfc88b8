"""A server observed from outside: its metrics, and the memory of its processes."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
import psutil

SAMPLE = re.compile(r"^([\w:]+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')
MIB = 2**20

Labels = tuple[tuple[str, str], ...]


async def metrics(url: str, prefix: str = "trimtab_") -> dict[str, dict[Labels, float]]:
    """name -> labels, sorted -> value"""
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"{url}/metrics/", timeout=30)).text
    values: dict[str, dict[Labels, float]] = {}
    for name, labels, value in SAMPLE.findall(text):
        if name.startswith(prefix):
            values.setdefault(name, {})[tuple(sorted(LABEL.findall(labels)))] = float(value)
    return values


def counter_gains(
    before: dict[str, dict[Labels, float]], after: dict[str, dict[Labels, float]], name: str
) -> Counter[str]:
    """Increases of a counter above 0, by the values of its labels, joined by a space."""
    earlier = before.get(name, {})
    gains = {labels: value - earlier.get(labels, 0.0) for labels, value in after.get(name, {}).items()}
    return Counter({" ".join(v for _, v in labels): round(value) for labels, value in gains.items() if value})


@dataclass
class Watch:
    """Samples of a local server over time."""

    url: str
    every: float = 5.0
    """Seconds."""
    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    """MiB of all its processes, shared pages counted once."""
    front: list[float] = field(default_factory=list)
    """MiB of the process that speaks HTTP."""
    in_flight: list[float] = field(default_factory=list)
    admitted: list[float] = field(default_factory=list)

    async def run(self) -> None:
        """Samples until it is cancelled."""
        began = time.monotonic()
        server = server_process(self.url)
        while True:
            values = await metrics(self.url)
            self.seconds.append(time.monotonic() - began)
            self.memory.append(await asyncio.to_thread(memory, server, *server.children(recursive=True)))
            self.front.append(await asyncio.to_thread(memory, server))
            self.in_flight.append(values["trimtab_inflight_requests"][()])
            self.admitted.append(values["trimtab_admitted_tokens"][()])
            await asyncio.sleep(self.every)


def server_process(url: str) -> psutil.Process:
    port = int(url.rpartition(":")[2])
    [pid] = {c.pid for c in psutil.net_connections("tcp") if c.laddr.port == port and c.status == psutil.CONN_LISTEN}
    return psutil.Process(pid)


def memory(*processes: psutil.Process) -> float:
    """MiB, by proportional set size."""
    return float(sum(process.memory_full_info().pss for process in processes) / MIB)
