"""Bodies that are almost right: over all strategies, fields and budgets, one in three with something wrong in it.

Parameters come from the strategies' own schemas, so a new strategy is tried as soon as it has a row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from trimtab.decoders import STRATEGIES
from trimtab.rewards import COMBINES, TRANSFORMS

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, SCORE, INFER = "/v1/messages", "/v1/alignment/score", "/v1/alignment/infer"
ANSWERS = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)
OBJECTIVES = ("a", "brevity", "truth")
MEMBERS = ("base", "arm")
REWARDS = ("letters.a", "letters.length", "short", "bleu", "verify", "distinct")
FAULTS = ("nan", "shape", "dead")

JUNK = st.sampled_from(
    [
        None, True, "8", 8.0, -1, 0, 1.5, 1e308, -1e308, 5e-324, 10**400, 2**63, 2**64, float("nan"), float("inf"), [],
        {}, "", "\ud800", "\x00", "x" * 300, [[[[]]]], {"$ref": "#"}, {"": None}, "../../etc", [1, "a"],
        {"a": {"a": {"a": 1}}},
    ]
)  # fmt: skip
"""Values that stand where others belong."""

SMALL = st.sampled_from([0, 0.5, 1, 2, -1, 0.1, 1e-9, 1e9, 0.3])


@dataclass(frozen=True)
class Body:
    """A request, and what was asked for, as far as it can be checked."""

    path: str
    document: dict[str, Any]
    is_whole: bool
    """Whether nothing in it was spoilt on purpose."""

    @property
    def raw(self) -> bytes:
        """As a careless client writes it: NaN, Infinity and lone surrogates pass."""
        return json.dumps(self.document).encode()

    @property
    def alignment(self) -> dict[str, Any]:
        alignment = self.document.get("alignment")
        return alignment if isinstance(alignment, dict) else {}

    @property
    def streams(self) -> bool:
        return self.document.get("stream") is True

    @property
    def is_repeatable(self) -> bool:
        """Whether the same seed must bring the same answer."""
        return (
            self.path in (CHAT, COMPLETIONS)
            and type(self.document.get("seed")) is int
            and "deadline_ms" not in (self.alignment.get("budget") or {})
        )


def schema_values(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a JSON schema allows, small ones."""
    if "$ref" in schema:
        return schema_values(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return st.one_of(*(schema_values(option, definitions) for option in options))
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    match schema.get("type"):
        case "integer":
            least = schema.get("minimum", 0)
            return st.integers(least, min(schema.get("maximum", least + 6), least + 6))
        case "number":
            return _numbers(schema)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "array":
            return st.lists(schema_values(schema.get("items", {}), definitions), max_size=3)
        case "object" if "properties" in schema:
            return _objects(schema, definitions)
        case "object":
            keys = st.sampled_from(schema.get("propertyNames", {}).get("enum", MEMBERS))
            values = schema_values(schema.get("additionalProperties", {}), definitions)
            return st.dictionaries(keys, values, min_size=schema.get("minProperties", 0), max_size=2)
        case "string":
            return st.sampled_from([*MEMBERS, "system", "a", "ab", ""])
    return st.one_of(st.none(), reward_trees)  # what names a reward has no type


def _numbers(schema: Mapping[str, Any]) -> st.SearchStrategy[float]:
    low = schema.get("minimum", schema.get("exclusiveMinimum", -2.0))
    high = schema.get("maximum", schema.get("exclusiveMaximum", low + 4.0))
    edges = [low, high, (low + high) / 2, low + 1e-6]
    return st.one_of(st.sampled_from(edges), st.floats(low, high))


def _objects(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    fields = {name: schema_values(inner, definitions) for name, inner in schema["properties"].items()}
    required = set(schema.get("required", ()))
    return st.fixed_dictionaries(
        {name: values for name, values in fields.items() if name in required},
        optional={name: values for name, values in fields.items() if name not in required},
    )


def _table_values(table: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """A row of a table by name, or with parameters."""
    rows = {name: entry.parameters.model_json_schema(by_alias=True) for name, entry in table.items()}
    chosen = {name: schema_values(schema, schema.get("$defs", {})) for name, schema in rows.items()}
    return st.one_of(
        st.sampled_from(sorted(table)),
        st.sampled_from(sorted(table)).flatmap(lambda name: chosen[name].map(lambda params: {name: params})),
    )


_leaves = st.sampled_from([*REWARDS, "a", "brevity"])
_faulty = st.sampled_from(FAULTS)
combines = st.deferred(lambda: _table_values(COMBINES))
transforms = st.deferred(lambda: _table_values(TRANSFORMS))
reward_trees: st.SearchStrategy[Any] = st.recursive(
    st.one_of(_leaves, _leaves, _leaves, _leaves, _faulty),
    lambda inner: st.fixed_dictionaries(
        {
            "of": st.one_of(
                inner, st.lists(inner, min_size=1, max_size=3), st.dictionaries(_leaves, SMALL, min_size=1, max_size=2)
            )
        },
        optional={"combine": combines, "transform": transforms},
    ),
    max_leaves=4,
)

budgets = st.fixed_dictionaries(
    {},
    optional={"max_sampled_tokens": st.integers(1, 60), "deadline_ms": st.sampled_from([1, 5, 50, 2000, 60_000])},
)
weights = st.one_of(
    st.dictionaries(st.sampled_from(OBJECTIVES), SMALL, min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(OBJECTIVES[:2]), st.sampled_from([0.5, 1.0, 2.0]), min_size=1, max_size=2),
)
exponents = st.dictionaries(st.sampled_from(MEMBERS), SMALL, max_size=2)
comparands = st.fixed_dictionaries(
    {},
    optional={
        "references": st.lists(st.sampled_from(["a", "ab", "b b"]), min_size=1, max_size=2),
        "answer": st.just("1"),
    },
)


@st.composite
def alignments(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from(sorted(STRATEGIES)))
    entry = STRATEGIES[name]
    schema = entry.parameters.model_json_schema(by_alias=True)
    alignment: dict[str, Any] = {"strategy": name}
    params = draw(schema_values(schema, schema.get("$defs", {})))
    if "decisions" in params:
        params["decisions"] = sorted({abs(count) + 1 for count in params["decisions"]}) or [2]
    if params:
        alignment["params"] = params
    takes = {"reward", "weights", "direction"} & entry.takes
    if takes and draw(st.integers(0, 9)):
        if "reward" in takes and draw(st.booleans()):
            alignment["reward"] = draw(reward_trees)
        else:
            alignment["weights"] = draw(weights)
    if "guides" in entry.takes and draw(st.booleans()):
        alignment["guides"] = draw(exponents)
    for field, values in (
        ("budget", budgets),
        ("return", st.lists(st.sampled_from(sorted(entry.shows | {"rewards"})), max_size=2, unique=True)),
        ("on_error", st.sampled_from(["fail", "degrade"])),
        ("given", comparands),
    ):
        if draw(st.integers(0, 2)) == 0:
            alignment[field] = draw(values)
    return alignment


words = st.sampled_from(["hi", "a", "", "<|end|>", "héllo 世界", "x y " * 50, "\u2028\x01"])
_stops = st.one_of(
    st.sampled_from(["a", "b", "ab", "aa", "x"]), st.lists(st.sampled_from(["ba", "bb", "z"]), min_size=1)
)
_schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
_tool = {"type": "function", "function": {"name": "f", "parameters": _schema}}
COMMON: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.sampled_from([0, 0.5, 1, 1.0, 2.0]),
    "top_p": st.sampled_from([0.1, 0.9, 1, 1.0]),
    "stream": st.booleans(),
}
SAMPLING: dict[str, st.SearchStrategy[Any]] = {
    **COMMON,
    "n": st.integers(1, 3),
    "max_tokens": st.integers(1, 8),
    "seed": st.integers(0, 2**31),
    "stop": _stops,
    "stop_token_ids": st.lists(st.integers(0, 60), max_size=2),
    "top_k": st.sampled_from([-1, 0, 1, 2]),
    "min_p": st.sampled_from([0, 0.1]),
    "presence_penalty": st.sampled_from([0, 0.5]),
    "frequency_penalty": st.sampled_from([0.0, -0.5]),
    "repetition_penalty": st.sampled_from([1, 1.1]),
    "logit_bias": st.sampled_from([{}, {"5": 1.0}]),
    "ignore_eos": st.booleans(),
    "min_tokens": st.integers(0, 3),
    "skip_special_tokens": st.booleans(),
    "include_stop_str_in_output": st.booleans(),
    "add_special_tokens": st.booleans(),
    "user": st.just("someone"),
    "priority": st.integers(0, 1),
    "stream_options": st.sampled_from([{"include_usage": True}, {"include_usage": False}]),
    "unheard_of": st.just(1),
}
FIELDS: dict[str, tuple[dict[str, st.SearchStrategy[Any]], dict[str, st.SearchStrategy[Any]]]] = {
    CHAT: (
        {
            "messages": st.lists(
                st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant"]), "content": words}),
                min_size=1, max_size=3,
            )
        },
        {
            **SAMPLING,
            "max_completion_tokens": st.integers(1, 8),
            "logprobs": st.booleans(),
            "top_logprobs": st.integers(0, 3),
            "echo": st.booleans(),
            "tools": st.just([_tool]),
            "tool_choice": st.sampled_from(["none", "auto"]),
            "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}]),
            "chat_template_kwargs": st.sampled_from([{}, {"x": 1}, {"messages": []}, {"tokenize": True}]),
            "continue_final_message": st.booleans(),
            "add_generation_prompt": st.booleans(),
        },
    ),
    COMPLETIONS: (
        {"prompt": st.one_of(words, st.lists(words, min_size=1, max_size=2), st.just([1, 2]))},
        {**SAMPLING, "logprobs": st.integers(0, 3), "echo": st.booleans(), "suffix": st.just("b")},
    ),
    RESPONSES: (
        {"input": words},
        {**COMMON, "max_output_tokens": st.integers(1, 8), "store": st.just(False), "instructions": words},
    ),
    MESSAGES: (
        {
            "messages": st.just([{"role": "user", "content": "hi"}]),
            "max_tokens": st.integers(1, 8),
        },
        {**COMMON, "stop_sequences": st.lists(st.sampled_from(["ab", "b"]), max_size=2), "system": words},
    ),
}  # fmt: skip
_turns = st.just([{"role": "user", "content": "hi"}])
FIELDS[SCORE] = (
    {"messages": _turns, "responses": st.lists(st.sampled_from(["a", "ab", "bba", ""]), min_size=1, max_size=3)},
    {"weights": weights, "reward": reward_trees, "given": comparands},
)
FIELDS[INFER] = (
    {},
    {
        "objectives": st.lists(st.sampled_from(OBJECTIVES), min_size=1, unique=True),
        "comparisons": st.lists(
            st.fixed_dictionaries({"messages": _turns, "chosen": st.just("a"), "rejected": st.just("bb")}), max_size=2
        ),
        "ratings": st.lists(
            st.fixed_dictionaries({"messages": _turns, "response": st.just("a"), "rating": SMALL}), max_size=2
        ),
    },
)


@st.composite
def bodies(draw: st.DrawFn) -> Body:
    path = draw(st.sampled_from([CHAT, CHAT, CHAT, CHAT, COMPLETIONS, COMPLETIONS, RESPONSES, MESSAGES, SCORE, INFER]))
    required, optional = FIELDS[path]
    document: dict[str, Any] = {"model": "toy"} if path != INFER else {}
    document |= {name: draw(values) for name, values in required.items()}
    for name in draw(st.lists(st.sampled_from(sorted(optional)), max_size=5, unique=True)):
        document[name] = draw(optional[name])
    if path in ANSWERS and draw(st.integers(0, 5)):
        document["alignment"] = draw(alignments())
    is_whole = draw(st.integers(0, 2)) != 0
    if not is_whole:
        spoil(draw, document)
    return Body(path, document, is_whole)


def spoil(draw: st.DrawFn, document: dict[str, Any]) -> None:
    """Something wrong at a place that is there, or under a name that is not."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        keys: Sequence[Any] = (
            list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        )
        for key in keys:
            places.append((node, key))
            visit(node[key])

    document.update(json.loads(json.dumps(document)))  # nothing shared with other examples
    visit(document)
    holder, key = draw(st.sampled_from(places or [(document, "unknown")]))
    if isinstance(holder, dict) and draw(st.integers(0, 4)) == 0:
        holder[draw(st.sampled_from(["unknown", "lambda", "n", "\ud800"]))] = draw(JUNK)
    else:
        holder[key] = draw(JUNK)
