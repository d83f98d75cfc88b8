"""How messages speak of what is wrong: values as they repeat them, names that are valid, pydantic's complaints."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from trimtab.server.errors import ApiError, hide_internals, plain_words

MAX_QUOTED = 60
"""Characters of a bad value, and names of a list, that a message repeats at the most."""


def quote(value: object) -> str:
    """A value as a message repeats it: short, and one line."""
    text = repr(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + "…"


def list_names(names: Iterable[str]) -> str:
    """Names in order, cut short where there are too many."""
    ordered = sorted(names)
    head = ", ".join(ordered[:MAX_QUOTED])
    return f"{head}, … ({len(ordered)} in all)" if len(ordered) > MAX_QUOTED else head or "none"


def suggest(kind: str, name: str, valid: Collection[str]) -> str:
    """ "unknown objective 'hepfulness'; valid: brevity, helpfulness. Did you mean 'helpfulness'?\""""
    near = get_close_matches(name[:MAX_QUOTED], valid, n=1)
    hint = f". Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {quote(name)}; valid: {list_names(valid)}{hint}"


def explain_validation(error: ValidationError, *, at: str, fields: Collection[str]) -> ApiError:
    """The first of pydantic's complaints about the object `at` (empty: the body), whose valid keys are `fields`."""
    first: Any = error.errors(include_url=False)[0]
    where = [
        str(part) for part in first["loc"] if not str(part).startswith(("function-", "dict[", "nullable", "one-of-"))
    ]
    param = ".".join([at, *where] if at else where)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return ApiError(suggest("key", where[-1], fields), param=param, code="unknown_parameter")
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return ApiError(f"{param} is required", param=param, code="missing_required_parameter")
    got = f"; got {quote(first['input'])}" if first["type"] != "value_error" else ""
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(f"{param}: {message[0].lower()}{message[1:]}{got}", param=param)


MARKERS = frozenset(
    ["body", "bool", "bytes", "dict", "float", "int", "list", "none", "nullable", "str", "tuple", "union"]
)
"""What pydantic puts among the keys of a place, for the kind of value that it tried."""


def explain_request(errors: Sequence[Any]) -> ApiError:
    """The first of the complaints of vLLM's request models, with the code of vLLM's errors, which is none."""
    first = errors[0] if errors else "the request is not valid"
    if isinstance(first, str):  # vLLM's check of the content type
        media = "media type" in first.lower()
        return ApiError(first, code="unsupported_media_type" if media else None, status=415 if media else 400)
    inner = first.get("ctx", {}).get("error")
    parts = [str(part) for part in first["loc"]]
    where = ".".join(p for p in parts if p not in MARKERS and re.fullmatch(r"[a-z0-9_]+", p))
    param = getattr(inner, "parameter", None) or where or None
    message = str(inner.args[0]) if getattr(inner, "args", None) else plain_words(first["msg"])
    got = f"; got {quote(first['input'])}" if first["type"] not in ("value_error", "missing", "json_invalid") else ""
    return ApiError(hide_internals(f"{param}: {message}{got}" if where else message), param=param, code=None)
