"""Grammars that answers must follow: how large they may be, and how they go on behind what is drawn already.

vLLM compiles grammars in the engine's process, few at a time and with no end set to it, and every step fills a mask
from each: one schema of a megabyte holds up whoever wants a grammar. What is wrong with references is refused here,
because the compiler takes `{"$ref": "#"}` for a grammar.

A grammar of vLLM's begins where a request's prompt ends. A search that draws an answer piece by piece has the pieces so
far at its prompt's end, so in the engine's core `create_grammar` takes the place of vLLM's own, and reads them first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar

_create_grammar = StructuredOutputManager._create_grammar

BEGUN = "trimtab.begun"
"""In `SamplingParams.extra_args`: how many tokens at the prompt's end are the answer's already, in four bytes. No
client can set it: bytes cannot be written in JSON."""

DATA = ("const", "default", "enum", "example", "examples")
"""Keys of a schema that hold data, in which nothing is a schema."""
SAME_VALUE = ("allOf", "anyOf", "oneOf")
"""Keys of a schema whose schemas are of the very value that it describes."""

RULE = re.compile(r"::=|^\s*[?!]?\w+(?:\.\d+)?\s*:(?!:)", re.MULTILINE)
"""The head of a rule, in EBNF or in Lark's form."""
TAG_LEVELS = 12
"""Levels of a structural tag above the schemas in it."""


def create_grammar(manager: StructuredOutputManager, request: Request) -> StructuredOutputGrammar:
    """In place of `StructuredOutputManager._create_grammar`: the grammar of a request, as it is behind what is drawn.

    What of that is a thought, which no grammar reads, vLLM tells as it would have while it was drawn.
    """
    grammar = _create_grammar(manager, request)
    begun = int.from_bytes((request.sampling_params.extra_args or {}).get(BEGUN, b""))
    if begun:
        before, wish = copy(request), copy(request.structured_output_request)
        before.prompt_token_ids, before.structured_output_request = request.prompt_token_ids[:-begun], wish
        wish.grammar = grammar
        if not manager.accept_tokens(before, request.prompt_token_ids[-begun:]):
            raise ValueError("the answer so far does not follow its grammar")
        request.structured_output_request.reasoning_ended = wish.reasoning_ended
    return grammar


@dataclass(frozen=True, kw_only=True)
class SchemaLimits:
    """Of a schema, a grammar or a regular expression that a request brings."""

    max_schema_bytes: int = 2**17
    max_schema_values: int = 5000
    max_schema_entries: int = 1000
    max_schema_depth: int = 32
    max_regex_chars: int = 1024


def check_structured(params: SamplingParams, limits: SchemaLimits) -> None:
    """Raises VLLMValidationError naming what is too large, how large it is and what is valid."""
    wanted = params.structured_outputs
    if wanted is None:
        return
    check = SchemaCheck(limits)
    for name in ("regex", "whitespace_pattern"):
        if (pattern := getattr(wanted, name)) is not None:
            check.pattern(pattern, f"structured_outputs.{name}")
    if wanted.grammar is not None:
        check.size(wanted.grammar, "structured_outputs.grammar")
        check.entries(len(RULE.findall(wanted.grammar)), "structured_outputs.grammar", "rules")
    if wanted.choice is not None:
        check.entries(len(wanted.choice), "structured_outputs.choice")
        check.size("".join(wanted.choice), "structured_outputs.choice")
    if wanted.json is not None:
        check.schema(wanted.json, "the JSON schema")
    if wanted.structural_tag is not None:
        check.schema(wanted.structural_tag, "the structural tag, which holds the tools' schemas", tag=True)


