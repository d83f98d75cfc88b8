"""What a response answers: functions text -> str | None, for votes and for verifiers.

Two texts give the same answer where these give equal strings. None: the text holds no answer.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal

import re2
from pydantic import Field

from trimtab.decoders.shared.final_answer import (
    LONGEST,
    find_marked,
    normalise,
    read_letter,
    read_number,
    read_words,
)
from trimtab.decoders.shared.numbers import write_number

Extract = Callable[[str], str | None]
Extractor = (
    Literal["number", "answer", "text"]
    | Annotated[dict[Literal["regex", "json"], Annotated[str, Field(max_length=1000)]], Field(min_length=1)]
)
"""Which of them: "number", "answer", "text", {"regex": pattern} or {"json": path}."""


def make_extractor(rule: Extractor) -> Extract:
    """Raises ValueError, naming what is wrong, for a rule that cannot be used."""
    match rule:
        case "number":
            return last_number
        case "answer":
            return any_answer
        case "text":
            return whole_text
        case {"regex": pattern} if len(rule) == 1:
            return by_pattern(pattern)
        case {"json": path} if len(rule) == 1:
            return by_path(path)
    raise ValueError('extractor must be "number", "answer", "text", {"regex": "…"} or {"json": "…"}')


def count_votes(texts: Sequence[str], weights: Iterable[float], rule: Extractor) -> list[float]:
    """[N] the weight of all texts that give the same answer; -1 for a text that holds none."""
    extract, total = make_extractor(rule), defaultdict[str, float](float)
    answers = [extract(text) for text in texts]
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            total[answer] += weight
    return [total[answer] if answer is not None else -1.0 for answer in answers]


def whole_text(text: str) -> str | None:
    return text.strip() or None


def last_number(text: str) -> str | None:
    """The number that the text answers with, in decimals: "42" of 42, 42.0 and $42, "0.75" of 3/4, "5" of 5%.

    None where the answer is something else, such as \\boxed{x}: `final_answer.py` says what is read.
    """
    number = read_number(text, marked=find_marked(text))
    return None if number is None else write_number(number.value)


def any_answer(text: str) -> str | None:
    """What the text answers with: a letter, a number as `last_number` writes it, or words in lower case."""
    marked = find_marked(text)
    if (letter := read_letter(text, marked=marked)) is not None:
        return letter
    if (number := read_number(text, marked=marked)) is not None:
        return write_number(number.value)
    words = read_words(text, marked=marked)
    return normalise(words[-1]) or None if words else None


def by_pattern(pattern: str) -> Extract:
    """The first group of the pattern's last match, or the match where the pattern has no group, stripped.

    The syntax is RE2's, which looks neither back nor around, and so takes linear time whatever a client writes.
    """
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error
        raise ValueError(f"extractor.regex: {reason}") from None

    def extract(text: str) -> str | None:
        last = None
        for last in compiled.finditer(text[-LONGEST:]):  # noqa: B007
            pass
        return None if last is None else (last[min(1, compiled.groups)] or "").strip() or None

    return extract


_PATH = re.compile(r"(?:[^.\[\]]+|\[-?[0-9]{1,9}\])(?:\.[^.\[\]]+|\[-?[0-9]{1,9}\])*")
_STEP = re.compile(r"\[(-?[0-9]+)\]|([^.\[\]]+)")
_FENCED = re.compile(r"```\w*\n(.*?)```", re.DOTALL)


def by_path(path: str) -> Extract:
    """What stands at `path`, such as a.b[0], in the JSON that the text is, or that its last fenced block is.

    Values are compared as JSON with sorted keys, in which 1.0 is 1.
    """
    if not _PATH.fullmatch(path):
        raise ValueError(f"extractor.json: {path!r} is no path; write keys and indices as in a.b[0]")
    steps = [int(index) if index else key for index, key in _STEP.findall(path)]

    def extract(text: str) -> str | None:
        try:
            value = _parse_json(text)
            for step in steps:
                if not isinstance(value, list if isinstance(step, int) else dict):
                    return None
                value = value[step]
            return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
        except (ValueError, LookupError, RecursionError):
            return None

    return extract


def _parse_json(text: str) -> Any:
    fenced = _FENCED.findall(text[-LONGEST:])
    return json.loads(fenced[-1] if fenced else text, parse_float=_parse_float, parse_constant=_refuse)


def _parse_float(digits: str) -> float | int:
    value = float(digits)
    return int(value) if value.is_integer() else value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
