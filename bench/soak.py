"""`python -m trimtab.bench.soak`: every strategy at once at three times the capacity, with clients that hang up, beside
a client that sends one small plain request after the other.

After a warm-up the small request is timed on the quiet server, and a closed loop measures the capacity. Then the mix
arrives at TIMES that rate, HANG_UP of its clients hang up, and wrong requests are among them. A shorter closed loop
without hang-ups follows, in which every count is compared exactly, tokens too: a client that hangs up learns neither
the outcome nor the tokens of its answer. A table says what was to hold and whether it did; the command fails if it did
not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
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
CLIENTS = 16
"""Of the closed loops."""
TIMES = 3.0
LEAST = 1.5
"""Times the capacity that the generator must reach beside the server."""
HANG_UP = 0.2
HASTE = 0.6
"""A client that hangs up does so within this many seconds; most answers take longer."""
SHARE = 25.0
"""A small plain request beside the load takes at most this many times its quiet time, at the median."""
GROWTH = 2.0
"""MiB a minute: memory is flat if the slope's 95 % interval reaches below this."""
SETTLED = 480.0
"""Seconds until caches and allocators have touched all their pages; a shorter soak tells nothing of leaks."""
MEMORY = {"all": "all processes", "front": "the process that speaks HTTP"}
OUTCOMES = {
    "ok": Outcome.OK,
    "invalid": Outcome.EXPECTED,
    "degraded": Outcome.DEGRADED,
    "rejected": Outcome.REFUSED,
    "client_abort": Outcome.DISCONNECTED,
}
"""The server's name of an outcome -> the client's"""
SMALL = mix.MixEntry(name="small", body={"max_tokens": 4, "temperature": 0})


async def run_soak(url: str, *, warm: float, seconds: float, exact: float) -> dict[str, Any]:
    """Figures of all loads; seconds of the warm-up, the soak and the exact load."""
    entries, prompts = mix.read(mix.SHIPPED["all"]), read_prompts(PROMPTS)
    watch = Watch(url)
    async with connect(url, None, draw.Manners.slow_rate) as client:
        model = await first_model(client.http, url, None)

        async def run_mix(load: Load, disconnect: float = 0.0) -> LoadRun:
            manners = draw.Manners(disconnect=disconnect, disconnect_within=HASTE)
            return await run(load, draw.requests(entries, prompts, model, manners, load.seed), client)

        async def run_small(duration: float) -> LoadRun:
            drawn = draw.requests([SMALL], prompts[:1], model, draw.Manners(), 1)
            return await run(Load(concurrency=1, duration=duration, drain=60), drawn, client)

        closed = Load(concurrency=CLIENTS, drain=60)
        await run_mix(replace(closed, duration=warm))  # memory for what is loaded at first use is no leak
        await until_idle(url)
        quiet = await run_small(warm)
        full = await run_mix(replace(closed, duration=2 * warm))
        await until_idle(url)
        capacity = sum(one.outcome is Outcome.OK for one in full.exchanges) / full.span

        before = await metrics(url)
        watching = asyncio.create_task(watch.run())
        opened = Load(rate=TIMES * capacity, duration=seconds, drain=60)
        soak, small = await asyncio.gather(run_mix(opened, HANG_UP), run_small(seconds))
        idle = await until_idle(url)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        sums = compare_counts([soak, small], before, await metrics(url))

        before = await metrics(url)
        last = await run_mix(replace(closed, duration=exact))
        await until_idle(url)
        exactly = compare_counts([last], before, await metrics(url))
    return {
        "capacity": capacity,
        "soak": figures(soak, None),
        "sums": sums,
        "sent_per_s": send_rate(soak),
        "exact": figures(last, None)["total"],
        "exact_sums": exactly,
        "small_s": {"quiet": latencies(quiet), "beside": latencies(small)},
        "idle_after_s": idle,
        "memory_mib": {"seconds": watch.seconds, "all": watch.memory, "front": watch.front},
    }


def latencies(done: LoadRun) -> list[float]:
    """Seconds of the requests that were answered."""
    return [one.ended - one.intended for one in done.exchanges if one.outcome is Outcome.OK and one.ended is not None]


def send_rate(done: LoadRun) -> float:
    """Requests a second as they were sent, which a generator short of processor time falls behind with."""
    sent = sorted(one.sent for one in done.exchanges if one.sent is not None)
    return len(sent) / (sent[-1] - sent[0]) if len(sent) > 1 else 0.0


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


def compare_counts(loads: Sequence[LoadRun], before: Any, after: Any) -> dict[str, Any]:
    """Counts of the server and of the clients, by outcome and by kind of token."""
    exchanges = [one for done in loads for one in done.exchanges]
    clients = Counter(str(one.outcome) for one in exchanges)
    server: Counter[str] = Counter()
    for labels, count in counter_gains(before, after, "trimtab_requests_total").items():
        server[labels.split()[0]] += count
    answered = [one for one in exchanges if one.outcome in (Outcome.OK, Outcome.LIMITED, Outcome.DEGRADED)]
    tokens = {
        "prompt": sum(one.usage.get("prompt_tokens", 0) for one in answered),
        "visible": sum(one.visible_tokens or 0 for one in answered),
        "sampled": sum(one.alignment.get("sampled_tokens", 0) for one in answered),
        "scored": sum(one.alignment.get("scored_tokens", 0) for one in answered),
    }
    return {
        "clients": dict(clients),
        "server": dict(server),
        "requests": [len(exchanges), server.total()],
        "client_tokens": tokens,
        "server_tokens": dict(counter_gains(before, after, "trimtab_tokens_total")),
    }


