"""A configuration file, read and checked; what is wrong is refused with its line and its key."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from trimtab.server.config.sections import SECTIONS, SINGLE_SECTIONS, ConeConfig, Config, ConfigError, Section
from trimtab.server.wording import suggest


def load(path: Path, overrides: Sequence[str] = (), check: Callable[[Config], None] = lambda _: None) -> Config:
    """The configuration in a file, with "key=value" or "a.b=value" put over it; raises ConfigError, also `check`'s."""
    try:
        text = path.read_text()
        data = yaml.safe_load(text)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys and values at the top; valid keys: {', '.join(Config.model_fields)}")
    for override in overrides:
        _override(data, override)
    try:
        config = Config.model_validate(data, context=path.parent)
        check(config)
    except ValidationError as error:
        raise ConfigError(f"{path}{_describe_error(error, text)}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}:{_line_of(text, error.key.split('.'))}: {error}") from None
    return config


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected KEY=VALUE, such as port=8001 or engine.max_model_len=512")
    *above, last = key.split(".")
    for part in above:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {override}: {part} holds a value, not keys")
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {error}") from None


def _describe_error(error: ValidationError, text: str) -> str:
    """ ":LINE: key: what is wrong" for one complaint: a misspelt key rather than the one that it leaves missing."""
    first: Any = min(error.errors(include_url=False), key=lambda complaint: complaint["type"] != "extra_forbidden")
    path = [str(part) for part in first["loc"]]
    message = first["msg"].removeprefix("Value error, ")
    if not path and (named := re.match(r"([\w.:/-]+): (.*)", message, re.DOTALL)):
        path, message = named[1].split("."), named[2]
    if first["type"] == "extra_forbidden":
        message = suggest("key", path[-1], _valid_keys(path[:-1]))
    return f":{_line_of(text, path)}: {'.'.join(path)}: {message}"


def _valid_keys(path: Sequence[str]) -> list[str]:
    section: type[Section] = {**SINGLE_SECTIONS, **SECTIONS}.get(path[0] if path else "", Config)
    return list((ConeConfig if path[2:] == ["cone"] else section).model_fields)


def _line_of(text: str, path: Sequence[str]) -> int:
    """The line, from 1, of the deepest key of `path` that stands in the file."""
    node, line = yaml.compose(text), 1
    for part in path:
        if not isinstance(node, yaml.MappingNode):
            break
        for key, value in node.value:
            if key.value == part:
                node, line = value, key.start_mark.line + 1
                break
        else:
            break
    return line
