"""Preferences as people have them, read into pairs: which of two answers to a conversation is better.

| form | keys of a row |
|---|---|
| TRL's | `prompt`, `chosen`, `rejected`: texts, or lists of messages; without `prompt`, what both begin with |
| Anthropic's HH transcripts | `chosen`, `rejected`: "\\n\\nHuman: …\\n\\nAssistant: …" |
| ratings | `prompt` or `instruction`, and `completions` ([{`response`, score}]), or `responses` and `scores` |
| a rating a row | `prompt`, `response` and a score; rows of one prompt belong together |
| two answers and votes | `instruction`, `input`, `response1`, `response2`, `annotator1` …: 1, 2, or 0 for neither |
| `/v1/alignment/infer`'s | `messages` or `prompt`, and `chosen`, `rejected`, or `before`, `after`; or its whole body |

A file holds JSON lines or one JSON document, packed with gzip or not, or parquet; what is no file is a dataset of the
Hugging Face hub's.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

Message = Mapping[str, str]
Row = Mapping[str, Any]

ROLES = ("system", "user", "assistant")
TURN = re.compile(r"\n\n(Human|Assistant):")
SCORES = ("score", "overall_score", "rating", "helpfulness")
"""Where a rated answer's score is looked for."""
RATINGS = "prompt and completions; prompt, responses and scores; prompt, response and a score"
"""Keys of rows with ratings."""


class DataError(Exception):
    """A row that is no preference: says where, which field, and what is valid."""

    def __init__(self, message: str, *, field: str = "", place: str = "") -> None:
        super().__init__(": ".join(filter(None, [place, field, message])))
        self.field = field
        self.problem = message


class DifferentConversations(Exception):
    """Two answers that no one prompt has."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two answers to one conversation, of which one is better."""

    prompt: tuple[Message, ...]
    """[{"role", "content"}], its last message not the assistant's."""
    chosen: str
    rejected: str
    line: int


@dataclass(frozen=True, kw_only=True)
class Rated:
    """Answers to one conversation, each with scores by name; higher is better."""

    prompt: tuple[Message, ...]
    answers: tuple[tuple[str, Mapping[str, float]], ...]
    line: int


@dataclass(kw_only=True)
class Preferences:
    """What a source holds."""

    pairs: list[Pair] = field(default_factory=list)
    rated: list[Rated] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    """reason -> rows without a preference"""
    wrong: list[str] = field(default_factory=list)
    """Rows of no known form: where, which field, and what is valid."""

    @property
    def longer_chosen(self) -> float:
        """Share of the pairs in which the longer answer is the better one; ties count half."""
        if not self.pairs:
            return 0.0
        wins = sum((len(p.chosen) > len(p.rejected)) + 0.5 * (len(p.chosen) == len(p.rejected)) for p in self.pairs)
        return wins / len(self.pairs)


def read_preferences(source: str, *, score: str | None = None, objectives: Sequence[str] = ()) -> Preferences:
    """All of a file's, or of a hub dataset's, preferences; `score` names the score of ratings that pairs are made by.

    With `objectives` it reads ratings by all of these alone, and makes no pairs. Raises DataError for a file that is no
    JSON or none of objects, OSError for one that cannot be read.
    """
    read = Preferences()

    def add(rated: Rated) -> None:
        if objectives:
            add_rated(read, rated, objectives)
        else:
            add_ratings(read, rated, score)

    single: dict[str, list[tuple[int, Row]]] = {}
    for line, row in read_rows(source):
        try:
            if is_rating_of_one(row):
                single.setdefault(json.dumps(prompt_of(row), sort_keys=True), []).append((line, row))
            elif is_rating(row):
                add(Rated(prompt=prompt_of(row), answers=answers_of(row), line=line))
            elif objectives:
                raise DataError(f"{list_keys(row)} hold no ratings; valid: {RATINGS}")
            else:
                add_row(read, row, line)
        except DataError as error:
            read.wrong.append(str(DataError(error.problem, field=error.field, place=f"line {line}")))
    for rows in single.values():
        line, first = rows[0]
        answers = tuple((str(row["response"]), numbers_of(row)) for _, row in rows)
        try:
            add(Rated(prompt=prompt_of(first), answers=answers, line=line))
        except DataError as error:
            read.wrong.append(str(DataError(error.problem, field=error.field, place=f"line {line}")))
    return read


