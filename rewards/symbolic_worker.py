"""The process that evaluates formulas for `rewards/symbolic.py`, run as a script: it imports nothing of ours."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys

SECONDS = 1
"""Processor time that a pair may take."""
MEMORY = 2 << 30
"""Bytes of address space, of which a third is the libraries'."""


def serve() -> None:
    """Answers each line [right, answer] of stdin by true or false, until stdin ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify  # 0.5 s

    kinds = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process, whatever that is in
        try:
            right, answer = (parse(f"${text}$", kinds, parsing_timeout=None) for text in json.loads(line))
            equal = verify(right, answer, timeout_seconds=None)
        except (Exception, RecursionError, MemoryError):
            equal = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(f"{json.dumps(bool(equal))}\n")
        replies.flush()


if __name__ == "__main__":
    serve()
