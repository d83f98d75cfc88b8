"""The overhead of our server for a request without `alignment`: against vLLM's own server on the same base.

    python -m trimtab.bench.overhead [--quick] [--config demo/config.yaml] [--json out/overhead.json]

Both servers run with the same engine arguments and no guides. Closed loop: c clients, each of which sends its next
request when its last is answered. Rounds alternate between the servers, and a ratio is of two neighbouring rounds. On a
shared machine the processor time of all of a server's processes says more than throughput.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import yaml

from trimtab.bench.report import table, write
from trimtab.bench.serving import cpu_seconds, free_port, start_server, trimtab
from trimtab.server.cli import DEMO
from trimtab.server.config import Config, load

CLIENTS = (1, 8, 32)
TOKENS = 64
"""Tokens of every answer."""


async def round_trip(url: str, model: str, clients: int, requests: int) -> float:
    """Tokens per second of `requests` answers."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "How do I clean a copper pan?"}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "temperature": 1.0,
    }
    left = iter(range(requests))
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as http:

        async def client() -> None:
            for seed in left:
                answer = await http.post("/v1/chat/completions", json={**body, "seed": seed})
                answer.raise_for_status()
                if answer.json()["usage"]["completion_tokens"] != TOKENS:
                    raise RuntimeError(f"an answer of another length: {answer.text[:300]}")

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return requests * TOKENS / (time.perf_counter() - began)


def vllm_command(config: Config, port: int) -> list[str]:
    from trimtab.server.http.vllm_app import argv

    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *argv(config), "--port", str(port)]


def measure(ours: str, theirs: str, model: str, *, rounds: int, per_client: int) -> list[dict[str, Any]]:
    figures = []
    for clients in CLIENTS:
        requests = max(per_client, clients * per_client // 4)
        pairs: list[tuple[float, float]] = []
        work: list[float] = []
        for i in range(rounds + 1):
            speed, spent = {}, {}
            for url in (ours, theirs) if i % 2 else (theirs, ours):
                before = cpu_seconds(url)
                speed[url] = asyncio.run(round_trip(url, model, clients, requests))
                spent[url] = cpu_seconds(url) - before
            if i:  # the first warms both
                pairs.append((speed[ours], speed[theirs]))
                work.append(spent[theirs] / spent[ours])
        ratios = [a / b for a, b in pairs]
        figures.append(
            {
                "clients": clients,
                "trimtab_tokens_per_s": statistics.median(a for a, _ in pairs),
                "vllm_tokens_per_s": statistics.median(b for _, b in pairs),
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "cpu_ratio": statistics.median(work),
                "cpu_ratios": work,
            }
        )
    return figures


def show(figures: Sequence[dict[str, Any]]) -> None:
    rows = []
    for f in figures:
        ours, theirs = f"{f['trimtab_tokens_per_s']:.0f}", f"{f['vllm_tokens_per_s']:.0f}"
        row = [f["clients"], ours, theirs]
        for name in ("ratio", "cpu_ratio"):
            low, _, high = statistics.quantiles(f[f"{name}s"], n=4)
            row.append(f"{f[name]:.3f} ({low:.3f} … {high:.3f})")
        rows.append(row)
    print("medians (quartiles) over rounds; above 1 ours is the faster, or does with less processor time")
    print(table(["clients", "trimtab, tokens/s", "vLLM, tokens/s", "throughput", "processor time"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trimtab.bench.overhead", description=__doc__)
    parser.add_argument("--config", type=Path, default=DEMO, help="whose base and engine arguments to use")
    parser.add_argument("--quick", action="store_true", help="under 5 minutes on 2 cores")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--json", type=Path)
    args: Namespace = parser.parse_args()
    whole = load(args.config)
    alone = {"base": whole.base, "name": whole.model_name, "engine": dict(whole.engine)}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        config = Path(folder) / "alone.yaml"
        config.write_text(yaml.safe_dump(alone))
        ours = stack.enter_context(trimtab(None, config))
        port = free_port()
        command = vllm_command(load(config), port)
        theirs = stack.enter_context(start_server(command, port, "/health", Path("out/vllm.log")))
        rounds = args.rounds or (12 if args.quick else 40)
        figures = measure(ours, theirs, whole.model_name, rounds=rounds, per_client=8)
    show(figures)
    write(args.json, figures)


if __name__ == "__main__":
    main()
