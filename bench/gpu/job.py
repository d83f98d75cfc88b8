"""One case in a process of its own: `python -m trimtab.bench.gpu.job NAME RESULT [--quick] [--profile] [--apart]`.

RESULT is written whenever there is more to tell, so that what was measured before the case failed or hung is not lost.
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
    told = {kind: int(suite[kind]) for kind in ("tests", "failures", "errors", "skipped")}
    failed = told["failures"] + told["errors"]
    return {"passed": told["tests"] - failed - told["skipped"], "failed": failed, "skipped": told["skipped"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("result", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--apart", action="store_true")
    asked = parser.parse_args()
    step, _, case = asked.name.partition(".")

    def tell(result: Any, *, finished: bool = False) -> None:
        part = asked.result.with_suffix(".part")
        part.write_text(json.dumps({"finished": finished, "result": result}))
        part.replace(asked.result)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found: Any
        if step == "parity":
            found = parity.measure(case, folder)
        elif step == "speed":
            found = speed.measure(case, folder, tell, quick=asked.quick, profile=asked.profile, apart=asked.apart)
        elif step == "search":
            from trimtab.bench.gpu import search  # and with it vLLM, before a GPU is measured alone

            found = search.measure(folder, tell, quick=asked.quick)
        else:
            found = demo(folder)
    tell(found, finished=True)


if __name__ == "__main__":
    main()