def read_rows(source: str) -> Iterator[tuple[int, Row]]:
    """(line, row), lines from 1; raises DataError for a line that is no JSON object."""
    path = Path(source)
    if not path.exists():
        yield from enumerate(read_hub(source), 1)
        return
    if path.suffix == ".parquet":
        from pyarrow.parquet import ParquetFile

        rows = (row for batch in ParquetFile(path).iter_batches() for row in batch.to_pylist())
        yield from enumerate(rows, 1)
        return
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"is no UTF-8 at byte {error.start}", place=source) from None
    yield from parse_rows(text, source)


def parse_rows(text: str, source: str) -> Iterator[tuple[int, Row]]:
    """The rows of JSON lines, or of one document: a list of rows, or one row."""
    lines = text.splitlines()
    if not isinstance(load_json(lines[0] if lines else ""), Mapping) and (whole := load_json(text)) is not None:
        for number, row in enumerate(whole if isinstance(whole, list) else [whole], 1):
            yield number, check_row(row, f"{source}, row {number}")
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"is no JSON: {error}", place=f"{source}, line {number}") from None
        yield number, check_row(row, f"{source}, line {number}")


def check_row(row: Any, place: str) -> Row:
    if not isinstance(row, Mapping):
        raise DataError("must be a JSON object", place=place)
    return row


def load_json(text: str) -> Any:
    """None for what is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def read_hub(name: str) -> Iterator[Row]:
    """Rows of a dataset's split "train", or of "name:split"."""
    from datasets import load_dataset

    repository, _, split = name.partition(":")
    yield from load_dataset(repository, split=split or "train")


def list_keys(row: Row) -> str:
    return f"the keys {', '.join(sorted(map(str, row)))}" if row else "no keys"


def add_row(read: Preferences, row: Row, line: int) -> None:
    """Raises DataError for a row of none of the forms that hold pairs."""
    for key, parts in (("comparisons", ("chosen", "rejected")), ("edits", ("after", "before"))):
        if isinstance(row.get(key), list):
            for item in row[key]:
                add_pair(read, prompt_of(item), item.get(parts[0]), item.get(parts[1]), line, parts)
    if {"comparisons", "edits"} & row.keys():
        return
    if {"response1", "response2"} <= row.keys():
        return add_vote(read, row, line)
    if {"before", "after"} <= row.keys():
        return add_pair(read, prompt_of(row), row["after"], row["before"], line, ("after", "before"))
    if {"chosen", "rejected"} <= row.keys():
        try:
            prompt, chosen, rejected = split_prompt(row)
        except DifferentConversations:
            read.dropped["the answers are to different conversations"] += 1
            return
        return add_pair(read, prompt, chosen, rejected, line, ("chosen", "rejected"))
    raise DataError(
        f"no preference in {list_keys(row)}; valid: prompt, chosen and rejected; {RATINGS}; "
        "response1, response2 and annotators"
    )


def add_pair(
    read: Preferences, prompt: tuple[Message, ...], chosen: Any, rejected: Any, line: int, names: tuple[str, str]
) -> None:
    texts = [text_of(value, name) for value, name in zip((chosen, rejected), names, strict=True)]
    if not all(text.strip() for text in texts):
        read.dropped["an answer is empty"] += 1
    elif texts[0] == texts[1]:
        read.dropped["both answers are the same"] += 1
    else:
        read.pairs.append(Pair(prompt=prompt, chosen=texts[0], rejected=texts[1], line=line))


