"""`python -m trimtab.bench.faults`: faults under load, what clients see of them, and the time to recovery.

Each fault gets a new server and eight clients in a closed loop, half of them plain chat and half best of 4 by a reward
model. Answers are counted from the fault on. "Well" means that /health and /ready both answer 200. A server that exits
is restarted by an orchestrator; for it the time of a start is reported.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from trimtab.bench.report import table, write
from trimtab.bench.serving import START_LIMIT, free_port

DEMO = Path("demo/config.yaml")
BEFORE, AFTER = 4.0, 12.0
"""Seconds of load before a fault and after it."""
LONGEST_END = 60.0
"""Seconds that a server may take to exit by itself, where it should."""
CLIENTS = 8
LATE = 30.0
"""Seconds after which a client gives up; the outcome is "no answer"."""


class FaultyJudge(BaseHTTPRequestHandler):
    """An OpenAI-compatible judge; `mode` is its fault."""

    mode = "well"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if FaultyJudge.mode == "hang":
            time.sleep(60)
        score = math.nan if FaultyJudge.mode == "nan" else -0.5
        letters = [{"token": letter, "logprob": score, "bytes": None} for letter in "AB"]
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "A"},
            "logprobs": {"content": [letters[0] | {"top_logprobs": letters}], "refusal": None},
        }
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "judge", "choices": [choice]}
        body = json.dumps(answer).encode()
        with suppress(OSError):
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    url: str
    config: Path
    started: float
    """Seconds until it was ready."""

    def engines(self) -> list[psutil.Process]:
        """The engines' own processes: the base's, then the reward models'."""
        title = f"EngineCore_{Path(demo_config()['base']).name}"
        lines = {p: " ".join(p.cmdline()) for p in psutil.Process(self.process.pid).children(recursive=True)}
        engines = [process for process, line in lines.items() if "EngineCore" in line]
        return sorted(engines, key=lambda p: (title not in lines[p], p.create_time()))


@dataclass
class ClientCounts:
    """Answers that clients got since the fault."""

    answers: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    since: float = 0.0

    def summary(self, kind: str) -> str:
        counts = {key.partition(" ")[2]: n for key, n in self.answers.items() if key.startswith(kind)}
        return ", ".join(f"{n} x {what}" for what, n in sorted(counts.items())) or "nothing"


@asynccontextmanager
async def run_server(judge: str, out: Path) -> AsyncIterator[Server]:
    """A server of the demo with a copy of its configuration, which may be rewritten; its log goes to `out`."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(yaml.safe_dump(with_absolute_paths(demo_config(), judge)))
        port = free_port()
        command = [sys.executable, "-m", "trimtab.server.cli", "serve", str(config), "--port", str(port)]
        began = time.monotonic()
        with out.open("wb") as log:
            process = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs yet
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        server = Server(process, f"http://127.0.0.1:{port}", config, 0.0)
        try:
            while not await is_healthy(server):
                if process.poll() is not None or time.monotonic() - began > START_LIMIT:
                    raise RuntimeError(f"the server did not start: see {out}")
                await asyncio.sleep(0.25)
            server.started = time.monotonic() - began
            yield server
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def demo_config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(DEMO.read_text())
    return config


def with_absolute_paths(config: dict[str, Any], judge: str) -> dict[str, Any]:
    """The demo's configuration with absolute paths, and with a judge."""

    def path(name: str) -> str:
        return str((DEMO.parent / name).resolve())

    config["base"], config["auto_weights"] = path(config["base"]), path(config["auto_weights"])
    config["guides"] = {name: path(guide) for name, guide in config["guides"].items()}
    for reward in config["rewards"].values():
        if "model" in reward:
            reward["model"] = path(reward["model"])
    config["rewards"]["judge"] = {
        "kind": "judge", "principles": {"kind": "It is kind."}, "endpoint": judge, "endpoint_model": "judge",
        "timeout_s": 2,
    }  # fmt: skip
    return config


async def is_healthy(server: Server) -> bool:
    async with httpx.AsyncClient(base_url=server.url, timeout=5) as client:
        try:
            return {(await client.get(path)).status_code for path in ("/health", "/ready")} == {200}
        except httpx.HTTPError:
            return False


async def load(server: Server, reward: str, seen: ClientCounts, stop: asyncio.Event) -> None:
    """A closed loop of clients, until `stop`."""
    best = {"strategy": "best_of_n", "reward": reward, "params": {"n": 4}}

    async def client(i: int) -> None:
        kind = "search" if i % 2 else "plain"
        body = {"messages": [{"role": "user", "content": f"How do I clean a pan? {i}"}], "max_tokens": 24}
        body |= {"alignment": best} if kind == "search" else {}
        async with httpx.AsyncClient(base_url=server.url, timeout=LATE) as http:
            while not stop.is_set():
                began = time.monotonic()
                try:
                    answer = await http.post("/v1/chat/completions", json=body)
                    error = answer.json().get("error") if answer.status_code != 200 else None
                    what = f"{answer.status_code}" + (f" {error['code']}" if error else "")
                except httpx.TimeoutException:
                    what = "no answer"
                except httpx.ConnectError:
                    what = "refused"
                    await asyncio.sleep(0.5)
                except httpx.HTTPError:
                    what = "broken off"
                if began >= seen.since > 0 or time.monotonic() >= seen.since > 0:
                    seen.answers[f"{kind} {what}"] += 1
                    seen.slowest = max(seen.slowest, time.monotonic() - began)
                if not what.startswith("200"):
                    await asyncio.sleep(0.1)

    await asyncio.gather(*(client(i) for i in range(CLIENTS)))


