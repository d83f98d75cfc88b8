"""`python -m trimtab.bench.overload`: an open loop at three times the server's capacity, of plain chat and searches.

A closed loop measures the capacity. Then the same mix arrives at three times that rate, at a server that bounds the
wait by `limits.max_wait_s` and at one that lets everybody wait. Reported: latency, the share of 429, requests that got
no answer, and the goodput: answers a second within a deadline of twice the wait that is allowed.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.bench.load import draw, mix
from trimtab.bench.load.cli import allow_many_connections, first_model, read_prompts
from trimtab.bench.load.client import connect
from trimtab.bench.load.figures import figures, render
from trimtab.bench.load.run import Load, run
from trimtab.bench.report import table, write
from trimtab.bench.serving import trimtab

PROMPTS = Path("demo/prompts.txt")
MIX = Path(__file__).parent / "load" / "overload.yaml"
CLIENTS = 32
TIMES = 3.0


WAIT = 10.0
UNBOUNDED = 1e6
"""Seconds that nobody waits."""


async def run_load(url: str, load: Load, deadline: float) -> dict[str, Any]:
    entries, prompts = mix.read(MIX), read_prompts(PROMPTS)
    async with connect(url, None, draw.Manners.slow_rate) as client:
        model = await first_model(client.http, url, None)
        done = await run(load, draw.requests(entries, prompts, model, draw.Manners(), load.seed), client)
    return figures(done, deadline)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="trimtab.bench.overload", description=__doc__)
    parser.add_argument("--duration", type=float, default=60.0, help="seconds of each load (60)")
    parser.add_argument("--wait", type=float, default=WAIT, help=f"limits.max_wait_s ({WAIT:g})")
    parser.add_argument("--quick", action="store_true", help="half a minute each")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args(argv)
    seconds, deadline = 30.0 if args.quick else args.duration, 2 * args.wait
    allow_many_connections()
    closed = Load(concurrency=CLIENTS, duration=seconds, warmup=5, drain=60)
    with trimtab(None, None) as url:
        capacity = asyncio.run(run_load(url, closed, deadline))
    served = sum(1 for one in capacity["requests"] if one["outcome"] == "ok") / capacity["span"]
    print(f"capacity, {CLIENTS} clients in a closed loop: {served:.2f} answers/s\n\n{render(capacity)}\n")
    opened = Load(rate=TIMES * served, duration=seconds, warmup=5, drain=TIMES * seconds)
    loads = {"capacity": capacity}
    for name, wait in (("bounded", args.wait), ("unbounded", UNBOUNDED)):
        with trimtab(None, None, f"limits.max_wait_s={wait:g}") as url:
            loads[name] = asyncio.run(run_load(url, opened, deadline))
        print(f"{TIMES:g} times as much, {opened.rate:.2f} requests/s, wait {name}\n\n{render(loads[name])}\n")
    rows = [
        (
            name,
            load,
            f"{part['latency']['p50']:.2f}" if part["latency"] else "–",
            f"{part['latency']['p95']:.2f}" if part["latency"] else "–",
            f"{part['outcomes']['429'] / part['requests']:.0%}",
            part["outcomes"]["incomplete"] + part["outcomes"]["connection"],
            f"{part['goodput_per_s']:.2f}",
            f"{part['visible_tokens_per_s']:.1f}",
        )
        for name in ("plain", "search", "total")
        for load, figure in loads.items()
        for part in [*figure["entries"], figure["total"]]
        if part["name"] == name
    ]
    headers = ("", "load", "p50 s", "p95 s", "429", "unanswered", f"within {deadline:g} s, /s", "visible tok/s")
    print(table(headers, rows))
    write(args.json, {**loads, "served": served})


if __name__ == "__main__":
    main()
