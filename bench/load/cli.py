"""A load on a running server, over HTTP alone, and the outcome of each request: docs/load.md.

    trimtab load --rate 4 --duration 60 --mix all --deadline 5 --json out/load.json --png out/load.png
    trimtab load --concurrency 1 8 32 --requests 200 --warmup 5

Several rates, or several concurrencies, are loads one after the other. Nothing is retried.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import resource
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from trimtab.bench.load import draw, mix
from trimtab.bench.load.arguments import arguments
from trimtab.bench.load.client import connect
from trimtab.bench.load.figures import HEADERS, TOTAL, cells, figures, render
from trimtab.bench.load.plot import plot
from trimtab.bench.load.run import Load, run
from trimtab.bench.report import table, write
from trimtab.bench.serving import trimtab

URL = "http://127.0.0.1:8000"


class LoadError(Exception):
    """The load cannot be sent at all."""


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    try:
        entries = mix.read(args.mix)
        prompts = read_prompts(args.prompts)
        if args.png is not None and importlib.util.find_spec("matplotlib") is None:
            raise LoadError("--png needs matplotlib: pip install matplotlib")
        allow_many_connections()
        with trimtab(None if args.quick and args.url is None else args.url or URL, None) as url:
            runs = asyncio.run(run_loads(args, url, entries, prompts))
    except (LoadError, mix.MixError) as error:
        sys.exit(f"trimtab load: {error}")
    if len(runs) > 1:
        print(table(["load", *HEADERS[1:]], [[title, *cells(one[TOTAL])[1:]] for title, one in runs]))
    write(args.json, [one for _, one in runs], secret=args.key)
    if args.png is not None:
        plot(args.png, runs)


async def run_loads(
    args: argparse.Namespace, url: str, entries: Sequence[mix.MixEntry], prompts: Sequence[str]
) -> list[tuple[str, dict[str, Any]]]:
    """(title, figures) of each load; its tables are printed when it ends."""
    manners = draw.Manners(
        disconnect=args.disconnect, disconnect_within=args.disconnect_within, slow=args.slow, slow_rate=args.slow_rate
    )
    runs = []
    async with connect(url, args.key, args.slow_rate) as client:
        model = args.model or await first_model(client.http, url, args.key)
        for load in loads(args):
            drawn = draw.requests(entries, prompts, model, manners, args.seed)
            with tqdm(total=load.requests, desc=str(load), unit=" requests", disable=None) as bar:
                one = figures(await run(load, drawn, client, bar.update), args.deadline)
            print(f"{load}, {one['span']:.1f} s\n\n{render(one)}\n", flush=True)
            runs.append((str(load), one))
    return runs


def loads(args: argparse.Namespace) -> list[Load]:
    """The loads to send, in order."""
    base = Load(
        arrival=args.arrival or "poisson",
        duration=args.duration,
        requests=args.requests,
        warmup=args.warmup,
        drain=args.drain,
        seed=args.seed,
    )
    if args.rate:
        return [replace(base, rate=rate) for rate in args.rate]
    return [replace(base, concurrency=clients) for clients in args.concurrency]


async def first_model(http: httpx.AsyncClient, url: str, key: str | None) -> str:
    """The first model of the server's list. Raises LoadError."""
    try:
        answer = await http.get("/v1/models", headers={"authorization": f"Bearer {key}"} if key else {}, timeout=30)
        answer.raise_for_status()
        return str(answer.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise LoadError(f"{url}/v1/models tells no model: {error}; is --url right, or --key, or give --model") from None


def read_prompts(path: Path) -> list[str]:
    """One prompt a line, without the empty ones. Raises LoadError."""
    try:
        prompts = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"--prompts: {path}: cannot be read: {error}") from None
    if not prompts:
        raise LoadError(f"--prompts: {path}: must hold at least one prompt, one a line")
    return prompts


def allow_many_connections() -> None:
    """Lifts the limit on open files: a stalled server under an open loop soon has more connections than it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