def add_vote(read: Preferences, row: Row, line: int) -> None:
    """Two answers and the votes of people: the majority's, who do not say neither."""
    votes = [value for key, value in row.items() if key.startswith("annotator")]
    if not votes or not all(vote in (0, 1, 2) for vote in votes):
        raise DataError(f"votes are 0, 1 or 2, one or more; got {votes}", field="annotator1")
    first, second = votes.count(1), votes.count(2)
    if first == second or max(first, second) * 2 <= len(votes):
        read.dropped["no majority prefers either answer"] += 1
        return
    better, worse = ("response1", "response2") if first > second else ("response2", "response1")
    add_pair(read, prompt_of(row), row[better], row[worse], line, (better, worse))


def add_ratings(read: Preferences, rated: Rated, score: str | None) -> None:
    """Pairs of all answers of unequal scores."""
    name = check_scores(
        rated, score or next((n for n in SCORES if all(n in scores for _, scores in rated.answers)), None)
    )
    before = len(read.pairs)
    for (a, scores_a), (b, scores_b) in combinations(rated.answers, 2):
        if scores_a[name] == scores_b[name]:
            continue
        better, worse = (a, b) if scores_a[name] > scores_b[name] else (b, a)
        add_pair(read, rated.prompt, better, worse, rated.line, ("response", "response"))
    if len(read.pairs) == before:
        read.dropped["all scores are equal"] += 1


def add_rated(read: Preferences, rated: Rated, objectives: Sequence[str]) -> None:
    """The answers that say anything, once each, where there are two at least."""
    for name in objectives:
        check_scores(rated, name)
    answers = {text: scores for text, scores in rated.answers if text.strip()}
    if len(answers) < 2:
        read.dropped["fewer than two answers"] += 1
        return
    read.rated.append(replace(rated, answers=tuple(answers.items())))


def check_scores(rated: Rated, name: str | None) -> str:
    """Raises DataError where an answer has none of that name."""
    if name is None or not all(name in scores for _, scores in rated.answers):
        having = sorted({key for _, scores in rated.answers for key in scores})
        raise DataError(f"not every answer has a score {name or 'of a known name'!r}; scores: {', '.join(having)}")
    return name


def is_rating(row: Row) -> bool:
    return "completions" in row or {"responses", "scores"} <= row.keys()


def is_rating_of_one(row: Row) -> bool:
    return "response" in row and "chosen" not in row and bool(numbers_of(row))


def answers_of(row: Row) -> tuple[tuple[str, Mapping[str, float]], ...]:
    if "completions" in row:
        items = row["completions"]
        if not isinstance(items, list) or not all(isinstance(i, Mapping) and "response" in i for i in items):
            raise DataError("must be a list of objects with a `response` and scores", field="completions")
        return tuple((text_of(item["response"], "completions"), numbers_of(item)) for item in items)
    texts, scores = row["responses"], row["scores"]
    if not isinstance(texts, list) or not isinstance(scores, list) or len(texts) != len(scores):
        raise DataError("must be a list as long as `responses`", field="scores")
    return tuple(
        (text_of(text, "responses"), {"score": as_number(value, "scores")})
        for text, value in zip(texts, scores, strict=True)
    )


def numbers_of(row: Row) -> dict[str, float]:
    """Scores by name; those within `annotations`, as UltraFeedback has them, too."""
    numbers = {key: float(v) for key, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    for key, value in (row.get("annotations") or {}).items() if isinstance(row.get("annotations"), Mapping) else ():
        rating = value.get("Rating", value.get("rating")) if isinstance(value, Mapping) else None
        try:
            numbers.setdefault(str(key), float(rating))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
    return numbers


def as_number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"must be numbers; got {str(value)[:40]!r}", field=name)
    return float(value)


