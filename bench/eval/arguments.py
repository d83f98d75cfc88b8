"""The command line of an evaluation. An error is one line with the option, the value and what is valid."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from trimtab.bench.load.arguments import KEY, count, count_from_zero, positive, url

ABOUT = """\
Compares settings on a running trimtab server: every setting answers every prompt with the same seeds, rewards of the
server score the answers, and differences from the first setting come with their intervals. What each figure is:
docs/eval.md."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed and checked; exits with status 2 and a message for an error."""
    parser = argparse.ArgumentParser(prog="trimtab eval", description=ABOUT)
    what = parser.add_argument_group("what is compared")
    what.add_argument(
        "--prompts",
        type=Path,
        required=True,
        help="one a line, each counted once: text, or JSON with messages or prompt, and given",
    )
    what.add_argument(
        "--settings",
        type=Path,
        nargs="+",
        required=True,
        metavar="YAML",
        help="fields of a chat request beside its messages; the first is what the others are compared with",
    )
    what.add_argument("--reward", nargs="+", required=True, metavar="NAME", help="rewards or objectives of the server")
    what.add_argument("--n", type=count, default=1, help="answers of each setting to a prompt (1)")
    what.add_argument("--limit", type=count, metavar="N", help="of the prompts, the first N")
    what.add_argument("--seed", type=int, default=0, help="of the answers' seeds, which all settings share (0)")
    where = parser.add_argument_group("to whom")
    where.add_argument(
        "--url", type=url, default="http://127.0.0.1:8000", help="the server; by default on port 8000 here"
    )
    where.add_argument(
        "--key", "--api-key", default=os.environ.get(KEY), help=f"API key; by default {KEY} of the environment"
    )
    where.add_argument("--model", help="where a setting names none; by default the first that the server lists")
    where.add_argument("--concurrency", type=count, default=8, help="requests at once (8); latencies depend on it")
    where.add_argument("--timeout", type=positive, default=600.0, metavar="S", help="seconds for an answer (600)")
    where.add_argument("--retries", type=count_from_zero, default=8, help="further tries of what fails for a time (8)")
    output = parser.add_argument_group("what comes of it")
    output.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for answers, scores and figures")
    output.add_argument("--resume", action="store_true", help="ask for what DIR does not have yet")
    return parser.parse_args(argv)
