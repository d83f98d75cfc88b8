from __future__ import annotations

import time
from typing import Any

import pytest

from tests.waiting import PATIENCE
from trimtab.decoders.protocols import Call, Parts
from trimtab.decoders.shared.answers import by_path, by_pattern, count_votes, last_number, make_extractor, make_reader
from trimtab.decoders.shared.final_answer import LONGEST


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 42.", "42"),
        ("42.0", "42"),
        ("first 7, then 042", "42"),
        ("1,000", "1000"),
        ("a total of $1,234.50", "1234.5"),
        ("1{,}000", "1000"),
        ("1, 2, 3", "3"),
        ("12,34", "12.34"),
        ("it is -5", "-5"),
        ("it is −5", "-5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("10-5", "5"),
        ("- 5", "5"),
        ("-0.0", "0"),
        (".50", "0.5"),
        ("1e3", "1000"),
        ("2.5e-2", "0.025"),
        ("50%", "50"),
        ("5km", "5"),
        ("**42**", "42"),
        ("_42_", "42"),
        ("H2O and v3.14", None),
        ("none", None),
        ("", None),
        ("#### 1,000\nas asked in 1999", "1000"),
        ("#### 1. Add\n3 + 4 = 7", "7"),
        (r"\boxed{42}, of 99", "42"),
        (r"\boxed{1} no, $\boxed{ -\$3.50 }$ by 7", "-3.5"),
        (r"\boxed{\frac{3}{4}}", "0.75"),
        (r"\boxed{x}, of 99", None),
        (r"We get \boxed{42}. That answer is correct: 7 steps.", "42"),
        ("the answer is not 12 but 15", "15"),
        ("It is 15, not 12.", "15"),
        ("The answer is 3 or 4", None),
        ("It is either 3 or 4.", None),
        ("neither 3 nor 4", None),
        ("1 000 000", "1000000"),
        ("1'000.5", "1000.5"),
        ("1.234,5", "1234.5"),
        ("1.5 \\times 10^3", "1500"),
        (r"\frac{1}{-2}", "-0.5"),
        (r"\boxed{\frac{2}{6}}", "1/3"),
        (r"x is $4\sqrt{2}$", None),
        ("Answer: **12** apples; 5 are left", "12"),
        ("The answer is\n\n18 (not 20)", "18"),
        ("To answer this, take 5 and 6", "6"),
    ],
)
def test_numbers(text: str, answer: str | None) -> None:
    assert last_number(text) == answer


@pytest.mark.parametrize(
    "text", ["1," * 200_000, "answer " * 50_000, r"\boxed{" + " " * 200_000, "-" * 200_000, "9" * 200_000]
)
def test_numbers_in_linear_time(text: str) -> None:
    began = time.process_time()
    last_number(text)
    assert time.process_time() - began < PATIENCE


def test_patterns() -> None:
    assert make_extractor({"regex": r"option ([A-D])"})("option A or option B") == "B"
    assert make_extractor({"regex": r"[A-D]"})("A, B") == "B"
    assert make_extractor({"regex": r"(?i)yes|no"})("maybe") is None
    assert make_extractor({"regex": r"(x)?y"})("y") is None
    assert make_extractor({"regex": r"^.*$"})(" \n ") is None
    assert by_pattern("^a")("a" + "b" * LONGEST) is None, "only the end is looked at"


@pytest.mark.parametrize("pattern", ["(a|aa)+$", "(a+)+$", "(?:(?:a{1,30}){1,30})$"])
def test_no_pattern_is_endless(pattern: str) -> None:
    began = time.process_time()
    assert by_pattern(pattern)("a" * 60 + "b") is None
    assert time.process_time() - began < PATIENCE


def test_paths() -> None:
    text = '{"a": {"b": [1.0, {"d": 2, "c": "é"}], "e f": null}}'
    assert by_path("a.b[0]")(text) == "1"
    assert by_path("a.b[-1]")(text) == '{"c": "é", "d": 2}'
    assert by_path("a.e f")(text) == "null"
    assert by_path("[1]")("as asked:\n```json\n[1, 2.5]\n```\n") == "2.5"
    for nowhere in ("a.x", "a[0]", "a.b.c", "a.b[9]", "x"):
        assert by_path(nowhere)(text) is None
    for broken in ("", "no", '{"a": NaN}', '{"a": 1e999}', "[" * 200_000):
        assert by_path("a")(broken) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is (a) because", "A"),
        ("**C**: copper\n\nIt conducts.", "C"),
        ("The answer is A lot of copper", "a lot of copper".replace(" ", "")),
        ("The answer is 1,000.0", "1000"),
        ("so 7 of 9", "9"),
        (r"\boxed{2\pi}", r"2\pi"),
        ("The answer is Paris, the capital.", "paris"),
        ("Paris", "paris"),
        ("", None),
    ],
)
def test_answers_of_any_kind(text: str, answer: str | None) -> None:
    assert make_extractor("answer")(text) == answer


def test_texts() -> None:
    assert make_extractor("text")("  Paris\n") == "Paris"
    assert make_extractor("text")(" \n") is None


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        ({"regex": "("}, r"extractor\.regex: missing \)"),
        ({"regex": "(?=a)b"}, r"extractor\.regex: invalid perl operator"),
        ({"regex": "(" * 6 + "a" + "{100})" * 6}, r"extractor\.regex: invalid repetition size"),
        ({"json": "a..b"}, r"extractor\.json: 'a\.\.b'"),
        ({"json": ""}, r"extractor\.json"),
        ({"json": "a", "regex": "b"}, "extractor must be"),
        ({}, "extractor must be"),
        ("first", "extractor must be"),
    ],
)
def test_an_unusable_rule_is_named(rule: object, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        make_extractor(rule)


def call(name: str, arguments: str) -> Call:
    return Call(name=name, arguments=arguments)


@pytest.mark.parametrize(
    ("calls", "whole", "name"),
    [
        ((), None, None),
        (
            (call("f", '{"b": 1.0, "a": [2, {"d": null, "c": "é"}]}'),),
            '{"arguments": {"a": [2, {"c": "é", "d": null}], "b": 1}, "name": "f"}',
            "f",
        ),
        (
            (call("f", "{}"), call("g", "{}")),
            '[{"arguments": {}, "name": "f"}, {"arguments": {}, "name": "g"}]',
            '["f", "g"]',
        ),
        ((call("f", "no JSON"),), '{"arguments": "no JSON", "name": "f"}', "f"),
        ((call("f", '{"a": NaN}'),), '{"arguments": "{\\"a\\": NaN}", "name": "f"}', "f"),
    ],
)
def test_calls_are_canonical(calls: tuple[Call, ...], whole: str | None, name: str | None) -> None:
    parts = Parts(thoughts="7", answer="8", calls=calls)
    assert make_reader("tool_call")(parts) == whole
    assert make_reader({"tool_call": "name"})(parts) == name
    assert make_reader("number")(parts) == "8"


@pytest.mark.parametrize("rule", [{"tool_call": "arguments"}, {"tool_call": "name", "json": "a"}])
def test_what_is_no_rule_of_calls_is_refused(rule: Any) -> None:
    with pytest.raises(ValueError, match="tool_call"):
        make_reader(rule)


def test_equal_calls_share_their_votes() -> None:
    parts = [Parts(calls=(call("f", a),)) for a in ('{"x": 1, "y": 2}', '{"y":2,"x":1.0}', '{"x": 2}')] + [Parts()]
    assert count_votes(parts, [1, 2, 4, 8], "tool_call") == [3, 3, 4, -1]