def split_prompt(row: Row) -> tuple[tuple[Message, ...], Any, Any]:
    """(prompt, chosen, rejected), the prompt being what both begin with where the row does not say it."""
    chosen, rejected = row["chosen"], row["rejected"]
    explicit = {"prompt", "messages", "instruction"} & row.keys()
    if isinstance(chosen, str) and isinstance(rejected, str) and not explicit:
        if TURN.match(chosen) and TURN.match(rejected):
            return split_transcripts(chosen, rejected)
        length = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), 0)
        common = chosen[: max(chosen.rfind(" ", 0, length), chosen.rfind("\n", 0, length)) + 1]
        if not common.strip():
            raise DataError("is missing, and chosen and rejected have no common beginning", field="prompt")
        return user_says(common.strip()), chosen[len(common) :], rejected[len(common) :]
    if isinstance(chosen, list) and isinstance(rejected, list) and not explicit:
        turns = [messages_of(value, name) for value, name in ((chosen, "chosen"), (rejected, "rejected"))]
        if turns[0][:-1] != turns[1][:-1]:
            raise DifferentConversations
        return check_prompt(turns[0][:-1], "chosen"), turns[0][-1]["content"], turns[1][-1]["content"]
    return prompt_of(row), chosen, rejected


def split_transcripts(chosen: str, rejected: str) -> tuple[tuple[Message, ...], str, str]:
    """Of Anthropic's HH: the transcripts share all turns but the last, the assistant's."""
    turns = [list(parse_transcript(text)) for text in (chosen, rejected)]
    for name, made in zip(("chosen", "rejected"), turns, strict=True):
        if len(made) < 2 or made[-1]["role"] != "assistant":
            raise DataError("must end with a turn of the assistant's", field=name)
    if turns[0][:-1] != turns[1][:-1]:
        raise DifferentConversations
    return check_prompt(tuple(turns[0][:-1]), "chosen"), turns[0][-1]["content"], turns[1][-1]["content"]


def parse_transcript(text: str) -> Iterator[Message]:
    _, *pieces = TURN.split(text)
    for speaker, words in zip(pieces[::2], pieces[1::2], strict=True):
        yield {"role": "user" if speaker == "Human" else "assistant", "content": words.strip()}


def prompt_of(row: Row) -> tuple[Message, ...]:
    """The conversation that a row's answers are to."""
    for name in ("messages", "prompt", "instruction"):
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            more = row.get("input") if name == "instruction" else None
            return user_says(f"{value}\n\n{more}" if isinstance(more, str) and more.strip() else value)
        if isinstance(value, list):
            return check_prompt(messages_of(value, name), name)
    raise DataError("is missing: a text, or a list of messages", field="prompt")


def user_says(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


def check_prompt(messages: tuple[Message, ...], name: str) -> tuple[Message, ...]:
    if not messages or messages[-1]["role"] == "assistant":
        raise DataError("must end with a message that the assistant answers", field=name)
    return messages


def messages_of(value: Any, name: str) -> tuple[Message, ...]:
    """Raises DataError for what are no messages of texts."""
    made = []
    for i, message in enumerate(value):
        at = f"{name}.{i}"
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise DataError(f"must be an object whose role is one of {', '.join(ROLES)}", field=at)
        if not isinstance(message.get("content"), str):
            raise DataError("must be a text", field=f"{at}.content")
        made.append({"role": message["role"], "content": message["content"]})
    return tuple(made)


def text_of(value: Any, name: str) -> str:
    """An answer: a text, or the one message of the assistant's."""
    if isinstance(value, list):
        [*before, last] = messages_of(value, name) or ({"role": "", "content": ""},)
        if before or last["role"] != "assistant":
            raise DataError("must be a text, or one message of the assistant's", field=name)
        return last["content"]
    if not isinstance(value, str):
        raise DataError(f"must be a text; got {str(value)[:40]!r}", field=name)
    return value


def percentiles(lengths: Iterable[int]) -> dict[str, int]:
    """10, 50, 90, 99 and 100 % are at most so long."""
    ordered = sorted(lengths)
    if not ordered:
        return {}
    return {f"p{p}": ordered[min(len(ordered) - 1, p * len(ordered) // 100)] for p in (10, 50, 90, 99, 100)}
