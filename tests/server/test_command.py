"""`trimtab serve` as it runs: what it writes to its log, how it treats connections, and how it ends."""

from __future__ import annotations

import json
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.server.conftest import KEY, Running, end, serve, until_up
from tests.waiting import PATIENCE
from trimtab.server.config import load

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "words-of-the-client"}], "model": "trimtab-demo"}
SECRETS = ("hf_of_the_test", "password-of-the-test", "admin-of-the-test")
ORIGIN = "https://app.example.org"
SETTINGS: dict[str, Any] = {
    "admin_keys": ["admin-of-the-test"],
    "otlp_endpoint": "http://user:password-of-the-test@127.0.0.1:9/v1/traces",
    "timeouts": {"headers_s": 1.0, "body_s": 1.5, "keep_alive_s": 0.5},
    "max_connections": 8,
    "allowed_origins": [ORIGIN],
    "limits": {"drain_s": 60},
}
# A model that does not end by itself: a stream stands still after its first token, and a whole answer never comes.
SLOW = """
import asyncio
from trimtab.runtime.toy_engine import ToyEngine
draw = ToyEngine.generate
async def generate(self, prompt, sampling, **more):
    begun = not sampling.stream
    async for chunk in draw(self, prompt, sampling, **more):
        if begun:
            await asyncio.sleep(300)
        begun = True
        yield chunk
ToyEngine.generate = generate
"""


def configured(path: Path, folder: Path, **keys: Any) -> Path:
    config = load(path)
    whole = {**yaml.safe_load(path.read_text()), "base": config.base, "auto_weights": config.auto_weights, **keys}
    whole["guides"] = {name: guide.model for name, guide in config.guides.items()}
    for name, reward in whole["rewards"].items():
        if config.rewards[name].model is not None:
            reward["model"] = config.rewards[name].model
    whole["engine"] = {**whole["engine"], "hf_token": "hf_of_the_test"}
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(whole))
    return file


@pytest.fixture(scope="module", params=["text", "json"])
def running(
    request: pytest.FixtureRequest, config_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("command")
    file = configured(config_path, folder, log_format=request.param, **SETTINGS)
    yield from until_up(serve(file, folder / "log", "--engine", "toy"))


@pytest.fixture
def raw(running: Running) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {KEY}"}
    once = httpx.Limits(max_keepalive_connections=0)  # the server may close one that waits just as it is used again
    with httpx.Client(base_url=running.url, headers=headers, timeout=PATIENCE, limits=once) as client:
        yield client


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lines(running: Running, request_id: str) -> list[str]:
    return [line for line in running.told().splitlines() if request_id in line]


def test_every_request_has_one_line(running: Running, raw: httpx.Client) -> None:
    asked: dict[str, tuple[dict[str, Any], int, str]] = {
        "id-ok": (HI, 200, "ok"),
        "id-unknown": ({**HI, "alignment": {"strategy": "nothing"}}, 400, "invalid"),
        "id-vllms": ({**HI, "temperature": -1}, 400, "invalid"),
        "id-null": ({**HI, "messages": None}, 400, "invalid"),
        "id-running": ({**HI, "logprobs": True, "stream": True, "alignment": {"strategy": "guided"}}, 400, "invalid"),
        "id-twice": ({**HI, "stream": True}, 200, "ok"),
    }
    for name, (body, status, outcome) in asked.items():
        answer = raw.post(CHAT, json=body, headers={"x-request-id": name})
        assert answer.status_code == status, answer.text
        wait_for(lambda name=name: bool(lines(running, name)))  # type: ignore[misc]
        [line] = lines(running, name)
        if line.startswith("{"):
            assert json.loads(line)["outcome"] == outcome
        else:
            assert f"outcome={outcome}" in line
    assert raw.get("/v1/models", headers={"authorization": "Bearer x", "x-request-id": "id-key"}).status_code == 401
    wait_for(lambda: len(lines(running, "id-key")) == 1)
    assert "Traceback" not in running.told()
    assert "words-of-the-client" not in running.told()


def test_the_configuration_is_shown_without_secrets(running: Running) -> None:
    told = running.told()
    assert '"base"' in told or '\\"base\\"' in told
    assert "***@127.0.0.1:9" in told
    assert not [secret for secret in (*SECRETS, KEY) if secret in told]


def test_a_reload_is_in_the_log(running: Running) -> None:
    running.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "reloaded; changed: nothing" in running.told())


