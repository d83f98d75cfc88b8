"""`python -m trimtab.bench.overload`: an open loop at three times the server's capacity, of plain chat and searches.

A closed loop measures the capacity. Then the same mix arrives at three times that rate, at a server whose
`limits.max_tokens` is the work of `--wait` seconds at capacity. Reported: the share of the capacity that is still
served (answers and tokens per second), the latency of plain chat while searches wait or are refused, and requests that
got no answer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.bench.load import draw, mix
from trimtab.bench.load.cli import allow_many_connections, first_model, read_prompts
from trimtab.bench.load.client import connect
from trimtab.bench.load.figures import figures, render
from trimtab.bench.load.run import Load, run
from trimtab.bench.observed import Watch
from trimtab.bench.report import table, write
from trimtab.bench.serving import trimtab

PROMPTS = Path("demo/prompts.txt")
MIX = Path(__file__).parent / "load" / "overload.yaml"
CLIENTS = 32
TIMES = 3.0


async def run_load(url: str, load: Load, deadline: float) -> tuple[dict[str, Any], Watch]:
    entries, prompts = mix.read(MIX), read_prompts(PROMPTS)
    watch = Watch(url, every=1.0)
    async with connect(url, None, draw.Manners.slow_rate) as client:
        model = await first_model(client.http, url, None)
        watching = asyncio.create_task(watch.run())
        done = await run(load, draw.requests(entries, prompts, model, draw.Manners(), load.seed), client)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    return figures(done, deadline), watch


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="trimtab.bench.overload", description=__doc__)
    parser.add_argument("--duration", type=float, default=60.0, help="seconds of each load (60)")
    parser.add_argument("--wait", type=float, default=10.0, help="seconds of work that may be let in (10)")
    parser.add_argument("--quick", action="store_true", help="half a minute each")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args(argv)
    seconds = 30.0 if args.quick else args.duration
    allow_many_connections()
    with trimtab(None, None) as url:
        closed = Load(concurrency=CLIENTS, duration=seconds, warmup=5, drain=60)
        capacity, watch = asyncio.run(run_load(url, closed, args.wait))
    served = sum(1 for one in capacity["requests"] if one["outcome"] == "ok") / capacity["span"]
    cost = np.sum(watch.admitted) / max(1.0, np.sum(watch.in_flight))
    limit = round(served * cost * args.wait)
    print(f"capacity, {CLIENTS} clients in a closed loop: {served:.2f} answers/s, {cost:.0f} tokens let in for each\n")
    print(render(capacity))
    with trimtab(None, None, f"limits.max_tokens={limit}") as url:
        rate = TIMES * served
        opened = Load(rate=rate, duration=seconds, warmup=5, drain=60)
        over, _ = asyncio.run(run_load(url, opened, args.wait))
    print(f"\n{TIMES:g} times as much, {rate:.2f} requests/s, limits.max_tokens {limit}\n\n{render(over)}\n")
    rows = []
    for name in ("plain", "search", "total"):
        at, beyond = (
            next(r for r in [*part["entries"], part["total"]] if r["name"] == name) for part in (capacity, over)
        )
        rows.append(
            (
                name,
                f"{at['visible_tokens_per_s']:.1f}",
                f"{beyond['visible_tokens_per_s'] / at['visible_tokens_per_s']:.2f}",
                f"{beyond['total_tokens_per_s'] / at['total_tokens_per_s']:.2f}",
                f"{at['latency']['p95']:.2f}",
                f"{beyond['latency']['p95']:.2f}" if beyond["latency"] else "–",
                f"{beyond['outcomes']['429'] / beyond['requests']:.0%}",
                beyond["outcomes"]["incomplete"] + beyond["outcomes"]["connection"],
            )
        )
    headers = ("", "visible tok/s", "x at overload", "all tokens x", "p95 s", "p95 s at overload", "429", "unanswered")
    print(table(headers, rows))
    write(args.json, {"capacity": capacity, "overload": over, "limit": limit, "cost": cost, "served": served})


if __name__ == "__main__":
    main()
