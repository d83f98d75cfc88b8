"""The command line of a load. An error is one line with the option, the value and what is valid."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trimtab.bench.load import draw, mix
from trimtab.bench.load.arrival import ARRIVALS
from trimtab.bench.load.run import Load

KEY = "TRIMTAB_API_KEY"
PROMPTS = Path(__file__).resolve().parent.parent.parent / "demo" / "prompts.txt"
QUICK = {"rate": [1.0, 2.0], "mix": mix.SHIPPED["all"], "duration": 20.0, "warmup": 5.0, "deadline": 5.0}
"""Defaults of `--quick`."""

ABOUT = """\
Sends requests to a running OpenAI-compatible server, over HTTP alone, and tells how each fared.
What is counted and how: docs/load.md. Nothing is retried."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed and checked; exits with status 2 and a message for an error."""
    parser = argparse.ArgumentParser(prog="trimtab load", description=ABOUT)
    much = parser.add_argument_group("how much")
    much.add_argument("--rate", type=positive, nargs="+", metavar="R", help="requests/s, answered or not: an open loop")
    much.add_argument(
        "--concurrency", type=count, nargs="+", metavar="C", help="clients that wait for their answers: a closed loop"
    )
    much.add_argument("--arrival", choices=ARRIVALS, help="with --rate; by default poisson")
    much.add_argument("--duration", type=positive, metavar="S", help="seconds in which requests are sent")
    much.add_argument("--requests", type=count, metavar="N", help="requests in all; the first of the two ends the load")
    much.add_argument("--warmup", type=from_zero, metavar="S", help="seconds before, sent and not counted (0)")
    much.add_argument(
        "--drain", type=from_zero, default=Load.drain, metavar="S", help="seconds that the last may take to end (30)"
    )
    what = parser.add_argument_group("of what")
    what.add_argument("--mix", type=mix_path, metavar="MIX", help="plain (default), all, or a YAML file")
    what.add_argument("--prompts", type=Path, default=PROMPTS, help="one a line; by default the demo's")
    what.add_argument("--seed", type=int, default=0, help="of arrivals and of what is drawn from the mix (0)")
    clients = parser.add_argument_group("by whom")
    clients.add_argument(
        "--disconnect", type=share, default=0.0, metavar="SHARE", help="share of requests whose client hangs up"
    )
    clients.add_argument(
        "--disconnect-within",
        type=positive,
        default=draw.Manners.disconnect_within,
        metavar="S",
        help="at a random moment in so many seconds (2)",
    )
    clients.add_argument("--slow", type=share, default=0.0, metavar="SHARE", help="share of streams read slowly")
    clients.add_argument(
        "--slow-rate",
        type=positive,
        default=draw.Manners.slow_rate,
        metavar="BYTES",
        help="bytes per second of a slow reader (200)",
    )
    where = parser.add_argument_group("to whom")
    where.add_argument("--url", type=url, help="the server; by default http://127.0.0.1:8000")
    where.add_argument("--key", default=os.environ.get(KEY), help=f"API key; by default {KEY} of the environment")
    where.add_argument("--model", help="by default the first that the server lists")
    output = parser.add_argument_group("what is told")
    output.add_argument("--deadline", type=positive, metavar="S", help="goodput counts answers within so many seconds")
    output.add_argument("--json", type=Path, help="figures, and every request")
    output.add_argument("--png", type=Path, help="latency over time, and its distribution; needs matplotlib")
    output.add_argument(
        "--quick", action="store_true", help="5 minutes at most, of a demo server unless --url is given"
    )
    args = parser.parse_args(argv)
    _complete(args)
    _check(parser, args)
    return args


def _complete(args: argparse.Namespace) -> None:
    if args.quick:
        for name, value in QUICK.items():
            current = args.rate or args.concurrency if name == "rate" else getattr(args, name)
            if name == "duration":
                current = current or args.requests
            if current is None:
                setattr(args, name, value)
    args.mix = args.mix or mix.SHIPPED["plain"]
    args.warmup = args.warmup or 0.0


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if (args.rate is None) == (args.concurrency is None):
        parser.error("one of --rate and --concurrency must be given, and not both")
    if args.duration is None and args.requests is None:
        parser.error("--duration or --requests must be given, or both")
    if args.arrival is not None and args.rate is None:
        parser.error(f"--arrival {args.arrival}: only with --rate; a closed loop sends when an answer came")


def _number(valid: str, holds: Callable[[float], bool], kind: Callable[[str], Any] = float) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and holds(value)):
            raise argparse.ArgumentTypeError(f"{text}: must be {valid}")
        return value

    return read


positive = _number("a number above 0", lambda value: value > 0)
from_zero = _number("a number from 0", lambda value: value >= 0)
share = _number("a share from 0 to 1", lambda value: 0 <= value <= 1)
count = _number("a whole number from 1", lambda value: value >= 1, int)
count_from_zero = _number("a whole number from 0", lambda value: value >= 0, int)


def url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text}: must begin with http:// or https://")
    return text.rstrip("/").removesuffix("/v1")


def mix_path(text: str) -> Path:
    return mix.SHIPPED.get(text, Path(text))
