"""The judge: served, over an engine whose odds are known, and behind an endpoint, over HTTP with the real client."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from tests.rewards.conftest import question, response
from trimtab.decoders.protocols import BASE, Call, Mixture, Tokens
from trimtab.rewards import KINDS
from trimtab.rewards.judge import EndpointJudge
from trimtab.rewards.protocols import Question, Response, RewardError, Scorer

PRINCIPLES = {"kind": "It is kind.", "brief": "It is brief."}


def odds(text: str) -> float:
    """What the fake judges think: log p(yes) - log p(no), by principle and response."""
    kind = "Principle: It is kind." in text
    praised = "<response>\nThank you" in text
    return (2.0 if praised else -1.0) if kind else 0.25


def letters(text: str, bias: float) -> tuple[float, float]:
    """log p(A), log p(B) of a judge that has `bias` nats for A wherever it stands."""
    for_a = odds(text) if "A) yes" in text else -odds(text)
    logit = for_a + bias
    return -math.log1p(math.exp(-logit)), -math.log1p(math.exp(logit))


@dataclass
class Served:
    """A `Host` whose tokens are characters; the letters' log-probs are the fake judge's."""

    bias: float = 0.0
    members: list[Mixture] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    @property
    def engine(self) -> Any:
        return self

    @property
    def tokenizer(self) -> Any:
        return SimpleNamespace(encode=lambda text, add_special_tokens: [ord(c) for c in text])

    async def render(self, messages: Sequence[Mapping[str, str]]) -> Tokens:
        [message] = messages
        assert message["role"] == "user"
        return [ord(c) for c in message["content"]]

    async def score(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        self.members.append(guides)
        self.prompts.append("".join(map(chr, prompt)))
        return [letters(self.prompts[-1], self.bias)["AB".index(chr(token))] for token in completion]


def judge(host: Any = None, **params: Any) -> Scorer:
    built: Scorer = KINDS["judge"].build({"principles": PRINCIPLES, **params}, host=host)
    return built


TEXTS = ("Thank you, {dear} friend.", "Go away.")
EXPECTED = [[2.0, 0.25], [-1.0, 0.25]]


async def rate(scorer: Scorer, *texts: str) -> list[list[float]]:
    return await scorer(question("Hello?"), [response(text) for text in texts])


@pytest.mark.parametrize("bias", [0.0, 1.5, -30.0])
async def test_the_served_judge_and_its_liking_for_a_letter_cancels(bias: float) -> None:
    host = Served(bias=bias)
    scorer = judge(host)
    assert scorer.labels == ("kind", "brief")
    assert await rate(scorer, *TEXTS) == [[pytest.approx(s, abs=1e-12) for s in row] for row in EXPECTED]
    assert host.members == [{BASE: 1.0}] * (2 * 2 * 2 * 2)  # responses, principles, orders, letters
    assert {prompt.count("user: Hello?") for prompt in host.prompts} == {1}


async def test_the_order_of_asking_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = await rate(judge(Served(bias=0.7)), *TEXTS)
    monkeypatch.setattr("trimtab.rewards.judge.ORDERS", (("no", "yes"), ("yes", "no")))
    host = Served(bias=0.7)
    assert await rate(judge(host), *TEXTS) == ahead
    assert "A) no\nB) yes" in host.prompts[0]


async def test_a_row_depends_on_its_own_response_alone() -> None:
    both = await rate(judge(Served(bias=0.7)), *TEXTS)
    assert [(await rate(judge(Served(bias=0.7)), text))[0] for text in TEXTS] == both
    assert await rate(judge(Served(bias=0.7)), *TEXTS[::-1]) == both[::-1]
    assert await rate(judge(Served())) == []


async def test_it_reads_tools_calls_and_results() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = (
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "A wall."},
    )
    tool = {"type": "function", "function": {"name": "look"}}
    made = Response(text="Thank you", tokens=(), calls=(Call(name="look", arguments='{"at": 1}'),))
    host = Served()
    await judge(host)(Question(messages=messages, tools=(tool,), prompt=(9,)), [made])
    assert len(host.prompts) == 8
    for prompt in host.prompts:
        assert (
            '<conversation>\nuser: Tools:\n{"name": "look"}\n\nHello?\n'
            'assistant: {"name": "look", "arguments": {}}\ntool: Result of look: A wall.\n</conversation>'
        ) in prompt
        assert '<response>\nThank you\n{"name": "look", "arguments": {"at": 1}}\n</response>' in prompt


@dataclass
class Fake:
    """An OpenAI-compatible endpoint on localhost."""

    url: str = ""
    bias: float = 0.0
    top: Any = None
    """What to list instead of the judge's own letters."""
    status: int = 200
    body: bytes | None = None
    """What it answers instead of a completion."""
    headers: dict[str, str] = field(default_factory=dict)
    pause: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    cookies: set[str] = field(default_factory=set)

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        a, b = letters(body["messages"][0]["content"], self.bias)
        top = [("A", a - math.log(2)), (" A", a - math.log(2)), ("B", b), ("the", -20.0)]
        if self.top is not None:
            top = self.top
        listed = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in top]
        content = [{**(listed or [{"token": "?", "logprob": -1.0, "bytes": None}])[0], "top_logprobs": listed}]
        choice = {
            "index": 0,
            "finish_reason": "length",
            "message": {"role": "assistant", "content": "A"},
            "logprobs": None if self.top == [] else {"content": content},
        }
        return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    endpoint = Fake()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            endpoint.requests.append({"path": self.path, **body})
            endpoint.keys.add(self.headers["Authorization"])
            endpoint.cookies |= {self.headers["Cookie"]} - {None}
            time.sleep(endpoint.pause)
            sent = json.dumps(endpoint.reply(body)).encode() if endpoint.body is None else endpoint.body
            self.send_response(endpoint.status)
            self.send_header("Content-Type", "application/json")
            for name, value in endpoint.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *args: Any) -> None: ...

    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setattr(server, "handle_error", lambda *args: None)  # a client that was cancelled hangs up
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield endpoint
        server.shutdown()
        thread.join()


