"""Imports point one way, and vLLM stays in its room.

What a test or a benchmark needs, no production module may lean on.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = "trimtab"

ALLOWED: dict[str, tuple[str, ...]] = {
    "decoders": ("decoders", "preferences.preference_direction"),
    "preferences": ("preferences", "decoders.protocols"),
    "rewards": (
        "rewards",
        "decoders.protocols",
        "decoders.registry",
        "decoders.shared.final_answer",
        "decoders.shared.numbers",
        "decoders.shared.gather",
    ),
    "runtime": ("runtime", "decoders.protocols", "decoders.report", "decoders.shared.candidates"),
    "engine": ("engine", "runtime", "decoders.protocols", "decoders.report", "decoders.shared.gather"),
    "server": ("server", "engine", "runtime", "rewards", "preferences", "decoders"),
    "training": (
        "training",
        "bench.intervals",
        "preferences.preference_direction",
        "runtime.contexts",
        "server.config",
        "server.request.messages",
        "server.request.preference_prompts",
    ),
}
"""package -> what of ours it may import, itself included."""

COMMANDS = {"server/cli.py": {"bench.load.cli", "bench.eval.cli", "training.cli"}}
"""`trimtab load`, `eval` and `train` come with the server: their commands are handed on, and nothing else of bench and
of training known."""

MOUNT = "server/http/vllm_app.py"
"""The one file outside engine/ that knows vLLM."""


@cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@cache
def nodes(file: Path) -> list[ast.AST]:
    """All of its tree: to walk it takes longer than to parse it."""
    return list(ast.walk(parse(file)))


def statements(file: Path) -> list[ast.stmt]:
    """Its imports, wherever they stand."""
    return [n for n in nodes(file) if isinstance(n, ast.Import | ast.ImportFrom)]


@cache
def imported(file: Path, *, at_start: bool = False) -> set[str]:
    """Dotted names of every module that the file imports, ours without `trimtab.`; `at_start`: while it is imported."""
    names: set[str] = set()
    for node in parse(file).body if at_start else statements(file):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            # `from trimtab.engine import lora` names a module, `from trimtab.engine.lora import Adapter` a class.
            deeper = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {name for name in deeper if (ROOT / name.replace(".", "/")).with_suffix(".py").exists()} or {
                str(node.module)
            }
    return {name.removeprefix(f"{OURS}.") for name in names}


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    for file in files(package):
        for name in imported(file) - COMMANDS.get(str(file.relative_to(ROOT)), set()):
            if name.split(".")[0] in {*ALLOWED, "bench", "recipes", "tests"}:
                assert any(is_within(name, allowed) for allowed in ALLOWED[package]), f"{file} imports {name}"


def find_bare_imports(file: Path) -> list[str]:
    """Those of ours without `trimtab.`."""
    bare = "|".join((*ALLOWED, "bench", "recipes"))
    if re.search(rf"(?m)^.*\bimport\b.*\b({bare})\b|\bfrom\s+({bare})\b", file.read_text()) is None:
        return []  # most: there is nothing to parse
    names: list[str] = []
    for node in statements(file):
        names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
    return [name for name in names if re.fullmatch(bare, name.split(".")[0])]


def test_there_is_one_import_path() -> None:
    """`import server` works in a checkout by accident of the working directory, and nowhere else."""
    for folder in (*ALLOWED, "bench", "recipes", "tests", "docker"):
        for file in files(folder):
            assert not (bare := find_bare_imports(file)), f"{file} imports {bare[0]}: write trimtab.{bare[0]}"


@pytest.mark.parametrize(
    "line", ["import server", "import os, rewards.turns as t", "def f():\n    from bench import load"]
)
def test_a_bare_import_is_seen(tmp_path: Path, line: str) -> None:
    (file := tmp_path / "file.py").write_text(f"import numpy\n{line}\n")
    assert len(find_bare_imports(file)) == 1


def test_vllm_stays_in_its_room() -> None:
    for package in ALLOWED:
        for file in files(package):
            where = str(file.relative_to(ROOT))
            if package != "engine" and where != MOUNT:
                assert not any(is_within(name, "vllm") for name in imported(file)), f"{where} imports vllm"


def test_no_module_imports_itself_by_way_of_others() -> None:
    modules = {str(f.relative_to(ROOT).with_suffix("")).replace("/", "."): f for p in ALLOWED for f in files(p)}
    graph = {name: imported(file, at_start=True) & modules.keys() for name, file in modules.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names them


CONTRACT = ("decoders.protocols", "decoders.report", "decoders.registry")


def test_a_strategy_knows_no_other() -> None:
    for file in (ROOT / "decoders").glob("*.py"):
        if file.stem in ("__init__", "protocols", "report", "registry"):
            continue
        ours = {name for name in imported(file) if is_within(name, "decoders")}
        assert all(is_within(name, "decoders.shared") or name in CONTRACT for name in ours), file


@pytest.mark.parametrize("package", ALLOWED)
def test_no_folder_is_crowded(package: str) -> None:
    for folder in {file.parent for file in files(package)}:
        if is_within(str(folder.relative_to(ROOT)).replace("/", "."), "server"):
            assert len(list(folder.glob("*.py"))) <= 14, f"{folder} holds more than 14 files: it is two rooms"
