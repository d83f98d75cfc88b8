"""Preferences in every form that they come in, and what is none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.training.data import DataError, percentiles, read_preferences

HI = [{"role": "user", "content": "hi"}]
USER = ({"role": "user", "content": "hi"},)


def write(folder: Path, *rows: Any) -> str:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


FORMS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "hi", "chosen": "a", "rejected": "b"},
    "messages": {
        "prompt": HI,
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    },
    "an implicit prompt of messages": {
        "chosen": [*HI, {"role": "assistant", "content": "a"}],
        "rejected": [*HI, {"role": "assistant", "content": "b"}],
    },
    "an implicit prompt of texts": {"chosen": "hi a", "rejected": "hi b"},
    "transcripts": {"chosen": "\n\nHuman: hi\n\nAssistant: a", "rejected": "\n\nHuman: hi\n\nAssistant: b"},
    "completions": {
        "instruction": "hi",
        "completions": [{"response": "b", "overall_score": 2}, {"response": "a", "overall_score": 3.5}],
    },
    "annotations": {
        "instruction": "hi",
        "completions": [
            {"response": "b", "annotations": {"helpfulness": {"Rating": "2"}}},
            {"response": "a", "annotations": {"helpfulness": {"Rating": "4"}}},
        ],
    },
    "scores": {"prompt": "hi", "responses": ["b", "a"], "scores": [0.1, 0.2]},
    "votes": {
        **{"instruction": "hi", "input": "", "response1": "b", "response2": "a"},
        **{"annotator1": 2, "annotator2": 1, "annotator3": 2},
    },
    "a comparison": {"messages": HI, "chosen": "a", "rejected": "b"},
    "an edit": {"prompt": "hi", "before": "b", "after": "a"},
    "a body of infer": {"comparisons": [{"prompt": "hi", "chosen": "a", "rejected": "b"}], "edits": []},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_one_pair(tmp_path: Path, form: str) -> None:
    read = read_preferences(write(tmp_path, FORMS[form]))
    assert not read.wrong
    [pair] = read.pairs
    assert (pair.prompt, pair.chosen, pair.rejected, pair.line) == (USER, "a", "b", 1)


def test_ratings_of_one_answer_a_row_belong_together(tmp_path: Path) -> None:
    rows = [{"prompt": "hi", "response": text, "helpfulness": score} for text, score in (("b", 1), ("a", 4), ("c", 1))]
    read = read_preferences(write(tmp_path, *rows, {"prompt": "you", "response": "d", "helpfulness": 2}))
    assert [(p.chosen, p.rejected) for p in read.pairs] == [("a", "b"), ("a", "c")]
    assert read.dropped == {"all scores are equal": 1}


def test_pairs_go_by_the_score_that_is_named(tmp_path: Path) -> None:
    answers = [{"response": "a", "score": 1, "brevity": 5}, {"response": "b", "score": 2, "brevity": 3}]
    path = write(tmp_path, {"prompt": "hi", "completions": answers})
    assert [p.chosen for p in read_preferences(path).pairs] == ["b"]
    assert [p.chosen for p in read_preferences(path, score="brevity").pairs] == ["a"]
    [wrong] = read_preferences(path, score="kindness").wrong
    assert "kindness" in wrong
    assert "brevity, score" in wrong


DROPPED = {
    "an answer is empty": {"prompt": "hi", "chosen": " ", "rejected": "b"},
    "both answers are the same": {"prompt": "hi", "chosen": "a", "rejected": "a"},
    "no majority prefers either answer": {
        **{"instruction": "hi", "response1": "b", "response2": "a", "annotator1": 2, "annotator2": 1, "annotator3": 0},
    },
    "all scores are equal": {"prompt": "hi", "responses": ["b", "a"], "scores": [1, 1]},
    "the answers are to different conversations": {
        "chosen": "\n\nHuman: hi\n\nAssistant: a",
        "rejected": "\n\nHuman: ho\n\nAssistant: b",
    },
}


@pytest.mark.parametrize("reason", DROPPED)
def test_rows_without_a_preference_are_counted(tmp_path: Path, reason: str) -> None:
    read = read_preferences(write(tmp_path, DROPPED[reason], FORMS["texts"]))
    assert (len(read.pairs), read.dropped, read.wrong) == (1, {reason: 1}, [])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no preference": ({"question": "hi"}, "no preference in the keys question"),
    "no prompt": ({"chosen": "a", "rejected": "b"}, "prompt: is missing"),
    "a number": ({"prompt": "hi", "chosen": 3, "rejected": "b"}, "chosen: must be a text; got '3'"),
    "a role": ({"prompt": [{"role": "bot", "content": "x"}], "chosen": "a", "rejected": "b"}, "prompt.0: must be"),
    "no text": ({"prompt": [{"role": "user", "content": []}], "chosen": "a", "rejected": "b"}, "prompt.0.content"),
    "answered": (
        {"prompt": [*HI, {"role": "assistant", "content": "x"}], "chosen": "a", "rejected": "b"},
        "prompt: must end with a message that the assistant answers",
    ),
    "votes": ({"instruction": "x", "response1": "a", "response2": "b", "annotator1": 5}, "annotator1: votes are 0, 1"),
    "scores": ({"prompt": "hi", "responses": ["a", "b"], "scores": [1]}, "scores: must be a list as long"),
    "no answer": ({"chosen": "\n\nHuman: hi", "rejected": "\n\nHuman: hi"}, "chosen: must end with a turn of the"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_line_is_named(tmp_path: Path, case: str) -> None:
    row, message = WRONG[case]
    [wrong] = read_preferences(write(tmp_path, FORMS["texts"], row)).wrong
    assert wrong.startswith("line 2: ")
    assert message in wrong


def test_files_are_lines_or_documents_packed_or_not(tmp_path: Path) -> None:
    rows = [FORMS["texts"], FORMS["scores"]]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "one.json").write_text(json.dumps(rows))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    for name in ("a.json", "one.json", "b.jsonl.gz"):
        assert len(read_preferences(str(tmp_path / name)).pairs) == 2
    (tmp_path / "e.json").write_text("[1, 2]")
    with pytest.raises(DataError, match=r"e\.json, row 1: must be a JSON object"):
        read_preferences(str(tmp_path / "e.json"))
    (tmp_path / "c.jsonl").write_text(json.dumps(rows[0]) + "\n{no JSON\n")
    with pytest.raises(DataError, match=r"c\.jsonl, line 2: is no JSON"):
        read_preferences(str(tmp_path / "c.jsonl"))
    (tmp_path / "d.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no UTF-8"):
        read_preferences(str(tmp_path / "d.jsonl"))


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.Table.from_pylist([FORMS["texts"], FORMS["messages"] | {"prompt": HI}][:1]), tmp_path / "a.parquet"
    )
    assert len(read_preferences(str(tmp_path / "a.parquet")).pairs) == 1


def test_how_often_the_longer_one_was_chosen(tmp_path: Path) -> None:
    rows = [
        {"prompt": "hi", "chosen": a, "rejected": b} for a, b in (("aaa", "b"), ("a", "bbb"), ("a", "c"), ("aa", "b"))
    ]
    assert read_preferences(write(tmp_path, *rows)).longer_chosen == (1 + 0 + 0.5 + 1) / 4


def test_percentiles() -> None:
    assert percentiles(range(1, 101)) == {"p10": 11, "p50": 51, "p90": 91, "p99": 100, "p100": 100}
    assert percentiles([]) == {}