def remote(fake: Fake, **params: Any) -> Scorer:
    return judge(endpoint=fake.url, endpoint_model="m", api_key_env="JUDGE_KEY", **params)


async def one_order(fake: Fake) -> tuple[float, float]:
    """What the endpoint's judge makes of one reply."""
    return await EndpointJudge(url=fake.url, model="m", key="k", seconds=10)("text")


@pytest.mark.slow
@pytest.mark.parametrize("bias", [0.0, 1.5, -3.0])
async def test_the_endpoint_says_what_the_served_judge_says(fake: Fake, bias: float) -> None:
    fake.bias = bias
    assert await rate(remote(fake), *TEXTS) == [[pytest.approx(s, abs=1e-12) for s in row] for row in EXPECTED]
    assert len(fake.requests) == 2 * 2 * 2
    assert fake.keys == {"Bearer s3cret"}
    first = fake.requests[0]
    assert first["path"] == "/v1/chat/completions"
    assert (first["model"], first["max_tokens"], first["logprobs"], first["top_logprobs"]) == ("m", 1, True, 20)


async def test_a_letter_that_is_not_listed_counts_as_the_least_that_is(fake: Fake) -> None:
    fake.top = [("A", -0.1), ("the", -4.0), ("I", -7.5)]
    assert await rate(remote(fake), "text") == [[0, 0]]  # whatever it is asked it says A: that is for its place alone
    assert await one_order(fake) == (-0.1, -7.5)
    fake.top = [("the", -0.1), ("B", -4.0), ("I", -7.5)]
    assert await one_order(fake) == (-7.5, -4.0)


async def test_every_token_that_reads_as_the_letter_counts(fake: Fake) -> None:
    fake.top = [(token, math.log(p)) for token, p in [("A", 0.2), (" A", 0.3), ("B", 0.25), ("B\n", 0.15), ("b", 0.1)]]
    assert await one_order(fake) == (pytest.approx(math.log(0.5)), pytest.approx(math.log(0.4)))


