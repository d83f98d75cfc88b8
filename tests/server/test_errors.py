"""Messages, and the one shape of every error."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from trimtab.server.errors import ApiError, parse_error, to_api_error
from trimtab.server.http.errors_and_ids import RequestIdAndErrorMiddleware
from trimtab.server.wording import list_names, quote, suggest


def test_messages_are_short_whatever_they_are_about() -> None:
    assert quote("a\nb") == "'a\\nb'"
    assert quote("x" * 2**20) == "'" + "x" * 59 + "…"
    assert quote({"a": 1}) == "dict"
    assert list_names([]) == "none"
    assert list_names(["b", "a"]) == "a, b"
    assert list_names(f"{i:03}" for i in range(100)).endswith("058, 059, … (100 in all)")
    assert (
        suggest("guide", "kond", {"kind", "brief"}) == "unknown guide 'kond'; valid: brief, kind. Did you mean 'kind'?"
    )
    assert suggest("guide", "zzzz", {"kind", "brief"}) == "unknown guide 'zzzz'; valid: brief, kind"


def test_ours() -> None:
    error = ApiError("no", param="alignment.weights", code="out_of_range")
    assert json.loads(error.body())["error"] == {
        "message": "no", "type": "invalid_request_error", "param": "alignment.weights", "code": "out_of_range",
    }  # fmt: skip
    again = parse_error(error.body(), 400)
    assert again is not None
    assert again.body() == error.body()


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"message": "m", "type": "BadRequestError", "param": "body.messages", "code": 400}, 400, "messages", None),
        ({"message": "m", "type": "NotFoundError", "param": None, "code": 404}, 404, None, "not_found"),
        ({"message": "m", "type": "BadRequestError", "param": "input_tokens", "code": 400}, 400, "input_tokens",
         "context_length_exceeded"),
        ({"message": "m", "type": "InternalServerError", "param": None, "code": 500}, 500, None, None),
        ({"type": "NotFoundError", "message": "m"}, 500, None, None),
    ],
)  # fmt: skip
def test_vllms_become_ours(body: dict[str, Any], status: int, param: str | None, code: str | None) -> None:
    error = parse_error(json.dumps({"error": body}).encode())
    assert error is not None
    assert (error.message, error.status, error.param, error.code) == ("m", status, param, code)


def test_the_status_of_the_answer_goes_before_the_one_in_its_body() -> None:
    error = parse_error(b'{"error": {"message": "m", "code": 400}}', 422)
    assert error is not None
    assert error.status == 422


@pytest.mark.parametrize("body", [b"", b"oops", b"[]", b'{"ready": false}', b'{"error": "x"}', b"\xff"])
async def test_what_is_no_error_passes(body: bytes) -> None:
    assert parse_error(body, 503) is None
    given = await answer(body, status=503)
    assert (given.status_code, given.content) == (503, body)


def test_only_a_value_error_is_told() -> None:
    assert (to_api_error(ValueError("too long")).status, to_api_error(ValueError("too long")).message) == (
        400,
        "too long",
    )
    assert (to_api_error(RuntimeError("secret")).status, to_api_error(RuntimeError("secret")).message) == (
        500, "internal server error",
    )  # fmt: skip


# The envelope around an app that answers as told.


async def answer(*parts: bytes, status: int = 200, content: str = "application/json", fault: Exception | None = None,
                 begin: bool = True, headers: dict[str, str] | None = None) -> httpx.Response:  # fmt: skip
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if begin:
            head = [(b"content-type", content.encode()), (b"access-control-allow-origin", b"*")]
            await send({"type": "http.response.start", "status": status, "headers": head})
        for i, part in enumerate(parts):
            await send({"type": "http.response.body", "body": part, "more_body": i + 1 < len(parts) or bool(fault)})
        if fault is not None:
            raise fault

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(RequestIdAndErrorMiddleware(app)), base_url="http://toy"
    ) as client:
        return await client.get("/", headers=headers)


STREAM = "text/event-stream; charset=utf-8"
VLLMS = b'data: {"error": {"message": "bad bias", "type": "BadRequestError", "param": "logit_bias", "code": 400}}\n\n'
DONE = b"data: [DONE]\n\n"


async def test_every_answer_has_a_request_id_of_its_own_or_the_callers() -> None:
    first, second = await answer(b"{}"), await answer(b"{}")
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert (await answer(b"{}", headers={"x-request-id": "mine"})).headers["x-request-id"] == "mine"
    assert len((await answer(b"{}", headers={"x-request-id": "m" * 9999})).headers["x-request-id"]) == 128


async def test_an_answer_passes_as_it_came() -> None:
    given = await answer(b'{"a": ', b"1}")
    assert (given.status_code, given.text) == (200, '{"a": 1}')


async def test_an_error_in_pieces_is_reshaped_whole() -> None:
    given = await answer(b'{"error": {"message": "m", ', b'"type": "BadRequestError", "code": 404}}', status=404)
    assert given.status_code == 404
    assert given.json()["error"] == {
        "message": "m", "type": "invalid_request_error", "param": None, "code": "not_found",
    }  # fmt: skip
    assert given.headers["content-length"] == str(len(given.content))


async def test_a_stream_refused_at_once_is_refused_by_its_status() -> None:
    given = await answer(VLLMS, DONE, content=STREAM)
    assert given.status_code == 400
    assert given.json()["error"]["message"] == "bad bias"
    assert given.headers["content-type"] == "application/json"
    assert given.headers["access-control-allow-origin"] == "*"


async def test_a_stream_that_breaks_later_ends_with_its_error() -> None:
    given = await answer(b"data: {}\n\n", VLLMS, DONE, content=STREAM)
    assert given.status_code == 200
    first, error, done, _ = given.text.split("\n\n")
    assert (first, done) == ("data: {}", "data: [DONE]")
    assert json.loads(error.removeprefix("data: "))["error"]["type"] == "invalid_request_error"


async def test_what_nobody_caught_before_the_first_byte_is_a_500() -> None:
    given = await answer(fault=RuntimeError("secret"), begin=False)
    assert given.status_code == 500
    assert given.json()["error"]["message"] == "internal server error"
    assert given.headers["x-request-id"]


async def test_what_nobody_caught_in_a_stream_is_its_last_event() -> None:
    held = await answer(fault=ValueError("too long"), content=STREAM)
    assert (held.status_code, held.json()["error"]["message"]) == (400, "too long")
    given = await answer(b"data: {}\n\n", fault=RuntimeError("secret"), content=STREAM)
    assert given.status_code == 200
    assert json.loads(given.text.split("data: ")[-1])["error"] == {
        "message": "internal server error", "type": "server_error", "param": None, "code": "internal_error",
    }  # fmt: skip


async def test_a_body_that_breaks_off_is_not_taken_for_whole() -> None:
    with pytest.raises(ConnectionAbortedError):
        await answer(b'{"a": ', fault=RuntimeError("secret"))
