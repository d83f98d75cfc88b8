"""A request's body as JSON, or what is wrong with it."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from starlette.types import Receive

from trimtab.server.errors import ApiError
from trimtab.server.request.alignment import AT
from trimtab.server.wording import quote

Json = dict[str, Any]

MAX_DEPTH = 100
"""Objects and lists one inside the other."""
MAX_CONTAINERS = 2**16
"""Objects and lists in a body: what reads them, vLLM's request models too, takes some 50 us for each."""

STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
LARGEST = sys.float_info.max
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


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


def parse(body: bytes, *, ours: bool = False) -> Json:
    """The request's JSON object; raises ApiError where it is none.

    No key may stand twice in `alignment`, or in any of it where the whole body is `ours`.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ApiError(f"the request body is not valid JSON: {error}", code="invalid_json") from None
    _check_size(body)
    try:
        document = _load(text, marked=ours or f'"{AT}"' in text or "\\u" in text)
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        raise ApiError(f"the request body is not valid JSON: {error}", code="invalid_json") from None
    except ValueError:  # an integer of thousands of digits
        raise _too_large() from None
    if not isinstance(document, dict):
        raise ApiError("the request body must be a JSON object", code="invalid_json")
    _check_values(document)
    if SURROGATE.search(body):
        _check_text(document)
    if ours:
        _check_unique(document, at="")
    elif AT in document:
        if isinstance(document, DuplicateKeys) and AT in document.duplicates:
            raise ApiError(f"{AT!r} is given twice", param=AT, code="duplicate_key")
        _check_unique(document[AT], at=AT)
    return document


def _load(text: str, *, marked: bool) -> Any:
    """`marked`: whether keys that stand twice are marked."""
    hook = mark_duplicates if marked else None
    return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=hook)


def _refuse_constant(name: str) -> None:
    raise json.JSONDecodeError(f"{name} is not a JSON number", name, 0)


def _check_size(body: bytes) -> None:
    """Raises ApiError for a body of too many objects and lists; brackets in texts are none."""
    if body.count(b"[") + body.count(b"{") <= MAX_CONTAINERS:
        return
    bare = STRINGS.sub(b"", body)
    if (count := bare.count(b"[") + bare.count(b"{")) > MAX_CONTAINERS:
        if max(accumulate((byte in b"[{") - (byte in b"]}") for byte in bare)) > MAX_DEPTH:
            raise _too_deep()
        message = f"the request body holds {count} objects and lists; at most {MAX_CONTAINERS} may be in one"
        raise ApiError(message, code="request_too_large")


def _check_values(document: Json) -> None:
    """Raises ApiError for what is nested too deeply, and for numbers that no float holds."""
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for outer in level:
            for value in outer.values() if isinstance(outer, dict) else outer:
                if isinstance(value, dict | list):
                    inner.append(value)
                elif isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:
                    raise _too_large()
        if not inner:
            return
        level = inner
    raise _too_deep()


def _too_large() -> ApiError:
    message = f"the request body is not valid JSON: it holds a number beyond ±{LARGEST:.1e}, the largest there is"
    return ApiError(message, code="invalid_json")


def _too_deep() -> ApiError:
    return ApiError(f"the request body is nested too deeply: at most {MAX_DEPTH} levels", code="invalid_json")


def _walk(value: Any, at: str) -> Iterator[tuple[str, Any]]:
    """(path, value) of it and of all in it."""
    yield at, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _walk(inner, f"{at}.{key}" if at else key)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _walk(inner, f"{at}.{i}")


def _check_text(document: Json) -> None:
    """Raises ApiError for half of a surrogate pair in a text or a key."""
    for path, value in _walk(document, ""):
        if _is_broken(path) or (isinstance(value, str) and _is_broken(value)):
            shown = path.encode(errors="backslashreplace").decode()[:200]
            message = f"the request body holds half of a surrogate pair, which is no text, in {shown}"
            raise ApiError(message, param=shown, code="invalid_json")


def _is_broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _check_unique(value: Any, *, at: str) -> None:
    for path, inner in _walk(value, at):
        if isinstance(inner, DuplicateKeys):
            key = inner.duplicates[0]
            where = f"{path}.{key}" if path else key
            raise ApiError(f"{quote(key)} is given twice", param=where[:200], code="duplicate_key")
