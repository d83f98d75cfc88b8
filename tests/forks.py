"""`python -m tests.forks ARGUMENTS … -- ARGUMENTS …`: pytest once for each list of arguments, side by side.

Its processes share one import of vLLM, which takes ten seconds.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from itertools import groupby
from typing import IO

import pytest

import trimtab.server.http.app  # noqa: F401 - it imports what takes long

IMPORTED = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
"""Plugins of pytest's that vLLM imports have no tests whose assertions would be rewritten."""


def run_beside(arguments: list[str], output: IO[bytes]) -> int:
    """The id of a process that runs pytest so."""
    if process := os.fork():
        return process
    code = 70
    try:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        code = int(pytest.main(["-W", IMPORTED, *arguments]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # without what this process would do at its end


def main() -> int:
    """The largest of their exit statuses; each one's output comes whole."""
    lists = [list(words) for is_end, words in groupby(sys.argv[1:], lambda word: word == "--") if not is_end]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [open(os.path.join(folder, str(i)), "w+b") for i in range(len(lists))]  # noqa: SIM115
        processes = [run_beside(arguments, output) for arguments, output in zip(lists, outputs, strict=True)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        for output in outputs:
            output.seek(0)
            sys.stdout.buffer.write(output.read())
            output.close()
    return max(map(abs, codes))


if __name__ == "__main__":
    sys.exit(main())
