"""`python -m trimtab.bench.soak`: every strategy at once for ten minutes, with clients that hang up and bad requests.

Reported: unexpected outcomes, the growth of memory, requests left in flight, and the server's counts beside its
clients'. A shorter load without hang-ups follows, in which tokens are compared too: a client that hangs up does not
learn the tokens of its answer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.bench.load import draw, mix
from trimtab.bench.load.cli import allow_many_connections, first_model, read_prompts
from trimtab.bench.load.client import connect
from trimtab.bench.load.exchange import Outcome
from trimtab.bench.load.figures import figures, render
from trimtab.bench.load.run import Load, LoadRun, run
from trimtab.bench.observed import Watch, counter_gains, metrics
from trimtab.bench.report import table, write
from trimtab.bench.serving import trimtab

PROMPTS = Path("demo/prompts.txt")
CLIENTS = 8
EXACT = 60.0
"""Seconds of the load without hang-ups."""
MEMORY = {"all": "all processes", "front": "the process that speaks HTTP"}
HASTE = 0.6
"""A client that hangs up does so within this many seconds; most answers take longer."""
OUTCOMES = {"ok": Outcome.OK, "invalid": Outcome.EXPECTED, "degraded": Outcome.DEGRADED, "rejected": Outcome.REFUSED}
"""The server's name of an outcome -> the client's"""


async def run_soak(url: str, seconds: float, exact: float) -> dict[str, Any]:
    """Figures of both loads."""
    entries, prompts = mix.read(mix.SHIPPED["all"]), read_prompts(PROMPTS)
    watch = Watch(url)
    async with connect(url, None, draw.Manners.slow_rate) as client:
        model = await first_model(client.http, url, None)

        async def run_load(duration: float, disconnect: float) -> tuple[LoadRun, dict[str, Any]]:
            before = await metrics(url)
            manners = draw.Manners(disconnect=disconnect, disconnect_within=HASTE)
            drawn = draw.requests(entries, prompts, model, manners, 0)
            done = await run(Load(concurrency=CLIENTS, duration=duration, drain=60), drawn, client)
            idle = await until_idle(url)
            return done, compare_counts(done, before, await metrics(url)) | {"idle_after_s": idle}

        await run_load(10.0, 0.2)  # memory for what is loaded at first use is no leak
        watching = asyncio.create_task(watch.run())
        soak, sums = await run_load(seconds, 0.2)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        quiet, exactly = await run_load(exact, 0.0)
    return {
        "soak": figures(soak, None),
        "sums": sums,
        "exact": figures(quiet, None)["total"],
        "exact_sums": exactly,
        "memory_mib": {"seconds": watch.seconds, "all": watch.memory, "front": watch.front},
    }


async def until_idle(url: str) -> float:
    """Seconds until neither the server nor the engine has a request in flight; raises TimeoutError."""
    began = time.monotonic()
    async with asyncio.timeout(60):
        while True:
            ours, inner = await metrics(url), await metrics(url, "vllm:")
            gauges = [*ours["trimtab_inflight_requests"].values(), *ours["trimtab_inflight_candidates"].values()]
            gauges += [*ours["trimtab_admitted_tokens"].values()]
            for name in ("vllm:num_requests_running", "vllm:num_requests_waiting"):
                gauges += inner.get(name, {}).values()
            if not any(gauges):
                return time.monotonic() - began
            await asyncio.sleep(0.1)


def compare_counts(done: LoadRun, before: Any, after: Any) -> dict[str, Any]:
    """Counts of the server and of the clients, by outcome and by kind of token."""
    clients = Counter(str(one.outcome) for one in done.exchanges)
    server: Counter[str] = Counter()
    for labels, count in counter_gains(before, after, "trimtab_requests_total").items():
        server[labels.split()[0]] += count
    answered = [one for one in done.exchanges if one.outcome in (Outcome.OK, Outcome.LIMITED, Outcome.DEGRADED)]
    tokens = {
        "prompt": sum(one.usage.get("prompt_tokens", 0) for one in answered),
        "visible": sum(one.visible_tokens or 0 for one in answered),
        "sampled": sum(one.alignment.get("sampled_tokens", 0) for one in answered),
        "scored": sum(one.alignment.get("scored_tokens", 0) for one in answered),
    }
    return {
        "clients": dict(clients),
        "server": dict(server),
        "requests": [len(done.exchanges), server.total()],
        "client_tokens": tokens,
        "server_tokens": dict(counter_gains(before, after, "trimtab_tokens_total")),
    }


def report(result: dict[str, Any]) -> str:
    sums, exact = result["sums"], result["exact_sums"]
    rows = []
    for name, (s, c) in {
        "requests": (sums["requests"][1], sums["requests"][0]),
        **{o: (sums["server"].get(o, 0), sums["clients"].get(c, 0)) for o, c in OUTCOMES.items()},
        "client_abort (clients: hung up)": (
            sums["server"].get("client_abort", 0),
            sums["clients"].get(Outcome.DISCONNECTED, 0),
        ),
        **{
            f"{o}, without hang-ups": (exact["server"].get(o, 0), exact["clients"].get(c, 0))
            for o, c in OUTCOMES.items()
        },
        **{
            f"{kind} tokens, without hang-ups": (exact["server_tokens"].get(kind, 0), exact["client_tokens"][kind])
            for kind in ("prompt", "visible", "sampled", "scored")
        },
    }.items():
        rows.append((name, s, c))
    lines = [
        render(result["soak"]),
        table(("count", "server", "clients"), rows),
        *(
            describe_growth(result["memory_mib"]["seconds"], result["memory_mib"][of], name)
            for of, name in MEMORY.items()
        ),
        f"nothing in flight {sums['idle_after_s']:.1f} s after the last client",
    ]
    return "\n\n".join(lines)


def describe_growth(seconds: Sequence[float], mib: Sequence[float], name: str) -> str:
    """As text; a slope is that of a straight line through half of the samples."""
    half = len(mib) // 2
    slopes = [
        f"{60 * np.polyfit(seconds[part], mib[part], 1)[0]:+.2f}" if half > 2 else "?"
        for part in (slice(half), slice(half, None))
    ]
    return f"memory of {name}: {mib[0]:.0f} MiB at first, {mib[-1]:.0f} at last; {' then '.join(slopes)} MiB a minute"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="trimtab.bench.soak", description=__doc__)
    parser.add_argument("--url", help="a running demo on this machine; by default one is started")
    parser.add_argument("--duration", type=float, default=600.0, help="seconds (600)")
    parser.add_argument("--quick", action="store_true", help="two minutes, then half a minute without hang-ups")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args(argv)
    seconds, exact = (120.0, 30.0) if args.quick else (args.duration, EXACT)
    allow_many_connections()
    with trimtab(args.url, None) as url:
        result = asyncio.run(run_soak(url, seconds, exact))
    print(report(result))
    write(args.json, result)


if __name__ == "__main__":
    main()
