"""A grammar that is too large, or whose references describe nothing, is refused before it is compiled."""

import json

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

from trimtab.engine.structured_outputs import SchemaLimits, check_structured

LIMITS = SchemaLimits(
    max_schema_bytes=2000, max_schema_values=100, max_schema_entries=20, max_schema_depth=8, max_regex_chars=30
)


def check(limits=LIMITS, **wanted):
    check_structured(SamplingParams(structured_outputs=StructuredOutputsParams(**wanted)), limits)


def enum(count):
    return {"enum": [f"v{i}" for i in range(count)]}


def nested(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def tag(schema):
    """As a tool's parameters come to vLLM under tool_choice."""
    content = {"type": "json_schema", "json_schema": schema}
    one = {"type": "tag", "begin": "<tool>", "content": content, "end": "</tool>"}
    return json.dumps({"type": "structural_tag", "format": one})


def test_without_a_grammar():
    check_structured(SamplingParams(), LIMITS)


def test_what_is_within_the_limits():
    check(json=enum(20))
    check(json=json.dumps(enum(20)))
    check(json=nested(7))
    check(json={"type": "string", "pattern": "x" * 30})
    check(regex="x" * 30)
    check(choice=["x"] * 20)
    check(grammar="x" * 2000)
    check(grammar="".join(f'r{i} ::= "a: b"\n' for i in range(20)))
    check(json_object=True)
    check(structural_tag=tag(enum(20)))
    check(structural_tag=tag(nested(7)))


@pytest.mark.parametrize(
    ("wanted", "key"),
    [
        ({"json": {"description": "é" * 1000}}, "max_schema_bytes"),
        ({"json": "[" + "1," * 1000 + "1]"}, "max_schema_bytes"),
        ({"json": {"a": enum(20), "b": enum(20), "c": enum(20), "d": enum(20), "e": enum(20)}}, "max_schema_values"),
        ({"json": enum(21)}, "max_schema_entries"),
        ({"json": json.dumps(enum(21))}, "max_schema_entries"),
        ({"json": {"properties": {f"k{i}": {} for i in range(21)}}}, "max_schema_entries"),
        ({"json": {"anyOf": [{"type": "null"}] * 21}}, "max_schema_entries"),
        ({"json": {"items": {"$defs": {f"k{i}": {} for i in range(21)}}}}, "max_schema_entries"),
        ({"json": nested(8)}, "max_schema_depth"),
        ({"json": "[" * 900 + "]" * 900}, "max_schema_depth"),
        ({"json": {"items": {"type": "string", "pattern": "x" * 31}}}, "max_regex_chars"),
        ({"json": {"patternProperties": {"x" * 31: {}}}}, "max_regex_chars"),
        ({"regex": "x" * 31}, "max_regex_chars"),
        ({"json_object": True, "whitespace_pattern": "x" * 31}, "max_regex_chars"),
        ({"choice": ["x"] * 21}, "max_schema_entries"),
        ({"choice": ["x" * 2001]}, "max_schema_bytes"),
        ({"grammar": "x" * 2001}, "max_schema_bytes"),
        ({"grammar": "".join(f'r{i} ::= "a"\n' for i in range(21))}, "max_schema_entries"),
        ({"grammar": "".join(f'?r{i} : "a"\n' for i in range(21))}, "max_schema_entries"),
        ({"structural_tag": tag(enum(21))}, "max_schema_entries"),
        ({"structural_tag": tag(nested(30))}, "max_schema_depth"),
        ({"structural_tag": tag({"description": "x" * 2001})}, "max_schema_bytes"),
    ],
)
def test_what_is_too_large(wanted, key):
    with pytest.raises(VLLMValidationError, match=rf"this server allows \d+ \(limits\.{key}\)"):
        check(**wanted)


def test_nesting_beyond_python():
    with pytest.raises(VLLMValidationError, match=r"nested too deeply|max_schema_depth"):
        check(SchemaLimits(), json="[" * 50_000 + "]" * 50_000)


LOST = [
    {"$ref": "#/$defs/none"},
    {"$ref": "http://example.com/schema"},
    {"$ref": "other.json"},
    {"$ref": "#name"},
    {"items": [{"$ref": "#/items/1"}]},
    {"properties": {"a": {"$ref": "#/properties/a/x"}}},
]
ENDLESS = [
    {"$ref": "#"},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    {"anyOf": [{"type": "string"}, {"$ref": "#"}]},
    {"properties": {"x": {"allOf": [{"oneOf": [{"$ref": "#/properties/x"}]}]}}},
]
SOUND = [
    {"properties": {"next": {"$ref": "#"}}},
    {"anyOf": [{"type": "null"}, {"items": {"$ref": "#"}}]},
    {"$defs": {"a/b~c": {"type": "string"}}, "items": {"$ref": "#/$defs/a~1b~0c"}},
    {"$defs": {"a b": {"type": "string"}}, "anyOf": [{"$ref": "#/$defs/a%20b"}, {"$ref": "#/$defs/a%20b"}]},
    {"enum": [{"$ref": "#/none"}], "default": {"$ref": "x"}},
    {"properties": {"$ref": {"type": "string"}}},
    {"items": [{"type": "string"}, {"$ref": "#/items/0"}]},
]


@pytest.mark.parametrize("wrap", [lambda s: {"json": s}, lambda s: {"structural_tag": tag(s)}], ids=["json", "tag"])
def test_references(wrap):
    for schema in LOST:
        with pytest.raises(VLLMValidationError, match=r"leads nowhere"):
            check(**wrap(schema))
    for schema in ENDLESS:
        with pytest.raises(VLLMValidationError, match="leads back to itself"):
            check(**wrap(schema))
    for schema in SOUND:
        check(**wrap(schema))
