"""The load generator against a server that does as it is told: when it sends, what it counts, and as what."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.bench.scripted import STREAMS, USAGE, Scripted, serve
from trimtab.bench.load import draw
from trimtab.bench.load.cli import main
from trimtab.bench.load.client import connect
from trimtab.bench.load.exchange import Exchange, Outcome
from trimtab.bench.load.figures import figures, render, row
from trimtab.bench.load.mix import MixEntry
from trimtab.bench.load.run import Load, LoadRun, run
from trimtab.bench.serving import free_port
from trimtab.server.cli import main as trimtab

pytestmark = pytest.mark.slow


@pytest.fixture
def server() -> Iterator[Scripted]:
    with serve() as app:
        yield app


def entry(script: str, **keys: Any) -> MixEntry:
    return MixEntry(name=script, body={"script": script, **keys.pop("body", {})}, stream=script in STREAMS, **keys)


async def send_load(url: str, entries: Sequence[MixEntry], load: Load, **manners: float) -> LoadRun:
    how = draw.Manners(**manners)
    drawn = draw.requests(entries, ["hi"], "m", how, load.seed)
    async with connect(url, "the-key", how.slow_rate) as client:
        return await run(load, drawn, client)


async def one(url: str, script: str, drain: float = 30.0, **keys: Any) -> Exchange:
    [exchange] = (await send_load(url, [entry(script, **keys)], Load(concurrency=1, requests=1, drain=drain))).exchanges
    return exchange


CASES = [
    ("ok", 200, "ok"), ("stream", 200, "ok"), ("budget", 200, "cut"), ("cut-stream", 200, "cut"),
    ("degraded", 200, "degraded"), ("bad", 200, "error"), ("broken", 200, "error"), ("null", 200, "error"),
    ("no-choices", 200, "error"), ("stream-error", 200, "error"), ("busy", 200, "429"), ("busy", 400, "429"),
    ("bad", 400, "expected"), ("ok", 400, "unexpected"), ("broken", 400, "unexpected"),
    ("no-finish", 200, "incomplete"), ("one-of-two", 200, "incomplete"), ("no-done", 200, "incomplete"),
    ("broken-off", 200, "incomplete"), ("endless", 200, "incomplete"), ("silent", 200, "incomplete"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "expect", "outcome"), CASES)
async def test_how_a_request_ends(server: Scripted, script: str, expect: int, outcome: str) -> None:
    exchange = await one(server.url, script, drain=0.3 if script in ("endless", "silent") else 30, expect=expect)
    assert (exchange.outcome, exchange.ended is None) == (outcome, script in ("endless", "silent"))


async def test_nobody_listens() -> None:
    exchange = await one(f"http://127.0.0.1:{free_port()}", "ok")
    assert exchange.outcome is Outcome.CONNECTION
    assert exchange.failure is not None
    assert exchange.failure.startswith("ConnectError")


async def test_what_is_visible_first(server: Scripted) -> None:
    """Comments, roles and empty pieces come 0.3 s before the first text, which holds a line separator."""
    exchange = await one(server.url, "stream")
    assert exchange.until_visible is not None
    assert exchange.latency is not None
    assert 0.3 <= exchange.until_visible <= exchange.latency
    assert server.seen[0][1]["stream_options"] == {"include_usage": True}


async def test_tokens(server: Scripted) -> None:
    streamed, whole = await one(server.url, "stream"), await one(server.url, "ok")
    assert (streamed.visible_tokens, streamed.total_tokens) == (USAGE["completion_tokens"], 12 + 5)
    assert (whole.visible_tokens, whole.total_tokens) == (USAGE["completion_tokens"], 20 + 1)  # `alignment` goes first
    total = row("both", [streamed, whole], 2.0, None)
    assert (total["visible_tokens_per_s"], total["total_tokens_per_s"]) == (6 / 2, 38 / 2)


async def test_open_loop_counts_the_wait_that_a_closed_one_omits(server: Scripted) -> None:
    """The server stalls for a second: of a closed loop one request notices, of an open one all that were due."""
    server.stall = 1.0
    closed = await send_load(server.url, [entry("ok")], Load(concurrency=1, requests=20))
    server.stall = 1.0
    load = Load(rate=20, arrival="constant", requests=20)
    opened = await send_load(server.url, [entry("ok")], load)
    waited = [x.latency for x in closed.exchanges if (x.latency or 0) >= 1.0]
    assert 1 <= len(waited) <= 3  # one, and two for a machine that stalls too
    times = [x.latency for x in opened.exchanges]
    # the i-th was due at i / 20 s, and the stall ended at 1 s
    assert all(t is not None and t >= 1.0 - i / 20 - 0.01 for i, t in enumerate(times))
    assert sum(t is not None and t > 0.5 for t in times) >= 10


async def test_latency_counts_from_when_it_was_due_though_the_generator_was_late(server: Scripted) -> None:
    entries, load = [entry("ok")], Load(rate=100, arrival="constant", requests=10)
    drawn = draw.requests(entries, ["hi"], "m", draw.Manners(), 0)

    def slow_to_draw() -> Iterator[Any]:
        for request in drawn:
            time.sleep(0.05)
            yield request

    async with connect(server.url, None, 1.0) as client:
        result = await run(load, slow_to_draw(), client)
    last = result.exchanges[-1]
    assert last.intended - result.start == pytest.approx(0.09)
    assert last.lateness is not None
    assert last.lateness >= 10 * 0.05 - 0.09 - 0.01
    assert last.latency == pytest.approx((last.service or 0) + last.lateness)
    assert "the generator was late" in render(figures(result, None))


async def test_a_client_that_hangs_up_is_gone(server: Scripted) -> None:
    load = Load(concurrency=4, requests=12)
    result = await send_load(
        server.url, [entry("endless"), entry("silent")], load, disconnect=1.0, disconnect_within=0.2
    )
    assert {x.outcome for x in result.exchanges} == {Outcome.DISCONNECTED}
    deadline = time.monotonic() + 5
    while len(server.left) < len(server.seen) and time.monotonic() < deadline:
        time.sleep(0.01)  # noqa: ASYNC251
    assert len(server.left) == len(server.seen)
    assert 0 < len(server.seen) <= 12  # one may hang up before its request is there


async def test_a_slow_reader_takes_its_time_and_stays_out_of_the_times(server: Scripted) -> None:
    size = sum(len(step.encode()) for step in STREAMS["long"] if isinstance(step, str))
    result = await send_load(
        server.url, [entry("long")], Load(concurrency=1, requests=1), slow=1.0, slow_rate=size / 0.5
    )
    [slow] = result.exchanges
    assert slow.outcome is Outcome.OK
    assert (slow.latency or 0) >= 0.49
    total = figures(result, 10.0)["total"]
    assert (total["slow"], total["outcomes"]["ok"], total["latency"], total["goodput_share"]) == (1, 1, None, None)
    assert total["visible_tokens_per_s"] > 0


async def test_the_warm_up_is_sent_and_not_counted(server: Scripted) -> None:
    load = Load(rate=50, arrival="constant", warmup=0.5, duration=0.5)
    result = await send_load(server.url, [entry("ok")], load)
    assert (len(server.seen), len(result.exchanges)) == (50, 25)
    assert result.exchanges[0].intended >= result.start
    assert result.span >= 0.5


async def test_requests_and_duration_whichever_ends_first(server: Scripted) -> None:
    many = Load(concurrency=2, requests=7, duration=30)
    assert len((await send_load(server.url, [entry("ok")], many)).exchanges) == 7
    short = await send_load(server.url, [entry("ok")], Load(concurrency=2, requests=10**6, duration=0.3))
    assert all(x.intended < short.start + 0.3 for x in short.exchanges)
    assert short.span < 5


async def test_every_request_is_in_exactly_one_class(server: Scripted) -> None:
    scripts = ["ok", "stream", "budget", "degraded", "bad", "broken", "busy", "no-done", "endless"]
    entries = [*(entry(script) for script in scripts), MixEntry(name="wrong", body={"script": "bad"}, expect=400)]
    load = Load(rate=80, duration=1.5, drain=1.5, seed=3)
    summary = figures(await send_load(server.url, entries, load, disconnect=0.2, disconnect_within=0.2), deadline=1.0)
    total = summary["total"]
    assert sum(total["outcomes"].values()) == total["requests"] == len(summary["requests"])
    heard = total["requests"] - total["statuses"].get("none", 0)  # who hangs up at once may not be heard at all
    assert heard <= len(server.seen) <= total["requests"]
    for name in ("ok", "cut", "degraded", "expected", "429", "error", "incomplete", "disconnected"):
        assert total["outcomes"][name] == sum(r["outcomes"][name] for r in summary["entries"]) > 0
    assert sum(total["statuses"].values()) == total["requests"]
    assert total["retry_after"] == {"7": total["outcomes"]["429"]}
    assert all(r["name"] in render(summary) for r in summary["entries"])


async def test_goodput_is_of_answers_in_time(server: Scripted) -> None:
    entries = [entry("ok"), entry("stream"), MixEntry(name="wrong", body={"script": "bad"}, expect=400)]
    result = await send_load(server.url, entries, Load(concurrency=1, requests=30, seed=1))
    answered = [x for x in result.exchanges if x.outcome is Outcome.OK]
    deadline = 0.3  # no stream makes it
    good = sum((x.latency or 0) <= deadline for x in answered)
    rows = figures(result, deadline)
    total = rows["total"]
    assert {r["name"]: r["goodput_share"] for r in rows["entries"] if r["name"] != "ok"} == {"stream": 0, "wrong": None}
    assert 0 < good < len(answered) < 30
    assert total["goodput_share"] == good / len(answered)
    assert total["goodput_per_s"] == good / result.span


async def test_each_caller_has_its_key(server: Scripted) -> None:
    await send_load(server.url, [entry("ok"), entry("bad", key="another")], Load(concurrency=1, requests=20))
    keys = {(body["script"], headers["authorization"]) for headers, body in server.seen}
    assert keys == {("ok", "Bearer the-key"), ("bad", "Bearer another")}


def test_the_command(server: Scripted, tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    (tmp_path / "mix.yaml").write_text(
        "defaults: {max_tokens: 5}\n"
        "requests:\n"
        "  - {name: quick, share: 3, body: {script: ok}}\n"
        "  - {name: streamed, stream: true, body: {script: stream}}\n"
    )
    files = ["--mix", str(tmp_path / "mix.yaml"), "--json", str(tmp_path / "a.json"), "--png", str(tmp_path / "a.png")]
    command = ["--url", f"{server.url}/v1/", "--key", "sk-secret", "--rate", "20", "40", "--requests", "20", *files]
    monkeypatch.setattr("sys.argv", ["trimtab", "load", *command])
    trimtab()
    printed = capsys.readouterr().out
    assert printed.count("| quick ") == 4  # two tables of two loads
    assert "| 40 requests/s, poisson" in printed
    written = (tmp_path / "a.json").read_text()
    assert "sk-secret" not in written
    runs = json.loads(written)["figures"]
    assert [r["load"]["rate"] for r in runs] == [20, 40]
    assert [r["total"]["requests"] for r in runs] == [20, 20]
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert {(body["model"], body["max_tokens"]) for _, body in server.seen} == {("first", 5)}
    assert {headers["authorization"] for headers, _ in server.seen} == {"Bearer sk-secret"}


def test_no_server_is_one_line() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(SystemExit, match=f"^trimtab load: {url}/v1/models tells no model: "):
        main(["--url", url, "--rate", "1", "--requests", "1"])
