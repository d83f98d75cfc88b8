from __future__ import annotations

import time

import pytest

from tests.rewards.conftest import question, response, rule, scores
from trimtab.rewards.rules import grade


@pytest.mark.parametrize(
    ("params", "text", "score"),
    [
        ({"target": 4}, "one two three four", 0),
        ({"target": 4}, "one", -0.75),
        ({"target": 4}, "", -1),
        ({"target": 4}, "a b c d e f g h i j k l", -2),
        ({"min": 2, "max": 4}, "a b", 1),
        ({"min": 2, "max": 4}, "a b c d", 1),
        ({"min": 2, "max": 4}, "a", 0.5),
        ({"min": 2, "max": 4}, "", 0),
        ({"min": 2, "max": 4}, "a b c d e", 0.75),
        ({"min": 2, "max": 4}, "a b c d e f g h i j k l", -1),
        ({"min": 2}, "a " * 1000, 1),
        ({"max": 2}, "", 1),
        ({"target": 2, "unit": "characters"}, "日本", 0),
        ({"target": 2, "unit": "characters"}, "日本語", -0.5),
    ],
)
def test_length(params: dict[str, object], text: str, score: float) -> None:
    assert scores(rule("length", **params), text) == [pytest.approx(score, abs=1e-15)]


async def test_length_in_tokens_counts_the_end_of_sequence_too() -> None:
    scorer = rule("length", target=4, unit="tokens")
    assert await scorer(question(), [response("a b", (5, 6, 2)), response("", ())]) == [[-0.25], [-1]]


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({}, "either target"),
        ({"target": 3, "max": 4}, "target=3, min=None, max=4"),
        ({"min": 5, "max": 4}, "min=5, max=4"),
        ({"target": 0}, "target: input should be greater than or equal to 1; got '0'"),
        ({"target": 3.5}, "target: .*integer; got '3.5'"),
        ({"target": True}, "target"),
        ({"unit": "bytes", "target": 3}, "unit: .*'words', 'characters' or 'tokens'; got 'bytes'"),
        ({"tarqet": 3}, "unknown parameter 'tarqet'; valid: max, min, target, unit"),
    ],
)
def test_length_refuses(params: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rule("length", **params)


def test_regex() -> None:
    texts = ("call 555-0100 or 555-0199", "no number", "")
    assert scores(rule("regex", pattern=r"\d{3}-\d{4}"), *texts) == [1, 0, 0]
    assert scores(rule("regex", pattern=r"\d{3}-\d{4}", count=True), *texts) == [2, 0, 0]
    assert scores(rule("regex", pattern=r"x", count=True, most=3), "x" * 1000) == [3]
    assert scores(rule("regex", pattern=r"\p{Han}+"), "日本", "kana") == [1, 0]
    assert scores(rule("regex", pattern=r"^b", count=True), "a\nb") == [0]
    assert scores(rule("regex", pattern=r"(?m)^b"), "a\nb") == [1]


def test_a_pattern_that_would_backtrack_for_ever_ends_in_time() -> None:
    begun = time.process_time()
    assert scores(rule("regex", pattern=r"^(\w|\w\w)+$"), "a" * 2000 + "!", "a" * 2000) == [0, 1]
    assert time.process_time() - begun < 5


def test_regex_refuses_what_does_not_compile() -> None:
    with pytest.raises(ValueError, match=r"pattern is no regular expression.*'\(a'"):
        rule("regex", pattern="(a")


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"name": "Ana", "age": 3}', 1),
        (' \n{"name": "Ána"}\n', 1),
        ('{"name": "Ana", "age": -1}', 0),
        ('{"age": 3}', 0),
        ('{"name": "Ana", "more": 1}', 0),
        ('Sure! {"name": "Ana"}', 0),
        ('{"name": "Ana"', 0),
        ("", 0),
        ("null", 0),
        ('{"name": "Ana", "age": NaN}', 0),
        ("[" * 100_000, 0),
        ("[" * 100_000 + "]" * 100_000, 0),
        ('{"name": "Ana", "age": ' + "9" * 10_000 + "}", 0),
    ],
)
def test_json_schema(text: str, score: float) -> None:
    assert scores(rule("json_schema", schema=SCHEMA), text) == [score]


