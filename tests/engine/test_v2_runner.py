"""Model Runner V2, which is what runs on GPUs, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.test_parity import TOLERANCE

ROOT = Path(__file__).parents[2]


@pytest.mark.engine
def test_parity(members):
    """Mixed weights, chunks, queueing, seeds, scores, divergences, recycled rows, prefixes and an early close."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "engine" / "v2"), str(ROOT)])}
    paths = json.dumps({name: str(path) for name, path in members.items()})
    command = [sys.executable, "-m", "tests.engine.v2.parity", paths]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    worst = json.loads(done.stdout.splitlines()[-1])
    assert set(worst) == {"greedy", "seeded", "score", "divergence", "recycled", "interleaved"}
    assert max(worst.values()) <= TOLERANCE, worst
