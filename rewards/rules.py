"""Rewards that are rules: length, patterns, JSON, phrases, repetition, readability.

| class         | r(y)                                                        | range                       |
|---------------|-------------------------------------------------------------|-----------------------------|
| `Length`      | -|l - target| / target, or 1 within [min, max], see there     | (-inf, 0], or (-inf, 1]      |
| `Regex`       | 1 if the pattern occurs, else 0; or the number of times     | {0, 1}, or {0, 1, ..., most} |
| `JsonSchema`  | 1 if y is JSON that the schema allows, else 0               | {0, 1}                      |
| `Contains`    | share of the phrases that y holds                           | [0, 1]                      |
| `Avoids`      | share of the phrases that y does not hold                   | [0, 1]                      |
| `Repetition`  | distinct n-grams / n-grams                                  | (0, 1]                      |
| `Readability` | -|grade(y) - target|                                        | (-inf, 0]                    |

Words are what white space separates.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Annotated, Any, Literal

import re2
from jsonschema import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from pydantic import Field
from referencing import Registry

from trimtab.rewards.protocols import Question, Response
from trimtab.rewards.text_rule import TextRule


@dataclass(frozen=True, kw_only=True)
class Length(TextRule):
    """With `target`: -|l - target| / target. With `min`, `max` or both, of which the missing one does not bind:

        1 - max(min - l, 0) / min - max(l - max, 0) / max

    which is 1 between them, 0 for an empty text below `min`, and 0 at twice `max`.
    """

    unit: Annotated[Literal["words", "characters", "tokens"], Field(description="what length l counts")] = "words"
    target: Annotated[int | None, Field(ge=1, description="the best length; not together with min or max")] = None
    min: Annotated[int | None, Field(ge=1, description="shortest length that scores 1")] = None
    max: Annotated[int | None, Field(ge=1, description="longest length that scores 1")] = None

    def __post_init__(self) -> None:
        bounds = self.min is not None or self.max is not None
        if (self.target is not None) == bounds:
            values = f"target={self.target}, min={self.min}, max={self.max}"
            raise ValueError(f"give either target, or min and max or one of them; got {values}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min must not exceed max; got min={self.min}, max={self.max}")

    def score(self, question: Question, response: Response) -> float:
        length = self._measure(response)
        if self.target is not None:
            return -abs(length - self.target) / self.target
        below = max(self.min - length, 0) / self.min if self.min else 0.0
        above = max(length - self.max, 0) / self.max if self.max else 0.0
        return 1 - below - above

    def _measure(self, response: Response) -> int:
        match self.unit:
            case "words":
                return len(response.text.split())
            case "characters":
                return len(response.text)
            case "tokens":
                return len(response.tokens)


@dataclass(frozen=True, kw_only=True)
class Regex(TextRule):
    """Whether a pattern occurs, 1 or 0, or how often. In RE2's syntax, whose search is linear in the text."""

    pattern: Annotated[str, Field(min_length=1, description="a regular expression, of RE2's syntax")]
    count: Annotated[bool, Field(description="score how often it occurs, not whether")] = False
    most: Annotated[int, Field(ge=1, description="with count: more occurrences score no more than these")] = 1000

    def __post_init__(self) -> None:
        self._compiled  # noqa: B018  a pattern that does not compile is refused here

    @cached_property
    def _compiled(self) -> Any:
        options = re2.Options()
        options.log_errors = False
        try:
            return re2.compile(self.pattern, options)
        except re2.error as error:
            reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error
            raise ValueError(f"pattern is no regular expression: {reason}; got {self.pattern!r}") from None

    def score(self, question: Question, response: Response) -> float:
        text = response.text.encode(errors="replace").decode()  # RE2 reads UTF-8, which half a surrogate pair is not
        return float(sum(1 for _ in islice(self._compiled.finditer(text), self.most if self.count else 1)))


