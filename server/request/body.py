"""A request's body as JSON, or what is wrong with it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from starlette.types import Receive

from trimtab.server.errors import ApiError
from trimtab.server.request.alignment import AT
from trimtab.server.wording import quote

Json = dict[str, Any]


class ClientGone(Exception):
    """The client left before its request was whole."""


async def read_body(receive: Receive, max_mib: float) -> bytes:
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


class DuplicateKeys(dict[str, Any]):
    """A JSON object in which some keys stand twice."""

    duplicates: list[str]


def mark_duplicates(pairs: list[tuple[str, Any]]) -> Json:
    """The object of its keys and values, a `DuplicateKeys` where some keys stand twice."""
    unique = dict(pairs)
    if len(unique) == len(pairs):
        return unique
    marked = DuplicateKeys(unique)
    marked.duplicates = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    return marked


def as_refusal(error: ApiError | RecursionError) -> ApiError:
    """What a client gets of a body that was refused, or that nests deeper than Python can follow."""
    if isinstance(error, ApiError):
        return error
    return ApiError("the request body is nested too deeply", code="invalid_json")


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
        marked = json.loads(body, object_pairs_hook=mark_duplicates)
        alignment = marked[AT]
        objects = [alignment, *alignment.values()] if isinstance(alignment, dict) else []
        twice = [key for inner in objects if isinstance(inner, DuplicateKeys) for key in inner.duplicates]
        if twice or (isinstance(marked, DuplicateKeys) and AT in marked.duplicates):
            raise ApiError(f"{quote([*twice, AT][0])} is given twice", param=AT, code="duplicate_key")
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
