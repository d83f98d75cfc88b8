"""python -m trimtab.bench.gpu [STEP[.CASE] ...]: correctness and speed of the engine on this GPU.

    parity   against a plain recompute, by dtype, CUDA graphs and model runner     bench/gpu/parity.py
    speed    base and guides, alone and together, against what memory allows       bench/gpu/speed.py
    search   tokens a second of best_of_n, qalign and transfer_q                   bench/gpu/search.py
    demo     the engine's own tests

Every case runs in its own process, so that a failure or a hang costs no other case, and the JSON is written after each.
`STEP` runs all its cases, `parity.float32` those that begin so, no name all. Figures that the JSON has from an earlier
run stay in it and are shown with the new ones, so that a run can be made in pieces. Exit status 1: a case failed or
hung, or the engine chose another token than the recompute in fp32.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

import trimtab
from trimtab.bench import report
from trimtab.bench.gpu import parity, show, speed
from trimtab.bench.gpu.show import DONE, FAILED, HUNG, LEFT

ROOT = Path(trimtab.__file__).resolve().parents[1]
"""The checkout, or where the package is installed."""
GROUP, PLUGIN = "vllm.general_plugins", "trimtab.engine.plugin:register"
SIDE_BY_SIDE = 5
"""Parity engines at once on a GPU: they are tiny, and start-up on one core takes most of their time."""
QUICK = {
    "parity.float32.eager.v1", "parity.float32.eager.v2", "parity.float32.graphs.v2",
    "speed.device", "speed.8b", "speed.1b", "speed.8b+1b", "search",
}  # fmt: skip
"""Cases of --quick, where they exist."""
RUNNING: set[int] = set()
"""Process groups of the running cases."""
TAIL = 6000
"""Characters of a failed case's log that go into the JSON."""


@dataclass(frozen=True, kw_only=True)
class Job:
    name: str
    limit: float
    """Seconds."""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def step(self) -> str:
        return self.name.partition(".")[0]


def jobs(*, cuda: bool) -> list[Job]:
    return [
        *(Job(name=f"parity.{c}", limit=240, environment=parity.environment(c)) for c in parity.cases(cuda=cuda)),
        *(Job(name=f"speed.{c}", limit=300) for c in speed.cases()),
        Job(name="search", limit=300),
        Job(name="demo", limit=540),
    ]


def choose(every: Sequence[Job], names: Sequence[str], *, quick: bool) -> list[Job]:
    """Jobs with one of the names, whole or up to a dot; raises ValueError for a name without a job."""

    def matches(job: Job, name: str) -> bool:
        return f"{job.name}.".startswith(f"{name}.")

    if not names:
        return [job for job in every if not quick or job.name in QUICK]
    for name in names:
        if not any(matches(job, name) for job in every):
            raise ValueError(f"{name}: no such case; valid: {', '.join(job.name for job in every)}")
    return [job for job in every if any(matches(job, name) for name in names)]


def announce_plugin(folder: Path) -> None:
    """With `folder` on PYTHONPATH vLLM's processes find our plugin, even of a checkout that is not installed."""
    dist_info = folder / "trimtab-0.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text("Metadata-Version: 2.1\nName: trimtab\nVersion: 0\n")
    (dist_info / "entry_points.txt").write_text(f"[{GROUP}]\ntrimtab = {PLUGIN}\n")


def environment(job: Job, folder: Path) -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    if not any(plugin.value == PLUGIN for plugin in entry_points(group=GROUP)):
        announce_plugin(folder)
        paths.append(str(folder))
    return {
        "VLLM_LOGGING_LEVEL": "INFO",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
        "VLLM_CACHE_ROOT": str(folder / "cache"),  # parallel compilers would write into one another's
        **job.environment,
    }


def kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def kill_all_and_exit(number: int, _: object) -> None:
    """Signal handler: an engine left behind would hold the GPU's memory."""
    for group in list(RUNNING):
        kill(group)
    os._exit(128 + number)


def run(job: Job, until: float, flags: Sequence[str], logs: Path | None) -> dict[str, Any]:
    """The job's outcome; its limit is `job.limit` or `until` on the monotonic clock, whichever is first."""
    limit = min(job.limit, until - time.monotonic())
    began = {"date": datetime.now(UTC).isoformat(timespec="seconds")}
    if limit < 1:
        return {"state": LEFT, **began}
    print(f"{job.name} …", file=sys.stderr, flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        result, log = folder / "result.json", (logs or folder) / f"{job.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "trimtab.bench.gpu.job", job.name, str(result), *flags]
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(job, folder),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        RUNNING.add(process.pid)
        state = FAILED
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            state = HUNG
        kill(process.pid)  # and the engine's processes, even if their parent is gone
        RUNNING.remove(process.pid)
        process.wait()
        outcome = {**began, "seconds": time.monotonic() - start}
        reported = json.loads(result.read_text()) if result.exists() else {"finished": False}
        outcome |= {"state": DONE if reported.pop("finished") else state, **reported}
        if outcome["state"] != DONE:
            outcome["log"] = log.read_text(errors="replace")[-TAIL:]
            print(outcome["log"], file=sys.stderr)
    print(f"{job.name}: {outcome['state']}, {outcome['seconds']:.0f} s", file=sys.stderr, flush=True)
    return outcome


def load_earlier(path: Path | None, *, quick: bool) -> dict[str, Any]:
    """Cases of an earlier run of the same kind, from its JSON."""
    if path is None or not path.exists():
        return {}
    figures = json.loads(path.read_text())["figures"]
    return dict(figures["cases"]) if figures["quick"] == quick else {}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m trimtab.bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="STEP[.CASE]")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, and few cases unless named")
    parser.add_argument("--profile", action="store_true", help="speed: kernels that decode steps spend their time in")
    parser.add_argument("--apart", action="store_true", help="speed: full CUDA graphs for each set of guides")
    parser.add_argument("--within", type=float, default=math.inf, metavar="SECONDS", help="end by then, done or not")
    parser.add_argument("--json", type=Path, help="figures; each case's log goes to a folder of this name")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not cuda and not args.quick:
        parser.error("there is no GPU here; valid: --quick")
    if not cuda and args.apart:
        parser.error("--apart: there is no GPU here to capture graphs on")
    try:
        selected = choose(jobs(cuda=cuda), args.names, quick=args.quick)
    except ValueError as error:
        parser.error(str(error))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, kill_all_and_exit)
    until = time.monotonic() + args.within
    flags = [f"--{flag}" for flag in ("quick", "profile", "apart") if getattr(args, flag)]
    logs = args.json.with_suffix("") if args.json else None
    outcomes = load_earlier(args.json, quick=args.quick)
    for step, group in itertools.groupby(selected, key=lambda job: job.step):
        together = list(group)
        with ThreadPoolExecutor(SIDE_BY_SIDE if cuda and step == "parity" else 1) as pool:
            ended = pool.map(lambda job: run(job, until, flags, logs), together)
            for job, outcome in zip(together, ended, strict=True):
                outcomes[job.name] = outcome
                report.write(args.json, show.figures(outcomes, quick=args.quick))
    print(show.tables(outcomes, quick=args.quick))
    sys.exit(1 if show.problems(outcomes) else 0)


if __name__ == "__main__":
    main()