def connect(running: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE)


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def status_and_error(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"x-request-id: " in head
    return int(head.split()[1]), json.loads(body)["error"]["code"]


HEAD = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(
    ("first", "then", "expected"),
    [
        (b"GET /health HTTP/1.1\r\nx: y", b"y", (408, "request_timeout")),
        (HEAD.encode() + b"content-length: 1000\r\n\r\n{", b" ", (408, "request_timeout")),
        (HEAD.replace(CHAT, "/detokenize").encode() + b"content-length: 1000\r\n\r\n{", b" ", (408, "request_timeout")),
        (b"GET /health HTTP/1.1\r\nx: " + b"y" * 70_000, b"", (431, "headers_too_large")),
        (b"\x16\x03\x01 what is not HTTP\r\n\r\n", b"", (400, "invalid_http")),
    ],
    ids=["headers", "body", "body-of-vllms", "large", "tls"],
)
def test_a_slow_or_endless_sender_is_cut_off(
    running: Running, first: bytes, then: bytes, expected: tuple[int, str]
) -> None:
    """It sends on until the answer comes, and nothing behind it: a reset would take the answer away. So no piece is due
    within a tenth of a second of a timeout."""
    with connect(running) as sock:
        end_of_patience = time.monotonic() + PATIENCE
        with suppress(OSError):
            sock.sendall(first)
            while then and time.monotonic() < end_of_patience and not select.select([sock], [], [], 0.4)[0]:
                sock.sendall(then)
        assert status_and_error(read_all(sock)) == expected


def test_what_sends_nothing_is_closed(running: Running) -> None:
    began = time.monotonic()
    with connect(running) as sock:
        assert read_all(sock) == b""
        assert time.monotonic() - began > 0.5
    with connect(running) as sock:
        began = time.monotonic()
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - began > 0.3


def test_a_refused_body_that_trickles_on_is_cut_off(running: Running) -> None:
    with connect(running) as sock:
        sock.sendall(HEAD.replace(KEY, "none").encode() + b"content-length: 1000\r\n\r\n{")
        assert sock.recv(65536).startswith(b"HTTP/1.1 401")

        def trickle() -> None:
            for _ in range(100):
                time.sleep(0.1)
                sock.sendall(b" ")

        with pytest.raises(OSError, match=r"(?i)reset|pipe|abort"):
            trickle()


def test_idle_connections_make_room(running: Running, raw: httpx.Client) -> None:
    many = [connect(running) for _ in range(20)]
    assert raw.get("/health").status_code == 200
    for sock in many:
        sock.close()


def test_a_client_that_waits_for_100(running: Running) -> None:
    body = json.dumps(HI).encode()
    with connect(running) as sock:
        sock.sendall(HEAD.encode() + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body))
        assert sock.recv(100).startswith(b"HTTP/1.1 100")
        sock.sendall(body)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_head_is_a_get_without_its_body(raw: httpx.Client) -> None:
    for path in ("/health", "/ready", "/v1/models", "/v1/alignment", "/version"):
        assert raw.head(path).status_code == 200, path
        assert raw.head(path).content == b""
        assert raw.head(path).headers["content-type"] == "application/json"
    assert raw.head(CHAT).status_code == 405


def test_what_is_answered_when_the_server_stops_says_so(config_path: Path, tmp_path: Path) -> None:
    """A second signal cuts off what is in flight: 503, or an error as the stream's last event."""
    command = serve(config_path, tmp_path / "log", "--engine", "toy", patch=SLOW)
    for running in until_up(command):
        answers: dict[str, httpx.Response] = {}

        def ask(
            name: str, path: str, running: Running = running, answers: dict[str, Any] = answers, **more: Any
        ) -> None:
            headers = {"authorization": f"Bearer {KEY}"}
            body = {**HI, "max_tokens": 8, "input": "hi", "seed": 1, **more}
            body.pop("messages" if path == "/v1/responses" else "input")
            answers[name] = httpx.post(running.url + path, json=body, headers=headers, timeout=PATIENCE)

        search = {"strategy": "best_of_n", "reward": "brevity", "params": {"n": 2}}
        asked: dict[str, tuple[str, dict[str, Any]]] = {
            "plain": (CHAT, {}),
            "plain stream": (CHAT, {"stream": True}),
            "guided": (CHAT, {"alignment": {"weights": {"warmth": 1.0}}}),
            "search stream": (CHAT, {"stream": True, "alignment": search}),
            "messages stream": ("/v1/messages", {"stream": True}),
        }
        threads = [threading.Thread(target=ask, args=(n, p), kwargs=more) for n, (p, more) in asked.items()]
        for thread in threads:
            thread.start()

        def begun(running: Running = running) -> bool:
            metrics = httpx.get(f"{running.url}/metrics", headers={"authorization": f"Bearer {KEY}"}).text
            return "trimtab_inflight_requests 5.0" in metrics

        wait_for(begun)
        running.process.send_signal(signal.SIGTERM)
        wait_for(lambda running=running: "requests in flight have" in running.told())  # type: ignore[misc]
        running.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert running.wait(PATIENCE) == 0, running.told()[-3000:]
        for name, answer in answers.items():
            if answer.status_code == 200:
                assert "stream" in name, answer.text
                last = [line for line in answer.text.splitlines() if line.startswith("data: {")][-1]
                error = json.loads(last.removeprefix("data: "))["error"]
            else:
                assert answer.status_code == 503
                error = answer.json()["error"]
            assert error["code"] == "shutting_down", name
        assert len(answers) == len(asked)
        told = running.told()
        assert re.search(r"[1-5] requests in flight are cut off", told)
        assert "Traceback" not in told
        assert len(re.findall(r"outcome=engine_error", told)) == len(asked)
    end(command)