@dataclass(frozen=True, kw_only=True)
class JsonSchema(TextRule):
    """Strict JSON: NaN and Infinity are no numbers, and white space alone may stand around it. References to schemas
    elsewhere are never followed."""

    schema_: Annotated[
        Mapping[str, Any], Field(alias="schema", description="a JSON Schema, of the draft that its $schema names")
    ]

    def __post_init__(self) -> None:
        try:
            validator_for(self.schema_).check_schema(dict(self.schema_))
        except SchemaError as error:
            raise ValueError(f"schema is no JSON Schema: {error.json_path}: {error.message}") from None

    @cached_property
    def _validator(self) -> Validator:
        return validator_for(self.schema_)(dict(self.schema_), registry=Registry())

    def score(self, question: Question, response: Response) -> float:
        try:
            return float(self._validator.is_valid(json.loads(response.text, parse_constant=_reject_constant)))
        except (ValueError, RecursionError):  # nested deeper than the parser goes, which no sane answer is
            return 0.0


def _reject_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


Phrase = Annotated[str, Field(min_length=1)]
Phrases = Annotated[Sequence[Phrase], Field(min_length=1, description="texts to look for, anywhere, inside words too")]
Case = Annotated[bool, Field(description="whether upper and lower case differ")]


@dataclass(frozen=True, kw_only=True)
class Contains(TextRule):
    """The share of the phrases that the answer holds."""

    phrases: Phrases
    case: Case = False

    def score(self, question: Question, response: Response) -> float:
        return count_phrases(response.text, self.phrases, case=self.case) / len(self.phrases)


@dataclass(frozen=True, kw_only=True)
class Avoids(TextRule):
    """The share of the phrases that the answer does not hold."""

    phrases: Phrases
    case: Case = False

    def score(self, question: Question, response: Response) -> float:
        return 1 - count_phrases(response.text, self.phrases, case=self.case) / len(self.phrases)


def count_phrases(text: str, phrases: Sequence[str], *, case: bool) -> int:
    """How many of the phrases occur in the text. Accents match in any Unicode normal form."""

    def fold(s: str) -> str:
        return unicodedata.normalize("NFC", s if case else s.casefold())

    folded = fold(text)
    return sum(fold(phrase) in folded for phrase in phrases)


@dataclass(frozen=True, kw_only=True)
class Repetition(TextRule):
    """Distinct n-grams of words over all of them; 1 where there are none, since nothing is said twice.

    The factor RP of R³ (2402.03469), where n = 3.
    """

    n: Annotated[int, Field(ge=1, le=16, description="words per n-gram")] = 3

    def score(self, question: Question, response: Response) -> float:
        words = response.text.split()
        grams = [tuple(words[i : i + self.n]) for i in range(len(words) - self.n + 1)]
        return len(set(grams)) / len(grams) if grams else 1.0


@dataclass(frozen=True, kw_only=True)
class Readability(TextRule):
    """-|grade - target|, the grade being the Automated Readability Index (Smith & Senter 1967), about years of school:

        4.71 characters / words + 0.5 words / sentences - 21.43

    characters being letters and digits. It counts no syllables, which no library does without a download. For
    languages that put spaces between words. A text without words is as far from the target as grade 0.
    """

    target: Annotated[float, Field(ge=0, le=30, description="the wanted grade, in years of school")] = 8.0

    def score(self, question: Question, response: Response) -> float:
        return -abs(grade(response.text) - self.target)


def grade(text: str) -> float:
    """Automated Readability Index; 0 for a text without words."""
    words = [word for word in text.split() if any(map(str.isalnum, word))]
    if not words:
        return 0.0
    characters = math.fsum(map(str.isalnum, text))
    ends = [word.rstrip("\"')]*”’»").endswith((".", "!", "?", "…")) for word in words]
    sentences = sum(ends) + (not ends[-1])
    return 4.71 * characters / len(words) + 0.5 * len(words) / sentences - 21.43