Fault = Callable[[Server], Awaitable[None]]


async def kill_base(server: Server) -> None:
    server.engines()[0].kill()


async def kill_reward(server: Server) -> None:
    server.engines()[1].kill()


async def hang(server: Server) -> None:
    FaultyJudge.mode = "hang"


async def give_nan(server: Server) -> None:
    FaultyJudge.mode = "nan"


async def terminate(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)


async def bad_reload(server: Server) -> None:
    server.config.write_text(server.config.read_text() + "\npresetz: {}\n")
    server.process.send_signal(signal.SIGHUP)


async def fill_disk(server: Server) -> None:
    """No file of the server's processes can grow any more, as on a full disk; only the error number differs."""
    for process in [top := psutil.Process(server.process.pid), *top.children(recursive=True)]:
        process.rlimit(psutil.RLIMIT_FSIZE, (0, 0))


async def do_nothing(server: Server) -> None:
    pass


ENDING = (kill_base, terminate)
"""Faults after which the server exits by itself."""
FAULTS: dict[str, tuple[Fault, str]] = {
    "none": (do_nothing, "rm-a.helpfulness"),
    "base engine killed": (kill_base, "rm-a.helpfulness"),
    "reward engine killed": (kill_reward, "rm-a.helpfulness"),
    "reward hangs": (hang, "judge"),
    "reward gives NaN": (give_nan, "judge"),
    "log's disk full": (fill_disk, "rm-a.helpfulness"),
    "SIGTERM": (terminate, "rm-a.helpfulness"),
    "bad reload": (bad_reload, "rm-a.helpfulness"),
}
"""name -> the fault, and the reward of the searches"""


async def try_fault(name: str, judge: str) -> dict[str, Any]:
    """One fault under load."""
    fault, reward = FAULTS[name]
    FaultyJudge.mode = "well"
    out = Path("out/faults.log")
    out.parent.mkdir(exist_ok=True)
    async with run_server(judge, out) as server:
        seen, stop = ClientCounts(), asyncio.Event()
        clients = asyncio.create_task(load(server, reward, seen, stop))
        await asyncio.sleep(BEFORE)
        seen.since = time.monotonic()
        await fault(server)
        red: float | None = None
        again: float | None = None
        ended: float | None = None
        while (now := time.monotonic() - seen.since) < (LONGEST_END if fault in ENDING and ended is None else AFTER):
            if await is_healthy(server):
                again = now if red is not None and again is None else again
            elif red is None:
                red = now
            if ended is None and server.process.poll() is not None:
                ended = now
            await asyncio.sleep(0.1)
        stop.set()
        await clients
        return {
            "fault": name,
            "plain": seen.summary("plain"),
            "search": seen.summary("search"),
            "slowest_s": seen.slowest,
            "red_after_s": red,
            "well_after_s": again,
            "ended_after_s": ended,
            "status": server.process.poll() if ended is not None else None,
            "start_s": server.started,
        }


def format_seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="trimtab.bench.faults", description=__doc__)
    parser.add_argument("faults", nargs="*", default=[], help=f"some of: {', '.join(FAULTS)}; by default all")
    parser.add_argument("--quick", action="store_true", help="two of them: a reward engine killed, and SIGTERM")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args(argv)
    names = args.faults or (["reward engine killed", "SIGTERM"] if args.quick else list(FAULTS))
    if strange := next((name for name in names if name not in FAULTS), None):
        parser.error(f"no fault {strange!r}; valid: {', '.join(FAULTS)}")
    http = ThreadingHTTPServer(("127.0.0.1", 0), FaultyJudge)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    judge = f"http://127.0.0.1:{http.server_address[1]}/v1"
    rows = []
    for name in names:
        rows.append(asyncio.run(try_fault(name, judge)))
        print(json.dumps(rows[-1]), file=sys.stderr)
    headers = (
        "fault",
        "plain chat saw",
        "searches saw",
        "slowest, s",
        "red after, s",
        "well after, s",
        "ended after, s",
    )
    cells = []
    for row in rows:
        ended = format_seconds(row["ended_after_s"]) + (f" ({row['status']})" if row["status"] is not None else "")
        times = (
            f"{row['slowest_s']:.1f}",
            format_seconds(row["red_after_s"]),
            format_seconds(row["well_after_s"]),
            ended,
        )
        cells.append((row["fault"], row["plain"], row["search"], *times))
    print(table(headers, cells))
    print(f"a start takes {max(row['start_s'] for row in rows):.0f} s")
    write(args.json, rows)


if __name__ == "__main__":
    main()
