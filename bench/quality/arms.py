"""Settings that answer the same prompts: a study's arms, each a point of a family that is tried at several strengths.

`trimtab eval` has them answer, in stages that each write their figures, and a study that was broken off goes on where
it ended. The first prompts may be answered one request at a time, for the seconds of single requests.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trimtab.bench.eval.arguments import arguments
from trimtab.bench.eval.cli import list_without_score, run
from trimtab.bench.eval.figures import list_failures
from trimtab.bench.eval.inputs import EvalError, read_prompts
from trimtab.bench.load.cli import LoadError

BASE = "base"
AT_ONCE = 4
"""Requests at once, behind the prompts that are answered singly."""
STAGES = (24, 54)
"""Prompts after which there are figures, before all are answered."""
TIMEOUT = 3600.0
"""Seconds for an answer."""
RETRIES = 100
"""Of what the server turns away while a search of many answers is under way."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A setting, as a point of a family that is tried at several strengths."""

    name: str
    family: str
    strength: float
    """Of its family's: how strong it is."""
    alignment: Mapping[str, Any]


def write_settings(folder: Path, arms: Sequence[Arm], *, max_tokens: int) -> list[Path]:
    """A file for each, as `trimtab eval --settings` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{arm.name}.yaml" for arm in arms]
    for path, arm in zip(paths, arms, strict=True):
        body = {"temperature": 1.0, "max_tokens": max_tokens, "alignment": dict(arm.alignment)}
        path.write_text(yaml.safe_dump(body, sort_keys=False))
    return paths


def write_prompts(path: Path, data: Sequence[Path], limit: int) -> list[str]:
    """The file of each prompt: files take turns, so that any first few prompts are of all of them. Raises EvalError."""
    by_turns = itertools.zip_longest(*([(file.stem, prompt) for prompt in read_prompts(file)] for file in data))
    chosen: dict[str, str] = {}
    for name, prompt in (one for turn in by_turns for one in turn if one is not None):
        chosen.setdefault(json.dumps({"messages": [*prompt.messages]}, ensure_ascii=False), name)
    lines = [*chosen][:limit]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return [chosen[line] for line in lines]


async def answer_in_stages(
    url: str,
    arms: Sequence[Arm],
    prompts: int,
    args: argparse.Namespace,
    *,
    rewards: Sequence[str],
    single: int = 0,
    max_tokens: int,
) -> AsyncGenerator[tuple[dict[str, Any], list[str], int], None]:
    """After each stage the figures of `trimtab eval`, the file of each prompt so far, and how many prompts are left.

    `single`: of how many prompts requests come one at a time. Exits with a message for what cannot go on.
    """
    settings = write_settings(args.out / "settings", arms, max_tokens=32 if args.quick else max_tokens)
    try:
        sources = write_prompts(args.out / "prompts.jsonl", args.data, prompts)
        sizes = sorted({1, single, *STAGES} - {0})
        for stage in (*(size for size in sizes if size < len(sources)), len(sources)):
            command = ["--url", url, "--prompts", str(args.out / "prompts.jsonl"), "--limit", str(stage)]
            command += ["--settings", *map(str, settings), "--reward", *rewards, "--out", str(args.out)]
            command += ["--concurrency", str(1 if stage <= single else AT_ONCE), "--timeout", str(TIMEOUT), "--resume"]
            command += ["--retries", str(RETRIES)]
            with contextlib.redirect_stdout(io.StringIO()):
                summary = await run(arguments(command))
            for failure in list_failures(summary):
                print(failure)
            if without := list_without_score(summary):
                sys.exit(f"no answer has a score: {', '.join(without)}")
            yield summary, sources[:stage], len(sources) - stage
    except (EvalError, LoadError) as error:
        sys.exit(str(error))