@pytest.mark.parametrize("top", [[("the", -0.1), ("a", -4.0), ("AB", -5.0)], []])
async def test_no_letter_listed_is_an_error(fake: Fake, top: list[Any]) -> None:
    fake.top = top
    with pytest.raises(RewardError, match=r"^no score in its answer: neither A nor B is among its likeliest tokens$"):
        await rate(remote(fake), "text")


@pytest.mark.parametrize(("status", "body", "says"), [
    (401, b"{}", "answered 401"),
    (503, b"", "answered 503"),
    (302, b"", "answered 302"),
    (200, b"<html>", "no score in its answer"),
    (200, b"[]", "no score in its answer"),
    (200, b"{}", "no score in its answer"),
    (200, b'{"choices": {}}', "no score in its answer"),
    (200, b'{"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": 1}]}]}}]}', "no score in its answer"),
    (200, b'{"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "A", "logprob": null}]}]}}]}',
     "no score in its answer"),
])  # fmt: skip
async def test_an_endpoint_that_fails_says_how_and_no_secret(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int, body: bytes, says: str
) -> None:
    """Neither its key, nor the user in its URL, nor what an exception said; redirects are not followed."""
    caplog.set_level(logging.WARNING, logger="trimtab")
    monkeypatch.setattr("trimtab.rewards.judge.RETRIES", 0)
    fake.status, fake.body = status, body
    fake.headers = {"Location": f"{fake.url}/elsewhere", "Set-Cookie": "who=somebody"}
    with_user = fake.url.replace("http://", "http://someone:pa55@")
    scorer = judge(endpoint=with_user, endpoint_model="m", api_key_env="JUDGE_KEY")
    for _ in range(2):
        with pytest.raises(RewardError) as raised:
            await rate(scorer, "text")
    assert str(raised.value).startswith(says)
    assert {request["path"] for request in fake.requests} == {"/v1/chat/completions"}
    assert fake.cookies == set()
    seen = f"{raised.value}{raised.value.__cause__}{scorer._judge}{caplog.text}"  # type: ignore[attr-defined]
    assert "127.0.0.1" in caplog.text
    assert not [secret for secret in ("s3cret", "pa55", "someone") if secret in seen]


async def test_an_endpoint_that_cannot_be_reached_or_is_slow(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.rewards.judge.RETRIES", 0)
    nobody = EndpointJudge(url="http://127.0.0.1:9/v1", model="m", key="k", seconds=10)
    with pytest.raises(RewardError, match=r"^cannot be reached$"):
        await nobody("text")
    fake.pause = 0.5
    with pytest.raises(RewardError, match=r"^timed out after 0\.05 s \(its key `seconds`\)$"):
        await EndpointJudge(url=fake.url, model="m", key="k", seconds=0.05)("text")


async def test_one_failure_ends_the_other_calls() -> None:
    class Dying(Served):
        ended = 0

        async def score(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
            if not self.prompts:
                self.prompts.append("first")
                raise RewardError("dead")
            try:
                await asyncio.sleep(60)
            finally:
                self.ended += 1
            return []

    host = Dying()
    with pytest.raises(RewardError, match=r"^dead$"):
        async with asyncio.timeout(10):
            await rate(judge(host), *TEXTS)
    assert host.ended > 0


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"principles": {}}, "principles"),
        ({"principles": {"kind": ""}}, "principles.kind"),
        ({"principles": ["kind"]}, "principles"),
        ({"endpoint": "http://x/v1"}, "give endpoint and endpoint_model, or neither"),
        ({"endpoint_model": "m"}, "give endpoint and endpoint_model"),
        ({"endpoint": "file:///etc/passwd", "endpoint_model": "m"}, "endpoint: .*pattern"),
        ({"api_key_env": "JUDGE_KEY"}, "only for an endpoint"),
        (
            {"endpoint": "http://x/v1", "endpoint_model": "m", "api_key_env": "NOT_SET_AT_ALL"},
            "'NOT_SET_AT_ALL' is not set",
        ),
        ({"seconds": 0}, "seconds"),
    ],
)
def test_refused(params: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        judge(**params)
