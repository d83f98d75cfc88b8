"""Records on disk that a later run goes on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.bench.eval.inputs import EvalError

Record = Mapping[str, Any]


def digest(*parts: Any) -> str:
    """The same for the same JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def has_records(path: Path) -> bool:
    """Whether a file has anything in it: a run that did not begin leaves an empty one."""
    return path.exists() and path.stat().st_size > 0


class Archive:
    """A file of JSON lines that grows; each record is under its `key`, and the last under a key holds."""

    def __init__(self, path: Path) -> None:
        """Reads what is there, without a last line that was cut off. Raises EvalError."""
        self.records: dict[str, Record] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
            self._file.seek(0)
            content = self._file.read()
            whole = content.rfind(b"\n") + 1
            self._file.truncate(whole)
        except OSError as error:
            raise EvalError(f"--out: {path}: {error.strerror}") from None
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                record = json.loads(line)
                self.records[record["key"]] = record
            except (ValueError, KeyError, TypeError):
                raise EvalError(f"--resume: {path}: line {number} is no record of an evaluation") from None

    def add(self, record: Record) -> None:
        self.records[record["key"]] = record
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
