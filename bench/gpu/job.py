"""One case in a process of its own: `python -m trimtab.bench.gpu.job NAME RESULT [--quick] [--profile] [--apart]`.

RESULT is written after each new figure, so that those measured before a failure or a hang are not lost.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from trimtab.bench.gpu import parity, speed

TESTS = "tests/engine"
NEEDED = ("peft", "pytest", "pytest_asyncio")


def demo(folder: Path) -> dict[str, Any]:
    """The engine's own tests, which run on the GPU where there is one."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        return {"left_out": f"not installed: {', '.join(missing)}"}
    report = folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", TESTS, "-q", "-x", "-p", "no:cacheprovider", f"--junitxml={report}"]
    subprocess.run(command, check=False)
    return counts(report)


def counts(report: Path) -> dict[str, int]:
    """Of a JUnit report."""
    suite = ElementTree.parse(report).getroot()[0].attrib
    n = {kind: int(suite[kind]) for kind in ("tests", "failures", "errors", "skipped")}
    failed = n["failures"] + n["errors"]
    return {"passed": n["tests"] - failed - n["skipped"], "failed": failed, "skipped": n["skipped"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("result", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--apart", action="store_true")
    args = parser.parse_args()
    step, _, case = args.name.partition(".")

    def save(result: Any, *, finished: bool = False) -> None:
        part = args.result.with_suffix(".part")
        part.write_text(json.dumps({"finished": finished, "result": result}))
        part.replace(args.result)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures: Any
        if step == "parity":
            figures = parity.measure(case, folder)
        elif step == "speed":
            figures = speed.measure(case, folder, save, quick=args.quick, profile=args.profile, apart=args.apart)
        elif step == "search":
            from trimtab.bench.gpu import search  # and with it vLLM, before a GPU is measured alone

            figures = search.measure(folder, save, quick=args.quick)
        else:
            figures = demo(folder)
    save(figures, finished=True)


if __name__ == "__main__":
    main()
