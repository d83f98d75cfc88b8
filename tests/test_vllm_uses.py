"""The check of what we use of vLLM, on small packages of that name and on the vLLM that is installed."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tests import vllm_uses
from tests.vllm_source import Source

VLLM = {
    "vllm/__init__.py": "def __getattr__(name): ...",
    "vllm/args.py": """
        from dataclasses import dataclass, field
        from typing import overload

        @dataclass
        class Args:
            model: str
            seed: int = 0
            tokens: int = field(init=False)

            @classmethod
            def parse(cls, text: str) -> "Args": ...

            @property
            def config(self) -> "Config | None": ...

        class Config:
            def __init__(self, size, *, dtype="auto"):
                self.size = size
                self.dtype = dtype

        def start(args, /, *, port=80): ...
        """,
    "vllm/protocol.py": """
        from pydantic import BaseModel

        class Shared(BaseModel):
            id: str

        class Card(Shared):
            root: str | None = None
        """,
    "vllm/worker.py": """
        from abc import ABC, abstractmethod

        class Base(ABC):
            def __init__(self):
                self.rows = []

            def load(self, path, *, strict=True): ...
            async def run(self, step): ...

        class Worker(Base):
            @abstractmethod
            def name(self): ...
        """,
    "vllm/here/__init__.py": "from .there import thing as thing",
    "vllm/here/there.py": "thing = 1",
}
OURS = """
    import vllm.here
    from msgspec.structs import replace
    from vllm.args import Args, Config, start
    from vllm.here import there, thing
    from vllm.protocol import Card
    from vllm.worker import Worker

    class Mine(Worker):
        def load(self, path, *, strict=True):
            return super().load(path, strict=strict), self.rows, self.mine

        async def run(self, step):
            self.mine = vllm.here.thing

        def name(self):
            return Args.parse("x").config.size

    def use(args: Args, config: Config | None):
        there.thing = 2
        replace(args, seed=1)
        Card(id="x", root="y")
        start(Args("m", seed=3), port=1)
        return config.dtype, args.seed, [args.model for args in ()]
    """


def edit(file: str, before: str, after: str) -> dict[str, str]:
    assert before in VLLM[file]
    return {file: VLLM[file].replace(before, after)}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(dedent(text))
    return root


def problems(tmp_path: Path, files: dict[str, str], ours: str = OURS) -> list[str]:
    """What does not fit where these files differ from VLLM."""
    old = write(tmp_path / "old", VLLM)
    new = write(tmp_path / "new", {**VLLM, **files})
    code = write(tmp_path / "code", {"engine/mine.py": ours, "engine/other.py": "# vllm\n"})
    found = vllm_uses.check(code, old, new)
    assert all(files == {"engine/mine.py"} for files in found.values())
    return sorted(found)


def test_what_fits_is_no_problem(tmp_path: Path) -> None:
    assert problems(tmp_path, {}) == []


STOP = "@abstractmethod\n            def stop(self): ...\n\n            "
CHANGES: dict[str, tuple[dict[str, str], list[str]]] = {
    "a name is gone": (edit("vllm/args.py", "def start", "def begin"), ["vllm.args.start: no such name"]),
    "a method is gone": (edit("vllm/args.py", "def parse", "def read"), ["vllm.args.Args.parse: no such attribute"]),
    "a field is gone": (
        edit("vllm/args.py", "seed: int = 0", "root: int = 0"),
        ["vllm.args.Args(): takes no 'seed'", "vllm.args.Args.seed: no such attribute"],
    ),
    "an inherited field is gone": (
        edit("vllm/protocol.py", "id: str", "key: str"),
        ["vllm.protocol.Card(): needs 'key'", "vllm.protocol.Card(): takes no 'id'"],
    ),
    "a field is no parameter": (
        edit("vllm/args.py", "seed: int = 0", "seed: int = field(init=False)"),
        ["vllm.args.Args(): takes no 'seed'"],
    ),
    "a field is needed": (
        edit("vllm/args.py", "seed: int = 0", "root: str; seed: int = 0"),
        ["vllm.args.Args(): needs 'root'"],
    ),
    "a keyword is gone": (edit("vllm/args.py", "*, port", "*, where"), ["vllm.args.start(): takes no 'port'"]),
    "a keyword is needed": (edit("vllm/args.py", "port=80", "port, host"), ["vllm.args.start(): needs 'host'"]),
    "an argument is gone": (edit("vllm/args.py", "args, /, *", "*"), ["vllm.args.start(): takes 0 by position, not 1"]),
    "an attribute behind a property is gone": (
        edit("vllm/args.py", "self.size = size", "self.length = size"),
        ["vllm.args.Config.size: no such attribute"],
    ),
    "an attribute of self is gone": (
        edit("vllm/worker.py", "self.rows", "self.table"),
        ["vllm.worker.Worker.rows: no such attribute"],
    ),
    "an attribute that is replaced is gone": (
        {"vllm/here/there.py": "things = 1", "vllm/here/__init__.py": "thing = 1"},
        ["vllm.here.there.thing: no such name"],
    ),
    "an overridden method is gone": (
        edit("vllm/worker.py", "def run", "def step"),
        ["vllm.worker.Base.run: is gone, which Mine.run overrides"],
    ),
    "an overridden method gets a parameter": (
        edit("vllm/worker.py", "step)", "step, sizes)"),
        ["vllm.worker.Base.run: the override takes no 'sizes' at place 2"],
    ),
    "an overridden method gets a keyword": (
        edit("vllm/worker.py", "strict=True", "strict=True, dtype=None"),
        ["vllm.worker.Base.load: the override takes no 'dtype'"],
    ),
    "an overridden method is no longer async": (
        edit("vllm/worker.py", "async def", "def"),
        ["vllm.worker.Base.run: is a plain method, and the override is async"],
    ),
    "a method is to be defined": (
        edit("vllm/worker.py", "async def run", STOP + "async def run"),
        ["vllm.worker.Base.stop: is abstract, and Mine has none"],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_named(tmp_path: Path, change: str) -> None:
    files, expected = CHANGES[change]
    assert problems(tmp_path, files) == expected


def test_a_module_is_gone_and_its_names_are_elsewhere(tmp_path: Path) -> None:
    moved = {"vllm/protocol.py": "", "vllm/cards/new.py": VLLM["vllm/protocol.py"]}
    assert problems(tmp_path, moved) == ["vllm.protocol.Card: no such name"]
    shown = vllm_uses.table({"vllm.protocol.Card: no such name": {"a.py"}}, Source(tmp_path / "new"))
    assert shown == "vllm.protocol.Card: no such name\n    in a.py\n    defined by vllm.cards.new\n"


BRANCHES = """
    try:
        from vllm.new import Args
    except ImportError:
        from vllm.args import {name}
    Args(seed=1)
    """


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Args", ["vllm.args.Args(): needs 'model'"]),
        ("Other as Args", ["vllm.args.Other: no such name", "vllm.new: no such module"]),
    ],
)
def test_an_import_of_either_place_holds_where_one_does(tmp_path: Path, name: str, expected: list[str]) -> None:
    assert problems(tmp_path, {}, BRANCHES.format(name=name)) == expected


def test_a_name_of_a_module_in_a_text_is_looked_up(tmp_path: Path) -> None:
    assert problems(tmp_path, {}, 'PRELOAD = ["vllm.here.there", "vllm.here.gone", "vllm.plugins"]') == [
        "vllm.here.gone: no such module"
    ]


def test_a_local_name_hides_an_import(tmp_path: Path) -> None:
    ours = """
        from vllm.args import Args
        def one(Args): return Args(whatever=1)
        def other(): return [Args.whatever for Args in ()], lambda Args: Args.whatever
        """
    assert problems(tmp_path, {}, ours) == []


@pytest.mark.slow
def test_our_code_fits_the_installed_vllm() -> None:
    installed = vllm_uses.installed_folder()
    assert vllm_uses.check(vllm_uses.ROOT, installed, installed) == {}


@pytest.mark.slow
def test_every_import_is_looked_up(tmp_path: Path) -> None:
    """In an empty vLLM there is none of the modules that a search of the text finds."""
    (tmp_path / "vllm").mkdir()
    missing = vllm_uses.check(vllm_uses.ROOT, vllm_uses.installed_folder(), tmp_path)
    files = {f for package in vllm_uses.PACKAGES for f in (vllm_uses.ROOT / package).rglob("*.py")} - {Path(__file__)}
    texts = [file.read_text() for file in files]
    modules = {m for text in texts for m in re.findall(r"^ *from (vllm\.[\w.]+) import \w", text, re.MULTILINE)}
    assert len(modules) > 50
    assert {f"{module}: no such module" for module in modules} - {*missing} == set()


def run(monkeypatch: pytest.MonkeyPatch, capsys: Any, error: str, answers: list[Any]) -> tuple[int, str]:
    monkeypatch.setattr(vllm_uses, "NEXT", ("9.9.9", frozenset({"old: gone"})))
    monkeypatch.setattr(vllm_uses, "download", lambda version, target: error)
    monkeypatch.setattr(vllm_uses, "check", lambda *_: answers.pop(0))
    monkeypatch.setattr(vllm_uses.Source, "places", lambda *_: [])
    return vllm_uses.main(), capsys.readouterr().out


def test_it_fails_where_the_list_differs(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    known = {"old: gone": {"a.py"}}
    code, out = run(monkeypatch, capsys, "", [{}, known])
    assert (code, "1 uses of it do not fit\nold: gone\n    in a.py\n" in out) == (0, True)
    assert run(monkeypatch, capsys, "", [{}, {**known, "new: gone": {"a.py"}}])[0] == 1
    assert run(monkeypatch, capsys, "", [{}, {}])[0] == 1
    assert run(monkeypatch, capsys, "", [known, known])[0] == 1


def test_it_says_so_where_nothing_was_looked_up(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    code, out = run(monkeypatch, capsys, "no route to host", [{}])
    assert (code, "vLLM 9.9.9: not checked: its wheel could not be downloaded: no route to host" in out) == (0, True)


def test_a_wheel_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    error = vllm_uses.download("0.0.0", tmp_path / "cache" / "vllm-0.0.0")
    assert "vllm==0.0.0" in error
    assert list((tmp_path / "cache").iterdir()) == []
    assert sys.prefix not in error
