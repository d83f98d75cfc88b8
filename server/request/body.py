"""A request's body as JSON, or what is wrong with it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from starlette.types import Receive

from trimtab.server.errors import ApiError, shown
from trimtab.server.request.alignment import AT

Json = dict[str, Any]


class ClientGone(Exception):
    """The client left before its request was whole."""


async def whole(receive: Receive, max_mib: float) -> bytes:
    """A request's body; raises ApiError for one over the limit, ClientGone where it never ends."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > max_mib * 2**20:
            raise ApiError(f"the request body is larger than {max_mib:g} MiB", code="request_too_large", status=413)
        if not message.get("more_body"):
            return bytes(body)


class Twice(dict[str, Any]):
    """A JSON object that was given some of its keys twice."""

    keys_twice: list[str]


def marked(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    twice = Twice(found)
    twice.keys_twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    return twice


def parse(body: bytes) -> Json:
    """The request's JSON object; raises ApiError where it is none, and RecursionError where it is too deep."""
    try:
        document = json.loads(body, parse_constant=_no_constant)
        if b"\\ud" in body or b"\\uD" in body:
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ApiError(
            "the request body holds half of a surrogate pair, which is no text", code="invalid_json"
        ) from None
    except ValueError as error:
        raise ApiError(f"the request body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(document, dict):
        raise ApiError("the request body must be a JSON object", code="invalid_json")
    if AT in document:
        whole = json.loads(body, object_pairs_hook=marked)
        asked = whole[AT]
        inside = [asked, *asked.values()] if isinstance(asked, dict) else []
        twice = [key for inner in inside if isinstance(inner, Twice) for key in inner.keys_twice]
        if twice or (isinstance(whole, Twice) and AT in whole.keys_twice):
            raise ApiError(f"{shown([*twice, AT][0])} is given twice", param=AT, code="duplicate_key")
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