def check_counts(sums: dict[str, Any]) -> bool:
    """Whether the server's counts are the clients', where a request whose client hung up may have had any outcome."""
    server, clients = sums["server"], sums["clients"]
    hung_up = clients.get(Outcome.DISCONNECTED, 0) + count_unanswered(sums)
    learned = {name: clients.get(outcome, 0) for name, outcome in OUTCOMES.items() if name != "client_abort"}
    return (
        sums["requests"][0] - hung_up <= sums["requests"][1] <= sums["requests"][0]
        and set(server) <= set(OUTCOMES)
        and all(count <= server.get(name, 0) <= count + hung_up for name, count in learned.items())
    )


def count_unanswered(sums: dict[str, Any]) -> int:
    """Requests whose client waited and learned no outcome."""
    known = {*OUTCOMES.values()}
    return int(sum(count for outcome, count in sums["clients"].items() if outcome not in known))


def judge(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, measured, what was to hold, whether it did)"""
    sums, exact = result["sums"], result["exact_sums"]
    quiet, beside = (np.array(result["small_s"][when]) for when in ("quiet", "beside"))
    share = float(np.median(beside) / np.median(quiet)) if len(beside) else float("inf")
    of = result["memory_mib"]
    slope, margin = fit_slope(of["seconds"], of["all"])
    is_long = bool(of["seconds"]) and of["seconds"][-1] > SETTLED
    times = result["sent_per_s"] / result["capacity"]
    return [
        ("sent, times the capacity", f"{times:.1f}", f"above {LEAST:g}; due {TIMES:g}", times > LEAST),
        ("outcomes under load", f"{sums['requests'][1]} counted", "the clients'", check_counts(sums)),
        ("outcomes without hang-ups", f"{exact['requests'][1]} counted", "the clients', each", is_exact(exact)),
        ("tokens without hang-ups", str(exact["server_tokens"]), str(exact["client_tokens"]), has_equal_tokens(exact)),
        ("requests without an answer", str(count_unanswered(sums)), "0", count_unanswered(sums) == 0),
        (
            "memory, MiB a minute",
            f"{slope:+.2f} ± {margin:.2f}",
            f"reaches below {GROWTH:g}" if is_long else f"nothing within {SETTLED:g} s",
            not is_long or slope - margin < GROWTH,
        ),
        ("in flight after the last client", f"0 in {result['idle_after_s']:.1f} s", "0 of ours and of vLLM's", True),
        (
            "a small plain request, times its quiet time",
            f"{share:.1f} (p50 {np.median(quiet):.3f} s quiet, {np.median(beside):.3f} s beside, "
            f"p95 {np.quantile(beside, 0.95):.3f} s; {len(beside)} answered)"
            if len(beside)
            else "none answered",
            f"at most {SHARE:g}",
            share <= SHARE,
        ),
    ]


def is_exact(sums: dict[str, Any]) -> bool:
    names = {*OUTCOMES, *sums["server"]}
    return sums["requests"][0] == sums["requests"][1] and all(
        sums["server"].get(name, 0) == sums["clients"].get(OUTCOMES.get(name, name), 0) for name in names
    )


def has_equal_tokens(sums: dict[str, Any]) -> bool:
    return all(sums["server_tokens"].get(kind, 0) == count for kind, count in sums["client_tokens"].items())


def report(result: dict[str, Any]) -> str:
    sums = result["sums"]
    names = sorted({*OUTCOMES, *sums["server"]})
    counts = [(name, sums["server"].get(name, 0), sums["clients"].get(OUTCOMES.get(name, name), 0)) for name in names]
    of = result["memory_mib"]
    return "\n\n".join(
        [
            f"capacity {result['capacity']:.2f} answers/s, {CLIENTS} clients; then {TIMES:g} times as many requests",
            render(result["soak"]),
            table(("outcome (clients that hung up learn none)", "server", "clients"), counts),
            "\n".join(describe_growth(of["seconds"], of[key], name) for key, name in MEMORY.items()),
            table(
                ("", "measured", "to hold", ""),
                [(*row, "yes" if holds else "NO") for *row, holds in judge(result)],
            ),
        ]
    )


def fit_slope(seconds: Sequence[float], mib: Sequence[float]) -> tuple[float, float]:
    """MiB a minute of a straight line through the samples behind SETTLED, or through the second half of fewer, and half
    of its 95 % interval, samples taken as independent."""
    settled = SETTLED if seconds[-1] > SETTLED else seconds[len(seconds) // 2]
    late = np.array(seconds) >= settled
    x, y = np.array(seconds)[late] / 60, np.array(mib)[late]
    if len(x) < 4:
        return float("nan"), float("inf")
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    return float(slope), float(1.96 * np.sqrt(covariance[0, 0]))


def describe_growth(seconds: Sequence[float], mib: Sequence[float], name: str) -> str:
    slope, margin = fit_slope(seconds, mib)
    return (
        f"memory of {name}: {mib[0]:.0f} MiB at first, {mib[-1]:.0f} at last; {slope:+.2f} ± {margin:.2f} MiB a minute "
        "in the end"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="trimtab.bench.soak", description=__doc__)
    parser.add_argument("--url", help="a running demo on this machine; by default one is started")
    parser.add_argument("--duration", type=float, default=600.0, help="seconds of the soak (600)")
    parser.add_argument("--quick", action="store_true", help="a minute and a half; all in five minutes")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args(argv)
    warm, seconds, exact = (8.0, 90.0, 15.0) if args.quick else (20.0, args.duration, 60.0)
    allow_many_connections()
    with trimtab(args.url, None) as url:
        result = asyncio.run(run_soak(url, warm=warm, seconds=seconds, exact=exact))
    print(report(result))
    write(args.json, result)
    return 0 if all(holds for *_, holds in judge(result)) else 1


if __name__ == "__main__":
    sys.exit(main())
