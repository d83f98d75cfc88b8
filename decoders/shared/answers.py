"""What a response answers: functions text -> str | None, for votes and for verifiers.

Two responses give the same answer where these give equal strings. None: the response holds no answer.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal

import re2
from pydantic import Field

from trimtab.decoders.protocols import Parts
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
    Literal["number", "answer", "text", "tool_call"]
    | Annotated[
        dict[Literal["regex", "json", "tool_call"], Annotated[str, Field(max_length=1000)]], Field(min_length=1)
    ]
)
"""Which of them: "number", "answer", "text", {"regex": pattern}, {"json": path}; or of the tools that a response calls,
"tool_call" (names and arguments) or {"tool_call": "name"}."""


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
    raise ValueError(
        'extractor must be "number", "answer", "text", {"regex": "…"}, {"json": "…"}, "tool_call" or '
        '{"tool_call": "name"}'
    )


def make_reader(rule: Extractor) -> Callable[[Parts], str | None]:
    """What a completion answers by its text or by its calls; raises ValueError as `make_extractor` does."""
    match rule:
        case "tool_call":
            return write_calls
        case {"tool_call": "name"} if len(rule) == 1:
            return name_calls
    extract = make_extractor(rule)
    return lambda parts: extract(parts.answer)


def write_calls(parts: Parts) -> str | None:
    """The calls, names and arguments, as JSON with sorted keys: one object, or a list of several in their order."""
    calls = [{"name": call.name, "arguments": _read_arguments(call.arguments)} for call in parts.calls]
    return _as_json(calls[0] if len(calls) == 1 else calls) if calls else None


def name_calls(parts: Parts) -> str | None:
    """The name of the tool that is called; of several, their names as a JSON list in the order of the calls."""
    names = [call.name for call in parts.calls]
    return (names[0] if len(names) == 1 else _as_json(names)) if names else None


def _read_arguments(arguments: str) -> Any:
    """As JSON; as text where they are none."""
    try:
        return json.loads(arguments, parse_float=_parse_float, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return arguments


def count_votes(completions: Sequence[Parts], weights: Iterable[float], rule: Extractor) -> list[float]:
    """[N] the weight of all completions that give the same answer; -1 for one that holds none."""
    read, total = make_reader(rule), defaultdict[str, float](float)
    answers = [read(parts) for parts in completions]
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
            return _as_json(value)
        except (ValueError, LookupError, RecursionError):
            return None

    return extract


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _parse_json(text: str) -> Any:
    fenced = _FENCED.findall(text[-LONGEST:])
    return json.loads(fenced[-1] if fenced else text, parse_float=_parse_float, parse_constant=_refuse)


def _parse_float(digits: str) -> float | int:
    value = float(digits)
    return int(value) if value.is_integer() else value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
