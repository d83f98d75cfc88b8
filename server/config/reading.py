"""A configuration file, read and checked; what is wrong is refused with its line and its key."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trimtab.server.config.documents import Document, parse, read_file
from trimtab.server.config.sections import SECTIONS, SINGLE_SECTIONS, ConeConfig, Config, ConfigError, Section
from trimtab.server.wording import suggest


def load(path: Path, overrides: Sequence[str] = (), check: Callable[[Config], None] = lambda _: None) -> Config:
    """The configuration in a file, with "key=value" or "a.b=value" put over it; raises ConfigError, also `check`'s."""
    document = read_file(path)
    data = document.data
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys and values at the top; valid keys: {', '.join(Config.model_fields)}")
    for override in overrides:
        _override(data, override)
    try:
        config = Config.model_validate(data, context=path.parent)
        check(config)
    except ValidationError as error:
        raise ConfigError(f"{path}{_describe_error(error, document)}") from None
    except ConfigError as error:
        raise _locate(error, path, document) from None
    return config


def locate(error: ConfigError, path: Path) -> ConfigError:
    """What was found wrong after the file was read, with the file and the line of its key."""
    return _locate(error, path, read_file(path)) if error.key else error


def _locate(error: ConfigError, path: Path, document: Document) -> ConfigError:
    return ConfigError(f"{path}:{document.line_of(error.key.split('.'))}: {' '.join(str(error).split())}")


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected KEY=VALUE, such as port=8001 or engine.max_model_len=512")
    *above, last = key.split(".")
    for part in above:
        below = data.get(part, {})
        if not isinstance(below, dict):
            raise ConfigError(f"--set {override}: {part} holds a value, not keys")
        data[part] = data = dict(below)  # a copy: what an anchor has elsewhere stays as it is
    data[last] = parse(value, at=lambda _: f"--set {override}").data


def _describe_error(error: ValidationError, document: Document) -> str:
    """ ":LINE: key: what is wrong" for one complaint: a misspelt key rather than the one that it leaves missing."""
    first: Any = min(error.errors(include_url=False), key=lambda complaint: complaint["type"] != "extra_forbidden")
    path = [str(part) for part in first["loc"]]
    message = " ".join(first["msg"].removeprefix("Value error, ").split())
    if first["type"] == "value_error" and (named := re.match(r"([\w.:/-]+): (.*)", message)):
        deeper = [*path, *named[1].split(".")]
        if not path or document.holds(deeper):
            path, message = deeper, named[2]
    if first["type"] == "extra_forbidden":
        message = suggest("key", path[-1], _valid_keys(path[:-1]))
    return f":{document.line_of(path)}: {'.'.join(path)}: {message}"


def _valid_keys(path: Sequence[str]) -> list[str]:
    section: type[Section] = {**SINGLE_SECTIONS, **SECTIONS}.get(path[0] if path else "", Config)
    return list((ConeConfig if path[2:] == ["cone"] else section).model_fields)
