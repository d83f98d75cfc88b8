"""/openapi.json: valid, and what the server takes and answers is what it says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.server.search.conftest import HI
from trimtab.decoders import STRATEGIES
from trimtab.server.request.alignment import AlignmentRequest
from trimtab.server.request.messages import CHAT, COMPLETIONS, MESSAGES, RESPONSES

PAIR = {"messages": HI, "chosen": "a", "rejected": "bb"}
CANDIDATES = [{"messages": HI, "responses": ["a", "b", "ab"]}]
HISTORY = [*HI, {"role": "assistant", "content": "a"}, *HI]
SENT: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": HI, "alignment": {"weights": {"truth": 0.5}}}),
    "chat, plain": (CHAT, {"messages": HISTORY, "n": 2}),
    "chat, a search": (
        CHAT,
        {
            "messages": HI,
            "alignment": {
                "strategy": "best_of_n",
                "weights": {"a": 1},
                "params": {"n": 3},
                "return": ["rewards", "candidates"],
            },
        },
    ),
    "chat, chains": (
        CHAT,
        {
            "messages": HI,
            "alignment": {
                "strategy": "qalign",
                "reward": {"of": ["letters.a"], "combine": "sum"},
                "params": {"steps": 4},
                "return": ["trace"],
            },
        },
    ),
    "chat, a direction": (CHAT, {"messages": HI, "alignment": {"strategy": "directional", "weights": {"angle": 30}}}),
    "chat, a budget": (
        CHAT,
        {"messages": HI, "alignment": {"guides": {"arm": 1}, "budget": {"max_sampled_tokens": 1}}},
    ),
    "completions": (COMPLETIONS, {"prompt": "assistant: ", "alignment": {"strategy": "genarm", "guides": {"arm": 1}}}),
    "responses": (RESPONSES, {"input": "hi", "alignment": {"guides": {"arm": -1}}}),
    "messages": (MESSAGES, {"model": "toy", "max_tokens": 4, "messages": HI, "alignment": {"guides": {"arm": 1}}}),
    "score": ("/v1/alignment/score", {"messages": HI, "responses": ["a", "b"], "weights": {"a": 1.0}}),
    "score by a reward": ("/v1/alignment/score", {"prompt": "assistant: ", "responses": ["a"], "reward": "short"}),
    "infer": ("/v1/alignment/infer", {"comparisons": [PAIR], "candidates": CANDIDATES}),
    "infer from nothing": ("/v1/alignment/infer", {"objectives": ["a"], "prior": {"mean": {"a": 1}, "std": 1}}),
}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "an unknown key": (CHAT, {"messages": HI, "alignment": {"weight": {"a": 1.0}}}),
    "an unknown strategy": (CHAT, {"messages": HI, "alignment": {"strategy": "best"}}),
    "an unknown objective": (CHAT, {"messages": HI, "alignment": {"weights": {"b": 1.0}}}),
    "an unknown guide": (CHAT, {"messages": HI, "alignment": {"guides": {"leg": 1.0}}}),
    "an unknown parameter": (CHAT, {"messages": HI, "alignment": {"strategy": "best_of_n", "params": {"m": 1}}}),
    "a parameter out of range": (CHAT, {"messages": HI, "alignment": {"strategy": "best_of_n", "params": {"n": 0}}}),
    "what none returns": (CHAT, {"messages": HI, "alignment": {"weights": {"truth": 1.0}, "return": ["all"]}}),
    "a budget of nothing": (CHAT, {"messages": HI, "alignment": {"budget": {"deadline_ms": 0}}}),
    "no responses": ("/v1/alignment/score", {"messages": HI, "responses": []}),
    "neither prompt nor messages": ("/v1/alignment/score", {"responses": ["a"]}),
    "a pair without its other half": ("/v1/alignment/infer", {"comparisons": [{"messages": HI, "chosen": "a"}]}),
}


@pytest.fixture(scope="module")
def described(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def errors(described: Mapping[str, Any], schema: Mapping[str, Any], instance: object) -> list[str]:
    whole = {**schema, "components": described["components"]}
    return [error.message[:300] for error in Draft202012Validator(whole).iter_errors(instance)]


def body_schema(described: Mapping[str, Any], path: str) -> Any:
    return described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]


def answer_schema(described: Mapping[str, Any], method: str, path: str, code: str = "200") -> Any:
    return described["paths"][path][method]["responses"][code]["content"]["application/json"]["schema"]


@pytest.mark.slow
def test_it_is_valid(described: dict[str, Any]) -> None:
    assert described["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(described).validate()


async def test_it_is_served(raw: httpx.AsyncClient, described: dict[str, Any]) -> None:
    assert (await raw.get("/openapi.json")).json() == described


def test_it_knows_every_key_and_strategy(described: dict[str, Any]) -> None:
    schema = described["components"]["schemas"]["AlignmentRequest"]
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {f.alias or name for name, f in AlignmentRequest.model_fields.items()}
    assert schema["properties"]["strategy"]["enum"] == list(STRATEGIES)
    for name, entry in STRATEGIES.items():
        params = described["components"]["schemas"][f"Params.{name}"]
        resolved = described["components"]["schemas"][params["$ref"].rpartition("/")[2]]
        keys = {f.alias or key for key, f in entry.parameters.model_fields.items()}
        assert set(resolved.get("properties", {})) == keys
        assert resolved["additionalProperties"] is False


@pytest.mark.parametrize("name", SENT)
async def test_what_is_sent_and_answered_is_as_it_says(
    raw: httpx.AsyncClient, described: dict[str, Any], name: str
) -> None:
    path, body = SENT[name]
    assert not errors(described, body_schema(described, path), body)
    answer = await raw.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert not errors(described, answer_schema(described, "post", path), answer.json())
    if "alignment" in body:
        assert answer.json()["alignment"]["strategy"]


@pytest.mark.parametrize("name", REFUSED)
async def test_what_it_forbids_is_refused_in_the_shape_that_it_says(
    raw: httpx.AsyncClient, described: dict[str, Any], name: str
) -> None:
    path, body = REFUSED[name]
    assert errors(described, body_schema(described, path), body)
    answer = await raw.post(path, json=body)
    assert answer.status_code == 400
    assert not errors(described, answer_schema(described, "post", path, "4XX"), answer.json())


@pytest.mark.parametrize("path", ["/v1/alignment", "/v1/models", "/health", "/ready"])
async def test_what_can_be_asked_without_a_body(raw: httpx.AsyncClient, described: dict[str, Any], path: str) -> None:
    answer = await raw.get(path)
    assert answer.status_code == 200
    assert not errors(described, answer_schema(described, "get", path), answer.json())


async def test_progress_is_as_it_says(raw: httpx.AsyncClient, described: dict[str, Any]) -> None:
    alignment = {"strategy": "best_of_n", "weights": {"a": 1}, "params": {"n": 3}, "return": ["progress", "best"]}
    body = {"messages": HI, "stream": True, "alignment": alignment}
    assert not errors(described, body_schema(described, CHAT), body)
    lines = [line[6:] for line in (await raw.post(CHAT, json=body)).text.splitlines() if line.startswith("data: {")]
    shown = [event["alignment"]["progress"] for event in map(json.loads, lines) if "progress" in str(event)]
    assert shown
    for progress in shown:
        assert not errors(described, {"$ref": "#/components/schemas/AlignmentProgress"}, progress)


async def test_a_model_and_one_that_is_not_there(raw: httpx.AsyncClient, described: dict[str, Any]) -> None:
    path = "/v1/models/{name}"
    assert not errors(described, answer_schema(described, "get", path), (await raw.get("/v1/models/toy")).json())
    missing = await raw.get("/v1/models/none")
    assert missing.status_code == 404
    assert not errors(described, answer_schema(described, "get", path, "4XX"), missing.json())
    refused = await raw.post("/admin/reload")
    assert not errors(described, answer_schema(described, "post", "/admin/reload", "4XX"), refused.json())
