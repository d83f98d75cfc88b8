"""Every refusal, in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse

SHOWN = 60
"""Characters of a bad value, and names of a list, that a message repeats at the most."""


class ApiError(Exception):
    """A request that cannot be carried out as asked."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str = "invalid_value", status: int = 400
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status

    def response(self) -> JSONResponse:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        headers = {"www-authenticate": "Bearer"} if self.status == 401 else None
        body = {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
        return JSONResponse(body, status_code=self.status, headers=headers)


def shown(value: object) -> str:
    """A value as a message repeats it: short, and one line."""
    text = repr(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def listed(names: Iterable[str]) -> str:
    """Names in order, cut short where there are too many."""
    ordered = sorted(names)
    head = ", ".join(ordered[:SHOWN])
    return f"{head}, … ({len(ordered)} in all)" if len(ordered) > SHOWN else head or "none"


def unknown(kind: str, name: str, valid: Collection[str]) -> str:
    """ "unknown objective 'hepfulness'; valid: brevity, helpfulness. Did you mean 'helpfulness'?\""""
    near = get_close_matches(name[:SHOWN], valid, n=1)
    hint = f". Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {shown(name)}; valid: {listed(valid)}{hint}"


def explained(error: ValidationError, *, at: str, fields: Collection[str]) -> ApiError:
    """The first of pydantic's complaints about the object `at`, whose valid keys are `fields`."""
    first: Any = error.errors(include_url=False)[0]
    where = [str(part) for part in first["loc"] if not str(part).startswith(("function-", "dict[", "nullable"))]
    param = ".".join([at, *where])
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return ApiError(unknown("key", where[-1], fields), param=param, code="unknown_parameter")
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return ApiError(f"{param} is required", param=param, code="missing_required_parameter")
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = f"; got {shown(first['input'])}" if first["type"] != "value_error" else ""
    return ApiError(f"{param}: {message}{given}", param=param)
