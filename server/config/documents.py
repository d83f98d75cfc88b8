"""A YAML file as a document: its data, and the line of each key; what plain data cannot be is refused with its line.

YAML may say more than a configuration means, and a loader that reads on in silence gives it another meaning: a key that
stands twice, a date, a number beyond float, a key that is no text, an anchor that unfolds into millions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from trimtab.server.config.sections import ConfigError
from trimtab.server.wording import quote

MAX_BYTES = 2**20
"""Longest file."""
MAX_NODES = 100_000
"""Values of a file, each alias counted as often as it unfolds."""
MAX_DEPTH = 64

TAG = "tag:yaml.org,2002:"
PLAIN = {TAG + kind for kind in ("str", "int", "float", "bool", "null", "map", "seq", "merge")}


class PlainLoader(yaml.SafeLoader):
    """YAML 1.1, with YAML 1.2's numbers: 1e-3 is one."""


PlainLoader.add_implicit_resolver(
    TAG + "float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass(frozen=True)
class Document:
    data: Any
    root: Node | None

    def holds(self, path: Sequence[str]) -> bool:
        """Whether the data has this key, be it from the file or put over it."""
        data = self.data
        for part in path:
            if not isinstance(data, dict) or part not in data:
                return False
            data = data[part]
        return True

    def line_of(self, path: Sequence[str]) -> int:
        """The line, from 1, of the deepest key of `path` that stands in the file."""
        node, line = self.root, 1
        for part in path:
            step = _step(node, part)
            if step is None:
                break
            node, line = step
        return line


def _step(node: Node | None, part: str) -> tuple[Node, int] | None:
    """What stands under a key, or at a place of a list, and its line; a merged key's is where its anchor has it."""
    if isinstance(node, SequenceNode) and part.isdecimal() and int(part) < len(node.value):
        child = node.value[int(part)]
        return child, child.start_mark.line + 1
    if not isinstance(node, MappingNode):
        return None
    for key, value in node.value:
        if key.value == part:
            return value, key.start_mark.line + 1
    for key, value in node.value:
        if key.tag == TAG + "merge":
            merged = value.value if isinstance(value, SequenceNode) else [value]
            for anchor in merged:
                if (step := _step(anchor, part)) is not None:
                    return step
    return None


def read_file(path: Path) -> Document:
    """Raises ConfigError, in one line, for a file that cannot be read or is no plain YAML."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: is longer than {MAX_BYTES} bytes, so no configuration")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8; valid: a text in UTF-8"
        ) from None
    return parse(text, at=lambda line: f"{path}:{line}")


def parse(text: str, *, at: Callable[[int], str]) -> Document:
    """YAML as plain data; raises ConfigError that begins with `at` of the line."""

    def refuse(problem: str, line: int, key: str = "") -> ConfigError:
        return ConfigError(f"{at(line)}: {key}{': ' if key else ''}{problem}")

    try:
        loader = PlainLoader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return Document(None, None)
            Check(loader, refuse).node(root)
            return Document(loader.construct_document(root), root)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = ", ".join(" ".join(part.split()) for part in (error.context, error.problem) if part)
        raise refuse(problem, 1 if mark is None else mark.line + 1) from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise refuse(f"character #x{error.character:04x} is not valid in YAML", line) from None
    except RecursionError:
        raise refuse("is nested too deeply", 1) from None


class Check:
    """Walks a document's nodes, and raises for what is no plain data; an alias is walked once and counted each time."""

    def __init__(self, loader: PlainLoader, refuse: Callable[[str, int, str], ConfigError]) -> None:
        self.loader = loader
        self.refuse = refuse
        self.sizes: dict[int, int] = {}
        """Of nodes by identity, in values; 0 of one that is being walked."""

    def node(self, node: Node, path: tuple[str, ...] = ()) -> int:
        """How many values it unfolds into."""
        if (known := self.sizes.get(id(node))) is not None:
            if known == 0:
                self.fail(node, path, "an anchor that holds itself")
            return known
        self.sizes[id(node)] = 0
        if len(path) > MAX_DEPTH:
            self.fail(node, path[:4], f"is nested deeper than {MAX_DEPTH} levels")
        if node.tag not in PLAIN:
            kind = node.tag.removeprefix(TAG)
            hint = "a date: put it in quotes" if kind == "timestamp" else f"a YAML {kind}"
            self.fail(node, path, f"{hint}; valid: text, numbers, true, false, null, lists, and keys with values")
        if isinstance(node, MappingNode):
            size = self.keys(node, path)
        elif isinstance(node, SequenceNode):
            size = 1 + sum(self.node(child, (*path, str(i))) for i, child in enumerate(node.value))
        else:
            assert isinstance(node, ScalarNode)
            self.scalar(node, path)
            size = 1
        if size > MAX_NODES:
            self.fail(node, path, f"unfolds into more than {MAX_NODES} values")
        self.sizes[id(node)] = size
        return size

    def keys(self, node: MappingNode, path: tuple[str, ...]) -> int:
        lines: dict[str, int] = {}
        size = 1
        for key, value in node.value:
            if not isinstance(key, ScalarNode) or key.tag not in (TAG + "str", TAG + "merge"):
                shown = quote(key.value) if isinstance(key, ScalarNode) else "a list, or keys with values"
                self.fail(key, path, f"a key must be text, and {shown} is none; put it in quotes")
            here = (*path, key.value)
            if key.value in lines:
                self.fail(key, here, f"stands twice, in line {lines[key.value]} too; valid: once")
            lines[key.value] = key.start_mark.line + 1
            size += self.node(value, here)
        return size

    def scalar(self, node: ScalarNode, path: tuple[str, ...]) -> None:
        try:
            value = self.loader.yaml_constructors[node.tag](self.loader, node)
            finite = not isinstance(value, int | float) or math.isfinite(value)
        except (ValueError, KeyError):
            self.fail(node, path, f"{quote(node.value)} is no {node.tag.removeprefix(TAG)}")
        except OverflowError:
            finite = False
        if not finite:
            self.fail(node, path, f"Input should be a finite number, not {quote(node.value)}")

    def fail(self, node: Node, path: tuple[str, ...], problem: str) -> NoReturn:
        raise self.refuse(problem, node.start_mark.line + 1, ".".join(path))
