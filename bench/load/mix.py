"""A mix: kinds of requests with their shares, read from YAML.

    defaults: {max_tokens: 32}              # in every entry's body, under its own keys
    requests:
      - name: guided
        share: 3                            # 1 by default; shares need not sum to 1
        stream: true
        body: {alignment: {weights: {warmth: [0.0, 1.5]}}}     # a range: drawn for every request
      - {name: wrong, share: 0.2, expect: 400, body: {alignment: {strategy: bset_of_n}}}

`examples: {guides: [NAME, NAME], weights: {OBJECTIVE: w}}` adds the example of every strategy that no entry is named
after, with these guides and, for a strategy that takes a preference, these weights. Further keys: `path`, and
the caller's API key, `key` or `key_env`.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trimtab.decoders import STRATEGIES, example_request

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
STREAMS = (CHAT, COMPLETIONS)
"""Paths whose streams can be read. On other paths the body is sent as written, without model and prompt."""
KEYS = ("name", "share", "body", "path", "stream", "key", "key_env", "expect")
RANGED = ("weights", "guides")
SHIPPED = {name: Path(__file__).parent / f"{name}.yaml" for name in ("all", "plain")}


class MixError(ValueError):
    """A file that cannot be sent as it is written; the message has the key, the value and what is valid."""


@dataclass(frozen=True, kw_only=True)
class MixEntry:
    """One kind of request of a mix."""

    name: str
    share: float = 1.0
    body: Mapping[str, Any] = field(default_factory=dict)
    path: str = CHAT
    stream: bool = False
    key: str | None = field(default=None, repr=False)
    expect: int = 200
    """Expected status: 400 or above for a request that is wrong on purpose."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request to send."""

    entry: MixEntry
    content: bytes
    """The body, as JSON."""
    hang_up: float | None = None
    """Seconds after sending at which the client hangs up, unless the answer is complete."""
    slow: bool = False
    """Whether the client reads slowly."""
    keep_document: bool = False
    """Whether its exchange keeps the whole answer, and not its figures alone."""


def read(path: Path, environment: Mapping[str, str] = os.environ) -> tuple[MixEntry, ...]:
    """The entries of a file, with the defaults in their bodies. Raises MixError."""
    document = read_yaml(path)
    try:
        return entries(document, environment)
    except MixError as error:
        raise MixError(f"{path}: {error}") from None


def read_yaml(path: Path) -> Any:
    """Raises MixError."""
    try:
        return yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise MixError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise MixError(f"{path}: not YAML: {error}") from None


def entries(document: Any, environment: Mapping[str, str] = os.environ) -> tuple[MixEntry, ...]:
    whole = _parse_mapping(document, "the file", ("defaults", "requests", "examples"))
    defaults = _parse_mapping(whole.get("defaults", {}), "defaults")
    listed = whole.get("requests")
    if not isinstance(listed, list) or not listed:
        raise MixError(f"requests: {_quote(listed)}: must be a list of at least one request")
    parsed = tuple(_entry(item, f"requests[{i}]", defaults, environment) for i, item in enumerate(listed))
    names = [entry.name for entry in parsed]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise MixError(f"requests[{i}].name: {name!r}: must differ from the other requests' names")
    return (*parsed, *_examples(whole["examples"], defaults, names)) if "examples" in whole else parsed


def _examples(item: Any, defaults: Mapping[str, Any], names: Collection[str]) -> Iterator[MixEntry]:
    """An entry for every strategy whose name is not among `names`."""
    keys = _parse_mapping(item, "examples", ("guides", "weights"))
    guides, weights = keys.get("guides"), _parse_mapping(keys.get("weights", {}), "examples.weights")
    if not isinstance(guides, list) or not guides or not all(isinstance(guide, str) for guide in guides):
        raise MixError(f"examples.guides: {_quote(guides)}: must be a list of at least one guide's name")
    for name, row in STRATEGIES.items():
        if name not in names:
            alignment = example_request(name, guides)
            if row.takes & {"reward", "direction"}:
                alignment["weights"] = weights
            yield MixEntry(name=name, body={**defaults, "alignment": alignment}, stream=row.streams)


def _entry(item: Any, at: str, defaults: Mapping[str, Any], environment: Mapping[str, str]) -> MixEntry:
    keys = _parse_mapping(item, at, KEYS)
    name, share, expect = keys.get("name"), keys.get("share", 1), keys.get("expect", 200)
    path, stream = keys.get("path", CHAT), keys.get("stream", False)
    if not isinstance(name, str) or not name:
        raise MixError(f"{at}.name: {_quote(name)}: must be a name")
    if not _number(share) or share <= 0:
        raise MixError(f"{at}.share: {_quote(share)}: must be a number above 0")
    if type(expect) is not int or not (expect == 200 or 400 <= expect <= 599):
        raise MixError(f"{at}.expect: {_quote(expect)}: must be a status, 200 or 400 to 599")
    if not isinstance(path, str) or not path.startswith("/"):
        raise MixError(f"{at}.path: {_quote(path)}: must be a path that begins with /")
    if not isinstance(stream, bool):
        raise MixError(f"{at}.stream: {_quote(stream)}: must be true or false")
    if stream and path not in STREAMS:
        raise MixError(f"{at}.stream: true: only with the path {' or '.join(STREAMS)}, not {path}")
    body = dict(_parse_mapping(keys.get("body", {}), f"{at}.body"))
    body = {**defaults, **body} if path in STREAMS else body
    _check_ranges(body, f"{at}.body.alignment")
    key = _key(keys, at, environment)
    return MixEntry(name=name, share=float(share), body=body, path=path, stream=stream, key=key, expect=expect)


def _key(keys: Mapping[str, Any], at: str, environment: Mapping[str, str]) -> str | None:
    if "key" in keys and "key_env" in keys:
        raise MixError(f"{at}: key and key_env: must be one of the two")
    if "key_env" in keys:
        name = keys["key_env"]
        if not isinstance(name, str) or not environment.get(name):
            raise MixError(f"{at}.key_env: {_quote(name)}: must be the name of a variable that is set")
        return environment[name]
    key = keys.get("key")
    if key is not None and not isinstance(key, str):
        raise MixError(f"{at}.key: must be text")  # the value is a secret
    return key


def _check_ranges(body: Mapping[str, Any], at: str) -> None:
    """A list in place of a weight must be a range; the server checks everything else."""
    for field_, name, value in _weights(body):
        if isinstance(value, list) and not (
            len(value) == 2 and all(map(_number, value)) and -math.inf < value[0] <= value[1] < math.inf
        ):
            raise MixError(f"{at}.{field_}.{name}: {_quote(value)}: must be a number or a range [low, high]")


def _weights(body: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    alignment = body.get("alignment")
    for name in RANGED:
        weights = alignment.get(name) if isinstance(alignment, Mapping) else None
        if isinstance(weights, Mapping):
            yield from ((name, str(objective), value) for objective, value in weights.items())


def _parse_mapping(value: Any, at: str, valid: Collection[str] = ()) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise MixError(f"{at}: {_quote(value)}: must be keys and values")
    for key in value:
        if valid and key not in valid:
            near = difflib.get_close_matches(str(key), valid, n=1)
            hint = f". Did you mean {near[0]}?" if near else ""
            raise MixError(f"{at}: unknown key {key!r}; valid: {', '.join(valid)}{hint}")
    return value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _quote(value: Any) -> str:
    return "missing" if value is None else json.dumps(value, default=str)[:80]
