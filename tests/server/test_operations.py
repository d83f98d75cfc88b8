"""What an operator has to do with, on the toy engine: keys, shares, metrics, logs, a reload, a way out."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI, RateLimitError
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY

from tests.server import toy_server
from tests.waiting import until
from trimtab.decoders.protocols import Chunk, Mixture, Sampling, Tokens
from trimtab.rewards.protocols import RewardError
from trimtab.runtime import traced
from trimtab.runtime.toy_engine import ToyEngine
from trimtab.server.cli import main
from trimtab.server.config import HASHED, Config, ConfigError, load
from trimtab.server.http.auth import TRUSTED, Auth, digest, new_key
from trimtab.server.json_log import JsonFormatter
from trimtab.server.metrics import REQUESTS
from trimtab.server.request import tracing
from trimtab.server.request.messages import CHAT
from trimtab.server.request.plan import check_config
from trimtab.server.state import ServerState

HI: list[Any] = [{"role": "user", "content": "hi"}]
BODY = {"model": "toy", "messages": HI, "max_tokens": 5}
KEY, ADMIN = "a-key-of-the-test", "an-admin-s-key-of-the-test"
BEST = {"strategy": "best_of_n", "weights": {"good": 1.0}, "params": {"n": 4}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_server.checkpoint(tmp_path_factory.mktemp("operated"))


@pytest.fixture(scope="module")
def toy(folder: Path) -> ToyEngine:
    return toy_server.toy_engine(folder)


def settings(folder: Path) -> dict[str, Any]:
    return {
        "base": str(folder),
        "name": "toy",
        "guides": {"arm": str(folder)},
        "rewards": {"long": {"kind": "length", "unit": "characters", "target": 3}},
        "objectives": {"good": {"guide": "arm", "reward": "long", "mean": 1.0, "spread": 2.0}},
        "presets": {"toy-good": {"weights": {"good": 0.8}, "strategy": "guided"}},
        "engine": {"dtype": "float32", "max_model_len": 256, "enforce_eager": True},
    }


@pytest.fixture(scope="module")
def config(folder: Path) -> Config:
    return Config.model_validate(settings(folder))


@pytest.fixture(scope="module")
async def app(config: Config, toy: ToyEngine) -> FastAPI:
    return await toy_server.serve(config, toy)


def http(app: FastAPI, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toy", headers=headers)


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@dataclass
class Gated:
    """The toy, which draws nothing until it is let."""

    inner: ToyEngine
    gate: asyncio.Event

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def generate(
        self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture
    ) -> AsyncGenerator[Chunk, None]:
        await self.gate.wait()
        async for chunk in self.inner.generate(prompt, sampling, n=n, guides=guides):
            yield chunk


# Keys.


def test_a_key_is_kept_as_its_digest(capsys: pytest.CaptureFixture[str]) -> None:
    main(["key"])
    shown = capsys.readouterr().out
    key = shown.split()[1]
    assert shown.rstrip().endswith(HASHED + hashlib.sha256(key.encode()).hexdigest())
    assert len({new_key() for _ in range(100)}) == 100
    hidden = Auth(lambda *_: None, [HASHED + digest(key)])  # type: ignore[arg-type, return-value]
    assert hidden.keys == [digest(key)]


def test_keys_come_from_a_file_too(folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "keys"
    config = Config.model_validate(settings(folder) | {"api_keys_file": "keys"}, context=tmp_path)
    with pytest.raises(ConfigError, match="api_keys_file: cannot be read: No such file"):
        _ = config.keys
    listed.write_text("# of nobody\n\n")
    with pytest.raises(ConfigError, match="holds no key, and without any the server would be open to all"):
        _ = config.keys
    listed.write_text(f"{KEY}  # of somebody\n{HASHED}{digest('another')} of another\n")
    assert config.keys == (KEY, HASHED + digest("another"))
    listed.write_text("sha256:123\n")
    with pytest.raises(ConfigError, match="a digest is sha256: and 64 hexadecimal digits"):
        _ = config.keys
    with pytest.raises(ValueError, match="a digest is sha256:"):
        Config.model_validate(settings(folder) | {"api_keys": ["sha256:abc"]})


async def test_operations_need_the_admin_s_key_where_there_is_one(config: Config, toy: ToyEngine) -> None:
    keys = {"api_keys": (HASHED + digest(KEY),), "admin_keys": (HASHED + digest(ADMIN),)}
    app = await toy_server.serve(config.model_copy(update=keys), toy)
    async with http(app) as raw:
        for path in ("/v1/models", "/metrics", "/docs", "/admin/reload", "/anything"):
            assert (await raw.get(path)).status_code == 401
        assert (await raw.get("/metrics", headers={"x-api-key": KEY})).status_code == 401
        assert (await raw.get("/metrics", headers={"x-api-key": ADMIN})).status_code == 200
        assert (await raw.post("/admin/reload", headers={"x-api-key": KEY})).status_code == 401
        for key in (KEY, ADMIN):
            answer = await raw.post(CHAT, json=BODY, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == 200
        digests = {"authorization": f"Bearer {HASHED}{digest(KEY)}"}
        assert (await raw.post(CHAT, json=BODY, headers=digests)).status_code == 401  # what is stored opens nothing


async def test_an_admin_s_key_alone_locks_operations_alone(config: Config, toy: ToyEngine) -> None:
    app = await toy_server.serve(config.model_copy(update={"admin_keys": (ADMIN,)}), toy)
    async with http(app) as raw:
        assert (await raw.post(CHAT, json=BODY)).status_code == 200
        assert (await raw.get("/metrics")).status_code == 401


async def test_nothing_but_http_comes_in(app: FastAPI) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "websocket", "path": "/v1/realtime", "headers": [], "method": "GET"}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize("trusted", [(), ("x-session-id",)])
async def test_headers_for_gateways_are_dropped_unless_trusted(trusted: tuple[str, ...]) -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope)

    scope: dict[str, Any] = {"type": "http", "path": "/", "method": "GET"}
    scope["headers"] = [(name.encode(), b"1") for name in [*sorted(TRUSTED), "accept", "x-consumer"]]
    for header, caller in ((None, ""), ("x-consumer", "1"), ("x-absent", "")):
        auth = Auth(app, [], caller_header=header, trusted_headers=trusted)
        await auth(dict(scope), None, None)  # type: ignore[arg-type]
        assert {name for name, _ in seen["headers"]} == {b"accept", b"x-consumer", *(t.encode() for t in trusted)}
        assert seen["trimtab.caller"] == caller


def test_a_trusted_priority_needs_a_server_that_goes_by_it(folder: Path) -> None:
    asked = settings(folder) | {"trusted_headers": ["x-vllm-priority"]}
    with pytest.raises(ValueError, match="without it, fair shares decide"):
        Config.model_validate(asked)
    asked["engine"]["scheduling_policy"] = "priority"
    Config.model_validate(asked)
    with pytest.raises(ValueError, match="trusted_headers"):
        Config.model_validate(settings(folder) | {"trusted_headers": ["x-anything"]})


# Admission.


@pytest.fixture
async def gate() -> AsyncIterator[asyncio.Event]:
    event = asyncio.Event()
    yield event
    event.set()


async def test_a_full_server_refuses_before_any_work(config: Config, toy: ToyEngine, gate: asyncio.Event) -> None:
    keys = ("one", "two", "three")
    update = {"api_keys": keys, "limits": config.limits.model_copy(update={"max_tokens": 110})}
    app = await toy_server.serve(config.model_copy(update=update), Gated(toy, gate))  # type: ignore[arg-type]
    rejected = sample("trimtab_requests_total", strategy="best_of_n", outcome="rejected")

    async def ask(key: str, alignment: Any = BEST, **body: Any) -> httpx.Response:
        async with http(app, authorization=f"Bearer {key}") as raw:
            return await raw.post(CHAT, json={**BODY, **body, **({"alignment": alignment} if alignment else {})})

    running = [
        asyncio.create_task(ask("one", max_tokens=10))
    ]  # 4 * 10 drawn, and a tenth of that and of the prompt read
    await until(lambda: sample("trimtab_admitted_tokens") == 46)
    assert sample("trimtab_inflight_candidates") == 4
    for key, alignment, told in (("one", BEST, "your requests fill your share"), ("two", BEST, "")):
        if told:
            answer = await ask(key, alignment, max_tokens=10)
            assert answer.status_code == 429
            assert answer.json()["error"]["message"].startswith(told)
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        else:
            running.append(asyncio.create_task(ask(key, alignment, max_tokens=10)))
    await until(lambda: sample("trimtab_admitted_tokens") == 92)
    assert (await ask("three", max_tokens=10)).json()["error"]["message"].startswith("the server is full")
    running.append(asyncio.create_task(ask("one", None, max_tokens=10)))  # a plain one still finds room
    never = await ask("two", {**BEST, "params": {"n": 64}}, max_tokens=10)
    assert (never.status_code, never.json()["error"]["code"]) == (400, "out_of_range")
    await until(lambda: sample("trimtab_inflight_requests") == 3)
    gate.set()
    assert {answer.status_code for answer in await asyncio.gather(*running)} == {200}
    assert sample("trimtab_admitted_tokens") == sample("trimtab_inflight_requests") == 0
    assert sample("trimtab_inflight_candidates") == 0
    assert sample("trimtab_requests_total", strategy="best_of_n", outcome="rejected") == rejected + 2


@pytest.mark.slow
async def test_the_official_client_waits_and_tries_again(config: Config, toy: ToyEngine, gate: asyncio.Event) -> None:
    update = {"limits": config.limits.model_copy(update={"max_tokens": 25})}
    app = await toy_server.serve(config.model_copy(update=update), Gated(toy, gate))  # type: ignore[arg-type]
    async with http(app) as transport:
        client = AsyncOpenAI(base_url="http://toy/v1", api_key="none", http_client=transport)
        asked: Any = {"model": "toy", "messages": HI, "max_tokens": 10}
        first = asyncio.create_task(client.chat.completions.create(**asked))
        await until(lambda: sample("trimtab_inflight_requests") == 1)
        with pytest.raises(RateLimitError):
            await client.with_options(max_retries=0).chat.completions.create(**asked)
        second = asyncio.create_task(client.with_options(max_retries=2).chat.completions.create(**asked))
        await asyncio.sleep(0.05)
        gate.set()
        assert [answer.choices[0].finish_reason for answer in await asyncio.gather(first, second)]


async def test_what_is_scored_is_let_in_too(config: Config, toy: ToyEngine) -> None:
    update = {"limits": config.limits.model_copy(update={"max_tokens": 50})}
    app = await toy_server.serve(config.model_copy(update=update), toy)
    async with http(app) as raw:
        asked = {"prompt": "hi", "responses": ["a" * 100]}
        assert (await raw.post("/v1/alignment/score", json=asked)).status_code == 200
        refused = await raw.post("/v1/alignment/score", json={**asked, "responses": ["a" * 200] * 4})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "out_of_range")


# Metrics and logs.


async def test_the_metrics_sums_are_what_clients_were_told(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    kinds = ("prompt", "visible", "sampled", "scored")

    def counted() -> dict[str, float]:
        found = {kind: sample("trimtab_tokens_total", kind=kind) for kind in kinds}
        found |= {"rewards": sample("trimtab_reward_score_count", objective="good")}
        found |= {"low": sample("trimtab_reward_score_bucket", objective="good", le="-1.0")}
        found |= {"kl": sample("trimtab_guidance_kl_count", strategy="guided")}
        found |= {"accept": sample("trimtab_mcmc_accept_ratio_count")}
        found |= {"pool": sample("trimtab_candidates_per_request_sum", strategy="best_of_n")}
        found |= {"first": sample("trimtab_time_to_first_visible_token_seconds_count", strategy="plain")}
        return found

    before = counted()
    asked: list[dict[str, Any]] = [
        {},
        {"n": 2},
        {"alignment": {"weights": {"good": 1.0}, "strategy": "guided", "return": ["trace"]}},
        {"alignment": BEST},
        {"alignment": {**BEST, "strategy": "qalign", "params": {"chains": 2, "steps": 3}}},
    ]
    told = dict.fromkeys(kinds, 0)
    scores = []
    with caplog.at_level(logging.INFO, "trimtab.request"):
        async with http(app) as raw:
            for body in asked:
                answer = (await raw.post(CHAT, json={**BODY, **body})).json()
                told["prompt"] += answer["usage"]["prompt_tokens"]
                told["visible"] += answer["usage"]["completion_tokens"]
                told["sampled"] += answer["alignment"]["sampled_tokens"]
                told["scored"] += answer["alignment"]["scored_tokens"]
                scores += [c["transformed"]["good"] for c in answer["alignment"].get("choices", ()) if "value" in c]
    after = counted()
    gained = {key: after[key] - before[key] for key in after}
    assert {kind: gained[kind] for kind in kinds} == told
    assert gained["rewards"] == len(scores) == 2
    assert gained["low"] == sum(score <= -1 for score in scores)  # with scores below 0 there is no `_sum`
    assert (gained["kl"], gained["accept"], gained["pool"], gained["first"]) == (1, 1, 4, 2)
    lines = [record for record in caplog.records if record.name == "trimtab.request"]
    assert [record.fields["strategy"] for record in lines] == ["plain", "plain", "guided", "best_of_n", "qalign"]  # type: ignore[attr-defined]
    assert sum(record.fields["sampled_tokens"] for record in lines) == told["sampled"]  # type: ignore[attr-defined]


async def test_no_log_holds_a_prompt_an_answer_or_a_key(
    config: Config, toy: ToyEngine, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "the-client-s-own-words"
    app = await toy_server.serve(config.model_copy(update={"api_keys": (KEY,)}), toy)
    with caplog.at_level(logging.DEBUG):
        async with http(app, authorization=f"Bearer {KEY}") as raw:
            for body in (
                {**BODY, "messages": [{"role": "user", "content": secret}]},
                {**BODY, "messages": [{"role": "user", "content": secret}], "alignment": BEST, "user": secret},
                {**BODY, "messages": [{"role": secret, "content": 1}]},
                {**BODY, "alignment": {"weights": {secret: 1}}},
            ):
                await raw.post(CHAT, json=body, headers={"x-request-id": "an-id-of-the-test"})
    shown = "\n".join(JsonFormatter().format(record) for record in caplog.records)
    assert "an-id-of-the-test" in shown
    assert secret not in shown
    assert KEY not in shown


async def test_a_log_line_has_the_parameters_that_are_no_text(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    secret = "the-client-s-own-words"
    asked = {
        "plain": {"strategy": "plain"},
        "vote": {"strategy": "vote", "params": {"n": 2, "extractor": {"regex": f"({secret})"}}},
        "blockwise": {**BEST, "strategy": "blockwise", "params": {"n": 2, "step": secret}},
    }
    with caplog.at_level(logging.INFO, "trimtab.request"):
        async with http(app) as raw:
            for alignment in asked.values():
                assert (await raw.post(CHAT, json={**BODY, "alignment": alignment})).status_code == 200
    lines = dict(zip(asked, caplog.records, strict=True))
    assert "params" not in lines["plain"].fields  # type: ignore[attr-defined]
    assert lines["vote"].fields["params"] == {"n": 2, "weighting": "uniform", "beta": 1.0}  # type: ignore[attr-defined]
    assert lines["blockwise"].fields["params"] == {"n": 2, "block": 16, "beta": 0.0}  # type: ignore[attr-defined]
    assert 'params={"n": 2, "block": 16, "beta": 0.0}' in lines["blockwise"].getMessage()
    assert secret not in caplog.text + "".join(JsonFormatter().format(line) for line in lines.values())


def test_a_line_for_machines_is_an_object() -> None:
    record = logging.makeLogRecord(
        {"name": "trimtab", "levelname": "INFO", "msg": "a %s", "args": ("b",), "created": 0.5, "msecs": 500}
    )
    said = json.loads(JsonFormatter().format(record))
    assert (said["level"], said["logger"], said["message"]) == ("info", "trimtab", "a b")
    record.fields = {"request_id": "x", "seconds": 0.1}
    assert json.loads(JsonFormatter().format(record)).items() >= {"request_id": "x", "seconds": 0.1}.items()


async def test_every_metric_of_the_contract_is_there(app: FastAPI) -> None:
    async with http(app) as raw:
        await raw.post(CHAT, json=BODY)
        shown = (await raw.get("/metrics")).text
    for name in (
        "requests_total", "request_duration_seconds", "time_to_first_visible_token_seconds", "tokens_total",
        "candidates_per_request", "reward_score", "reward_seconds", "reward_errors_total", "guidance_kl",
        "mcmc_accept_ratio", "admission_rejected_total", "inflight_candidates", "cancelled_total", "ready",
    ):  # fmt: skip
        assert f"trimtab_{name}" in shown
    assert "trimtab_ready 1.0" in shown


# Traces.


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for module in (traced, tracing):
        monkeypatch.setattr(module, "tracer", provider.get_tracer("test"))
    return exporter


async def test_a_trace_has_the_request_its_steps_and_its_rewards(app: FastAPI, spans: InMemorySpanExporter) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    secret = "the-client-s-own-words"
    asked = {**BODY, "messages": [{"role": "user", "content": secret}], "temperature": 0.7}
    search = {"strategy": "qalign", "weights": {"good": 1.0}, "params": {"chains": 2, "steps": 3}}
    async with http(app, traceparent=parent) as raw:
        answer = (await raw.post(CHAT, json={**asked, "alignment": search})).json()
    found = spans.get_finished_spans()
    [root] = [span for span in found if span.name == "chat toy"]
    assert format(root.context.trace_id, "032x") == parent.split("-")[1]
    assert root.parent is not None
    attributes = dict(root.attributes or {})
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.temperature"] == 0.7
    assert attributes["gen_ai.usage.output_tokens"] == answer["usage"]["completion_tokens"]
    assert (attributes["trimtab.strategy"], attributes["trimtab.outcome"]) == ("qalign", "ok")
    steps = [span for span in found if span.name == "engine generate"]
    assert len(steps) == 2 * (1 + 3)
    drawn = sum(int((span.attributes or {})["trimtab.sampled_tokens"]) for span in steps)  # type: ignore[arg-type]
    assert drawn == answer["alignment"]["sampled_tokens"] == attributes["trimtab.sampled_tokens"]
    rewards = [span for span in found if span.name == "reward long"]
    assert sum(len(span.events) for span in rewards) == 2 * (1 + 3)
    assert {event.name for span in rewards for event in span.events} == {"gen_ai.evaluation.result"}
    assert all(span.parent and span.parent.span_id == root.context.span_id for span in (*steps, *rewards))
    assert secret not in "".join(span.to_json() for span in found)


async def test_a_failed_reward_is_seen_in_its_trace(
    config: Config, toy: ToyEngine, spans: InMemorySpanExporter
) -> None:
    class Broken:
        labels = ("long",)
        needs: frozenset[str] = frozenset()

        async def __call__(self, question: Any, responses: Any) -> list[list[float]]:
            raise RewardError("no score today")

    failing = await toy_server.serve(config, toy, {"long": Broken()})
    async with http(failing) as raw:
        assert (await raw.post(CHAT, json={**BODY, "alignment": BEST})).status_code == 500
    by_name = {span.name: span for span in spans.get_finished_spans()}
    assert by_name["reward long"].status.description == "RewardError"
    assert by_name["chat toy"].status.description == "reward_error"


async def test_nothing_is_traced_unless_asked(app: FastAPI) -> None:
    async with http(app) as raw:
        assert (await raw.post(CHAT, json={**BODY, "alignment": BEST})).status_code == 200
    assert not tracing.tracer.start_span("any").is_recording()


# Lifecycle.


@pytest.fixture
async def site(folder: Path, toy: ToyEngine, tmp_path: Path) -> tuple[ServerState, FastAPI, Path]:
    """A server whose configuration is a file."""
    import yaml

    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings(folder) | {"admin_keys": [ADMIN]}))
    site = toy_server.site(load(path), toy, load_config=lambda: load(path, check=check_config))
    return site, await toy_server.app(site), path


async def test_a_reload_takes_all_or_nothing(site: tuple[ServerState, FastAPI, Path]) -> None:
    served, app, path = site
    text = path.read_text()
    async with http(app, authorization=f"Bearer {ADMIN}") as raw:
        ask = {**BODY, "model": "toy-bad"}
        assert (await raw.post(CHAT, json=ask)).status_code == 404
        path.write_text(text.replace("toy-good:", "toy-bad:"))
        assert (await raw.post("/admin/reload")).json() == {"changed": ["presets"]}
        assert (await raw.post(CHAT, json=ask)).status_code == 200
        assert "toy-bad" in {model["id"] for model in (await raw.get("/v1/models")).json()["data"]}
        bad = {
            "\nname: toy": "\nname: other",
            "spread: 2.0": "spread: 0",
            "kind: length": "kind: nothing",
            "weights:": "weigths:",
            "\nbase:": "\napi_keys_file: nowhere\nbase:",
            "\npresets:": "\npresetz: {}\npresets:",
        }
        for old, new in bad.items():
            before, now = served.config, path.read_text()
            assert old in now
            path.write_text(now.replace(old, new))
            refused = await raw.post("/admin/reload")
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_configuration"), new
            assert served.config is before
            assert (await raw.post(CHAT, json=ask)).status_code == 200
            path.write_text(now)


async def test_a_reload_changes_rules_limits_and_keys(site: tuple[ServerState, FastAPI, Path]) -> None:
    served, app, path = site
    async with http(app, authorization=f"Bearer {ADMIN}") as raw:
        asked = {"prompt": "hi", "responses": ["four"]}
        first = (await raw.post("/v1/alignment/score", json=asked)).json()["scores"][0]["rewards"]
        path.write_text(
            path.read_text().replace("target: 3", "target: 2")
            + "\nlimits: {max_tokens: 1234, max_regex_chars: 5}\napi_keys: [new-key]\n"
        )
        changed = (await raw.post("/admin/reload")).json()["changed"]
        assert sorted(changed) == ["api_keys", "limits", "rewards"]
        assert served.admission.capacity == sample("trimtab_admission_capacity_tokens") == 1234
        second = (await raw.post("/v1/alignment/score", json=asked)).json()["scores"][0]["rewards"]
        assert first != second
    async with http(app, authorization="Bearer new-key") as raw:
        answer = await raw.post(CHAT, json={**BODY, "structured_outputs": {"regex": "a" * 6}})
        assert (answer.status_code, "limits.max_regex_chars" in answer.text) == (400, True)
    async with http(app) as raw:
        assert (await raw.post(CHAT, json=BODY)).status_code == 401


async def test_clients_are_told_the_limits(site: tuple[ServerState, FastAPI, Path]) -> None:
    served, app, _ = site
    batch = served.client.vllm_config.scheduler_config.max_num_seqs * 256
    async with http(app) as raw:
        told = (await raw.get("/v1/alignment")).json()["limits"]
    assert told == {
        "max_tokens": 32 * batch, "max_sampled_tokens": None, "max_wait_s": 10.0, "max_deadline_ms": None,
        "max_candidates": 256, "max_draws": 4096,
    }  # fmt: skip


async def test_only_an_admin_may_reload_over_http(app: FastAPI) -> None:
    async with http(app) as raw:
        assert (await raw.post("/admin/reload")).status_code == 404


async def test_a_server_that_closes_answers_what_it_has_begun(
    folder: Path, toy: ToyEngine, gate: asyncio.Event
) -> None:
    served = toy_server.site(Config.model_validate(settings(folder)), Gated(toy, gate))  # type: ignore[arg-type]
    app = await toy_server.app(served)
    async with http(app) as raw:
        begun = asyncio.create_task(raw.post(CHAT, json=BODY))
        await until(lambda: served.admission.requests == 1)
        served.admission.closing = True
        assert (await raw.get("/ready")).status_code == 503
        assert (await raw.get("/health")).status_code == 200
        refused = await raw.post(CHAT, json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert int(refused.headers["retry-after"]) > 0
        emptied = asyncio.create_task(served.admission.wait_until_empty())
        await asyncio.sleep(0.01)
        assert not emptied.done()
        gate.set()
        assert (await begun).status_code == 200
        await emptied


async def test_a_dead_engine_turns_health_red(folder: Path, toy: ToyEngine) -> None:
    served = toy_server.site(Config.model_validate(settings(folder)), toy)
    app = await toy_server.app(served)
    pooler = SimpleNamespace(alive=True)
    served.scoring.poolers["a"] = pooler  # type: ignore[index]
    async with http(app) as raw:
        for alive, status in ((True, 200), (False, 503)):
            pooler.alive = alive
            assert {(await raw.get(path)).status_code for path in ("/health", "/ready")} == {status}
            assert sample("trimtab_ready") == alive


async def test_an_engine_that_hangs_turns_health_red_until_it_goes_on(folder: Path, toy: ToyEngine) -> None:
    served = toy_server.site(Config.model_validate(settings(folder) | {"timeouts": {"engine_s": 0.05}}), toy)
    app = await toy_server.app(served)
    [heartbeat] = served.heartbeats
    moving = asyncio.Event()
    heartbeat.call = moving.wait
    running = asyncio.create_task(heartbeat.run())
    async with http(app) as raw:
        for status, ready in ((503, 0.0), (200, 1.0)):
            await until(lambda stalled=status == 503: heartbeat.stalled == stalled)
            assert {(await raw.get(path)).status_code for path in ("/health", "/ready")} == {status}
            assert sample("trimtab_ready") == ready
            moving.set()
    running.cancel()


def test_outcomes_are_those_of_the_contract() -> None:
    outcomes = {labels[1] for labels in REQUESTS._metrics}
    assert outcomes <= {
        "ok", "degraded", "deadline", "budget", "client_abort", "invalid", "rejected", "reward_error", "engine_error",
    }  # fmt: skip