def test_json_schema_is_checked_at_build_and_of_the_draft_it_names() -> None:
    with pytest.raises(ValueError, match=r"schema is no JSON Schema: \$\.type: 'strin' is not valid"):
        rule("json_schema", schema={"type": "strin"})
    with pytest.raises(ValueError, match="schema is required"):
        rule("json_schema")
    draft4 = {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 3, "exclusiveMinimum": True}
    assert scores(rule("json_schema", schema=draft4), "3", "4") == [0, 1]


def test_numbers_that_json_does_not_have() -> None:
    assert scores(rule("json_schema", schema={}), "NaN", "-Infinity", "[1e3]") == [0, 0, 1]


def test_a_schema_elsewhere_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[object] = []
    monkeypatch.setattr("urllib.request.urlopen", fetched.append)
    with pytest.raises(Exception, match="nresolvable"):
        scores(rule("json_schema", schema={"$ref": "http://127.0.0.1:9/schema.json"}), "1")
    assert fetched == []


def test_contains_and_avoids() -> None:
    phrases = ["Straße", "blue"]
    texts = ("die STRASSE is Blue", "blueish", "red", "")
    assert scores(rule("contains", phrases=phrases), *texts) == [1, 0.5, 0, 0]
    assert scores(rule("avoids", phrases=phrases), *texts) == [0, 0.5, 1, 1]
    assert scores(rule("contains", phrases=phrases, case=True), *texts) == [0, 0.5, 0, 0]
    assert scores(rule("contains", phrases=["café"]), "cafe\N{COMBINING ACUTE ACCENT}") == [1]


@pytest.mark.parametrize("kind", ["contains", "avoids"])
@pytest.mark.parametrize("phrases", [[], [""], "blue", [3], None])
def test_contains_refuses(kind: str, phrases: object) -> None:
    with pytest.raises(ValueError, match="phrases"):
        rule(kind, phrases=phrases)


def test_repetition() -> None:
    texts = ("a b c d", "a b c a b c", "a a a a a", "a b", "", "日本 語 です 日本 語 です")
    assert scores(rule("repetition"), *texts) == [1, 3 / 4, 1 / 3, 1, 1, 3 / 4]
    assert scores(rule("repetition", n=1), *texts) == [1, 1 / 2, 1 / 5, 1, 1, 1 / 2]


def test_readability_by_hand() -> None:
    # 5 words, 17 letters and digits, 2 sentences
    assert grade("The cat sat. It purred!") == pytest.approx(4.71 * 17 / 5 + 0.5 * 5 / 2 - 21.43)
    assert grade("The cat sat. It purred") == grade("The cat sat. It purred!")
    assert grade("") == grade("!!! ...") == 0
    assert scores(rule("readability", target=6), "", "The cat sat. It purred!") == [-6, pytest.approx(-10.166)]
    hard = "Notwithstanding considerable methodological heterogeneity, extrapolation necessitates circumspection."
    easy, difficult = scores(rule("readability", target=1), "We had fun at the park with all of the dogs.", hard)
    assert easy > difficult


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("length", {"target": 10}),
        ("regex", {"pattern": "zz", "count": True}),
        ("json_schema", {"schema": {}}),
        ("contains", {"phrases": ["zz"]}),
        ("repetition", {}),
        ("readability", {}),
    ],
)
def test_a_huge_text_takes_no_time(kind: str, params: dict[str, object]) -> None:
    begun = time.process_time()
    scores(rule(kind, **params), "word " * 50_000, "w" * 300_000, "\ud800\x00" * 1000)
    assert time.process_time() - begun < 5