class SchemaCheck:
    def __init__(self, limits: SchemaLimits) -> None:
        self.limits = limits

    def refuse(self, what: str, has: str, most: int, key: str) -> VLLMValidationError:
        message = f"{what} has {has}; this server allows {most} (limits.{key})"
        return VLLMValidationError(message, parameter="structured_outputs")

    def size(self, text: str, what: str) -> None:
        size, most = len(text.encode(errors="replace")), self.limits.max_schema_bytes
        if size > most:
            raise self.refuse(what, f"{size} bytes", most, "max_schema_bytes")

    def pattern(self, text: str, what: str) -> None:
        if len(text) > self.limits.max_regex_chars:
            raise self.refuse(what, f"{len(text)} characters", self.limits.max_regex_chars, "max_regex_chars")

    def entries(self, count: int, what: str, kind: str = "entries") -> None:
        if count > self.limits.max_schema_entries:
            raise self.refuse(what, f"{count} {kind}", self.limits.max_schema_entries, "max_schema_entries")

    def schema(self, schema: str | dict[str, Any], what: str, *, tag: bool = False) -> None:
        """`tag`: it is no schema itself, but holds some."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        self.size(text, what)
        try:
            document = json.loads(text) if isinstance(schema, str) else schema
        except RecursionError:
            raise VLLMValidationError(f"{what} is nested too deeply", parameter="structured_outputs") from None
        except ValueError:
            return  # vLLM refuses it in its own words
        self.shape(document, what, levels=self.limits.max_schema_depth + (TAG_LEVELS if tag else 0))
        for root in schemas_of_tag(document) if tag else [document]:
            check_references(root, what)

    def shape(self, document: Any, what: str, levels: int) -> None:
        """Level by level, so that no depth is too much for Python."""
        level, depth, values = [document], 0, 0
        while level:
            depth += 1
            if depth > levels:
                raise self.refuse(what, f"more than {levels} levels", self.limits.max_schema_depth, "max_schema_depth")
            below: list[Any] = []
            for node in level:
                if isinstance(node, dict):
                    self.entries(len(node), f"an object of {what}")
                    for key in ("pattern", "regex"):
                        if isinstance(node.get(key), str):
                            self.pattern(node[key], f"a {key} of {what}")
                    if isinstance(named := node.get("patternProperties"), dict):
                        for pattern in named:
                            self.pattern(pattern, f"a pattern of {what}")
                    below += node.values()
                elif isinstance(node, list):
                    self.entries(len(node), f"a list of {what}")
                    below += node
            values += len(below)
            if values > self.limits.max_schema_values:
                raise self.refuse(what, f"{values} values or more", self.limits.max_schema_values, "max_schema_values")
            level = [node for node in below if isinstance(node, dict | list)]


def schemas_of_tag(document: Any) -> Iterator[Any]:
    """The JSON schemas in a structural tag; references in each are from its own root."""
    nodes = [document]
    while nodes:
        node = nodes.pop()
        if isinstance(node, list):
            nodes += node
        elif isinstance(node, dict):
            for key, value in node.items():
                if key in ("json_schema", "schema"):
                    yield value
                else:
                    nodes.append(value)


def check_references(root: Any, what: str) -> None:
    """That each `$ref` leads somewhere in the schema, and that none leads back to itself without reading anything."""
    leads: dict[int, list[Any]] = {}
    for node in subschemas(root):
        same = [branch for key in SAME_VALUE if isinstance(node.get(key), list) for branch in node[key]]
        if isinstance(reference := node.get("$ref"), str):
            same.append(resolve(root, reference, what))
        leads[id(node)] = [branch for branch in same if isinstance(branch, dict)]
    done: set[int] = set()
    for start in leads:
        path, open_nodes = [(start, iter(leads[start]))], {start}
        while path:
            at, branches = path[-1]
            branch = next((b for b in branches if id(b) not in done), None)
            if branch is None:
                path.pop()
                open_nodes.discard(at)
                done.add(at)
            elif id(branch) in open_nodes:
                message = f"a $ref of {what} leads back to itself, so it describes nothing; valid: one below a property"
                raise VLLMValidationError(message, parameter="structured_outputs")
            else:
                open_nodes.add(id(branch))
                path.append((id(branch), iter(leads.get(id(branch), ()))))


def subschemas(root: Any) -> Iterator[dict[str, Any]]:
    nodes = [root]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            yield node
            nodes += [value for key, value in node.items() if key not in DATA]
        elif isinstance(node, list):
            nodes += node


def resolve(root: Any, reference: str, what: str) -> Any:
    """What a JSON pointer behind # leads to (RFC 6901)."""
    node = root
    head, *parts = reference.split("/")
    if head == "#":
        for part in parts:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and key in node:
                node = node[key]
            elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
                node = node[int(key)]
            else:
                break
        else:
            return node
    shown = reference if len(reference) <= 80 else reference[:80] + "…"
    message = f"$ref {shown!r} leads nowhere in {what}; valid: # and the path of a schema in it, as in #/$defs/name"
    raise VLLMValidationError(message, parameter="structured_outputs")
