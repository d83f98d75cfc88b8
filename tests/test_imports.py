"""Imports point one way: server -> engine, rewards, decoders; engine and rewards -> decoders.protocols.

What a test or a benchmark needs, none of them may lean on; and vLLM stays in its room.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("bench", "decoders", "engine", "recipes", "rewards", "server", "tests")

ALLOWED: dict[str, tuple[str, ...]] = {
    "decoders": ("decoders",),
    "engine": ("engine", "decoders.protocols"),
    "rewards": ("rewards", "decoders.protocols", "decoders.extract"),
    "server": ("server", "engine", "rewards", "decoders"),
}
"""package -> what of ours it may import, itself included."""

COMMANDS = {"server/cli.py": "bench.load.cli"}
"""`trimtab load` is a client that comes with the server: its command is handed on, and nothing else of bench known."""

MOUNT = "server/vllm_app.py"
"""The one file outside engine/ that knows vLLM."""


def imported(file: Path) -> set[str]:
    """Dotted names of every module that the file imports, wherever in it the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            # Of `from engine import lora` the module is engine.lora; of `from engine.lora import Adapter`, engine.lora.
            deeper = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {name for name in deeper if (ROOT / name.replace(".", "/")).with_suffix(".py").exists()} or {
                str(node.module)
            }
    return names


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    for file in files(package):
        for name in imported(file) - {COMMANDS.get(str(file.relative_to(ROOT)))}:
            if name.split(".")[0] in OURS:
                assert any(within(name, allowed) for allowed in ALLOWED[package]), f"{file} imports {name}"


def test_vllm_stays_in_its_room() -> None:
    for package in ALLOWED:
        for file in files(package):
            where = str(file.relative_to(ROOT))
            if package != "engine" and where != MOUNT:
                assert not any(within(name, "vllm") for name in imported(file)), f"{where} imports vllm"


SHARED = (
    *("blocks", "candidates", "directions", "diverse", "extract", "jointly", "likeness", "mixing", "protocols"),
    *("rollouts", "streams", "tokenwise"),
)


def test_a_strategy_knows_no_other() -> None:
    for file in files("decoders"):
        if file.stem in ("__init__", "protocols", "toy"):
            continue
        ours = {name for name in imported(file) if within(name, "decoders")}
        shared = {f"decoders.{name}" for name in SHARED}
        assert ours <= shared, f"{file} imports {ours}"
