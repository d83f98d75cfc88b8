r"""Whether two expressions are equal, by `math-verify`: 1+x and x+1, \sqrt{16} and 4, {1, 2} and {2, 1}, intervals.

To compare is to evaluate what a model wrote, and 9^{9^9} holds an interpreter until its memory is gone; no thread's
timeout ends it. So it is done in a process of its own (`symbolic_worker.py`), one of a server, started by the first
pair that needs it (0.5 s, 60 MB). A pair that takes too much there ends the process and counts as unequal. Pairs wait
in turn, and what was compared is remembered.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from trimtab.rewards.protocols import RewardError

WORKER = Path(__file__).with_name("symbolic_worker.py")
REMEMBERED = 4096
"""Pairs whose outcome is remembered."""

_WORDS = re.compile(
    r"\\(?:begin|end)\s?\{[a-z*]+\}(?:\{[a-z|]+\})?|_\s?\{[A-Za-z0-9]+\}|\\[A-Za-z]+|\\(?:text|mathrm|mathbf|textbf)\s?\{[^{}]*\}|\b(?:and|or|sqrt|pi|infty|inf|oo|sin|cos|tan|log|ln|exp|[dyuanms]{2})\b"
)
_TOWER = re.compile(
    r"[0-9)}!]\s?(?:\^|\*\*)\s?[{(]?\s?[0-9]+\s?[)}]?\s?(?:\^|\*\*|!)|(?:\^|\*\*)\s?[{(]?\s?[0-9]{4}|[0-9]{4}\s?!|!\s?!"
)
"""Numbers that nobody could write out, which are no answers."""

_TO_LATEX = (
    (re.compile(r"\\?\$|\\[()\[\]](?![A-Za-z])"), " "),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<!\\)\bsqrt\s?\(([^()]*)\)|√\(([^()]*)\)|√\s?([0-9]+|[a-z])"), r"\\sqrt{\1\2\3}"),
    (re.compile(r"(?<!\\)\bpi\b|π"), r"\\pi "),
    (re.compile("∞"), r"\\infty "),
    (re.compile("≤"), r"\\le "),
    (re.compile("≥"), r"\\ge "),
    (re.compile("∪"), r"\\cup "),
    (re.compile("∈"), r"\\in "),
    (re.compile("[×·⋅]"), r"\\cdot "),
    (re.compile("−"), "-"),
    (re.compile("±"), r"\\pm "),
    (re.compile(r",?\s*(?:\\text\s?\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))"), ","),
)


def is_formula(text: str) -> bool:
    """Whether it is mathematics, and of a size that can be evaluated, rather than words."""
    bare = _WORDS.sub(" ", text)
    return (
        re.search(r"[0-9\\^=+<>\[({]|√|π|∞", text) is not None
        and re.search(r"[^\W\d_]{3}", bare) is None
        and _TOWER.search(text) is None
    )


async def are_equal(right: str, answer: str) -> bool:
    """Whether `answer` is what `right` is; False, too, for what cannot be read or takes too long."""
    return await asyncio.get_running_loop().run_in_executor(_thread, _compare, right, answer)


def write_latex(text: str) -> str:
    for pattern, replacement in _TO_LATEX:
        text = pattern.sub(replacement, text)
    return text.strip()


class Evaluator:
    """The process. Not for several threads at once."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def compare(self, right: str, answer: str) -> bool:
        """Raises RewardError where the process cannot work at all, for want of `math-verify` say."""
        for _ in range(2):
            process = self._process = self._process or self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps([right, answer]) + "\n")
                process.stdin.flush()
            except BrokenPipeError:  # it died since the last pair
                self.close()
                continue
            reply = process.stdout.readline()
            if not reply and self.close() > 0:
                break
            return reply == "true\n"  # no reply: this pair was too dear
        raise RewardError("the process that compares formulas does not run; its error is on the server's stderr")

    def close(self) -> int:
        """Ends it, if it has not ended itself. Returns its exit status, negative for a signal."""
        process, self._process = self._process, None
        if process is None:
            return 0
        assert process.stdout is not None
        process.stdout.close()
        with suppress(BrokenPipeError):
            process.communicate()
        return process.returncode

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-P", str(WORKER)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="symbolic")
_evaluator = Evaluator()
atexit.register(_evaluator.close)


@lru_cache(maxsize=REMEMBERED)
def _compare(right: str, answer: str) -> bool:
    return _evaluator.compare(write_latex(right), write_latex(answer))
