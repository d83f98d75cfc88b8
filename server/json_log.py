"""The server's own log: one record a line, as text or as a JSON object, and nothing in it that is secret.

Libraries change the root logger while a server starts (vLLM's app sets its level to ERROR), so ours has a level and a
handler of its own.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal

from pydantic import BaseModel

from trimtab.server.errors import ApiError, to_api_error

LOGGERS = ("trimtab", "uvicorn", "asyncio")
"""Loggers whose lines are the server's; uvicorn's and asyncio's from warnings on."""
TEXT = "%(levelname)s %(name)s: %(message)s"
HIDDEN = "***"
SECRET_WORDS = {
    *("apikey", "auth", "authorization", "bearer", "cookie", "credential", "credentials", "headers", "key", "keys"),
    *("passphrase", "passwd", "password", "pwd", "secret", "secrets", "signature", "token", "tokens"),
}
"""Words of a configuration's keys, between underscores, whose texts are not shown."""
PLACES = frozenset({"env", "file", "path"})
"""Last words of keys that say where a secret is, and hold none."""
HEADER_NAMES = frozenset({"allowed_headers", "trusted_headers"})
"""Keys whose texts are names of headers."""
CLIENT_ERRORS = (ValueError, TypeError, LookupError, UnicodeError, ArithmeticError, AttributeError)
"""What Python raises for a wrong value, and repeats the value in."""


class JsonFormatter(logging.Formatter):
    """Log lines, one JSON object each. `record.fields` join the object, in the message's place."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name,
            **(getattr(record, "fields", None) or {"message": record.getMessage()}),
        }
        if record.exc_info:
            line["exception"] = record.exc_text or self.formatException(record.exc_info)
        return json.dumps(replace_nonfinite(line), ensure_ascii=False, allow_nan=False, default=str)


def configure_logging(form: Literal["text", "json"]) -> None:
    """Ours go to stderr from INFO on, whatever has become of the root logger. May be called again, as after an import
    that has changed loggers."""
    formatter = JsonFormatter() if form == "json" else logging.Formatter(TEXT)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.StreamHandler(sys.stderr))
    for other in root.handlers:
        other.setFormatter(formatter)
    root.setLevel(max(root.level, logging.WARNING))  # an HTTP client's INFO has whole URLs
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO if name == "trimtab" else logging.WARNING)
    for name, known in list(root.manager.loggerDict.items()):
        if isinstance(known, logging.Logger) and name.partition(".")[0] in LOGGERS:
            known.disabled = False  # as a dictConfig leaves those that it does not name
    if not _factories:  # once: what wraps ours later still calls it
        _factories.append(logging.getLogRecordFactory())
        logging.setLogRecordFactory(_make_record)


_factories: list[Any] = []


def _make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """A record whose exception is written without what it repeats of a request, whoever logs it."""
    record: logging.LogRecord = _factories[-1](*args, **kwargs)
    if isinstance(record.args, tuple):
        record.args = tuple(describe_error(arg) if isinstance(arg, Exception) else arg for arg in record.args)
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return record
    if isinstance(error, Exception) and to_api_error(error).status < 500:  # the client is answered with what is wrong
        record.msg, record.exc_info = f"{record.msg} {describe_error(error)}", None
    else:
        record.exc_text = format_error(error)
    return record


def describe_error(error: BaseException) -> str:
    """Its class, and its message where that repeats nothing of a request."""
    name = type(error).__name__
    own_words = not isinstance(error, CLIENT_ERRORS) and (not isinstance(error, ApiError) or error.status >= 500)
    message = hide_credentials(str(error)) if own_words else ""
    return f"{name}: {message}" if message else name


def format_error(error: BaseException) -> str:
    """A traceback, with the causes, whose messages repeat nothing of a request."""
    parts: list[str] = []
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        frames: TracebackType | None = cause.__traceback__
        parts.append("".join(traceback.format_tb(frames)) + describe_error(cause))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\nThe cause of the next:\n".join(reversed(parts))


def replace_nonfinite(value: Any) -> Any:
    """The value with NaN and infinities, which JSON lacks, as words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): replace_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nonfinite(item) for item in value]
    return value


# Secrets of a configuration.


def without_secrets(config: BaseModel) -> dict[str, Any]:
    """A configuration as the log may show it.

    Not shown: fields declared with `repr=False`, texts under keys with one of SECRET_WORDS, and credentials in URLs.
    """
    declared = {name for name, field in type(config).model_fields.items() if not field.repr}
    shown: dict[str, Any] = _hide(config.model_dump(mode="json", exclude=declared))
    return shown | {name: HIDDEN for name in sorted(declared) if getattr(config, name)}


def _hide(value: Any, *, secret: bool = False) -> Any:
    if isinstance(value, Mapping):
        return {key: _hide(item, secret=secret or names_secret(str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hide(item, secret=secret) for item in value]
    if isinstance(value, str):
        return HIDDEN if secret and value else hide_credentials(value)
    return value


def names_secret(key: str) -> bool:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower().replace("-", "_").split("_")
    return key not in HEADER_NAMES and words[-1] not in PLACES and not SECRET_WORDS.isdisjoint(words)


def hide_credentials(text: str) -> str:
    """The text with users, passwords and queries of its URLs hidden, and what stands behind the word Bearer."""
    text = re.sub(r"(?<=://)[^/?#\s@]*(?:@[^/?#\s@]*)*@", f"{HIDDEN}@", text)
    text = re.sub(r"(\w+://[^\s?#'\"]*\?)[^\s#'\"]+", rf"\1{HIDDEN}", text)
    return re.sub(r"(?i)\b(bearer|basic) +[\w.~+/=-]{8,}", rf"\1 {HIDDEN}", text)
