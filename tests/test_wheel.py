"""A wheel holds `trimtab/` and its dist-info alone, with all that `trimtab serve` needs, and an sdist makes the same.

Built with the setuptools of this environment, so nothing is fetched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from trimtab.server.config import Config, load

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
NO_SOURCE = (".*", "build", "dist", "out", "__pycache__", "*.egg-info")
NAMESAKES = ("engine", "server", "rewards")
"""Packages that somebody else may well have in the folder that they serve from."""


def build(source: Path, kind: str, folder: Path) -> Path:
    """A wheel or an sdist of `source`, in `folder`."""
    code = f"from setuptools.build_meta import build_{kind} as build; print(build({str(folder)!r}))"
    folder.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout: what an earlier build left in build/ would go into the wheel."""
    folder = tmp_path_factory.mktemp("source") / "trimtab"
    shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*NO_SOURCE))
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a wheel would put into site-packages."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def contents(wheel: Path) -> dict[str, bytes]:
    """name -> what is in it, without the list of hashes"""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")}


def models(config: Config) -> set[str]:
    """Every path and name of a model that a configuration holds."""
    named = {config.base, config.auto_weights, *(guide.model for guide in config.guides.values())}
    return {str(name) for name in {*named, *(reward.model for reward in config.rewards.values())} if name is not None}


def test_it_holds_trimtab_alone(wheel: Path) -> None:
    names = contents(wheel).keys()
    assert {name.split("/")[0] for name in names} == {"trimtab", "trimtab-0.1.0.dist-info"}
    assert not [name for name in names if re.search(r"(^|/)(tests?|conftest\.py|docker|docs)(/|$)", name)]


def test_it_holds_every_module(wheel: Path) -> None:
    packages = [path.name for path in (ROOT / "trimtab").iterdir() if path.is_symlink() and path.name != "demo"]
    modules = {f"trimtab/{file.relative_to(ROOT)}" for name in packages for file in (ROOT / name).rglob("*.py")}
    assert "trimtab/server/http/app.py" in modules
    assert {name for name in contents(wheel) if name.endswith(".py")} == modules | {"trimtab/__init__.py"}


@pytest.mark.parametrize("folder", ["bench/load", "demo/settings"])
def test_it_is_typed_and_the_clients_have_their_files(folder: str, wheel: Path) -> None:
    names = contents(wheel).keys()
    assert "trimtab/py.typed" in names
    documents = {f"trimtab/{file.relative_to(ROOT)}" for file in (ROOT / folder).rglob("*.yaml")}
    assert documents
    assert documents <= names


def test_it_holds_the_playground(wheel: Path) -> None:
    held = {name: content for name, content in contents(wheel).items() if "server/playground/" in name}
    files = [file for file in (ROOT / "server/playground").rglob("*") if file.is_file()]
    assert ROOT / "server/playground/index.html" in files
    assert held == {f"trimtab/{file.relative_to(ROOT)}": file.read_bytes() for file in files}


@pytest.mark.parametrize("name", sorted(file.name for file in (ROOT / "demo").glob("*.yaml")))
def test_it_holds_the_demo_s_models(name: str, installed: Path) -> None:
    demo = installed / "trimtab/demo"
    for model in models(load(demo / name)):
        folder = Path(model)
        assert demo in folder.parents, f"{name} names {model}, which the wheel lacks"
        here = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
        there = ROOT / "demo" / folder.relative_to(demo)
        assert here == sorted(file.relative_to(there) for file in there.rglob("*") if file.is_file())
        assert any(file.suffix == ".safetensors" for file in here)


def test_its_entry_points(installed: Path) -> None:
    points = ConfigParser()
    points.read(installed / "trimtab-0.1.0.dist-info/entry_points.txt")
    assert {section: dict(points[section]) for section in points.sections()} == {
        "console_scripts": {"trimtab": "trimtab.server.cli:main"},
        "vllm.general_plugins": {"trimtab": "trimtab.engine.plugin:register"},
    }


def test_among_namesakes_it_finds_itself_and_the_demo(installed: Path, tmp_path: Path) -> None:
    for name in NAMESAKES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not ours')")
    code = "import json; from trimtab.server import cli, config; print(json.dumps([str(cli.DEMO), cli.__file__]))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    demo, module = json.loads(done.stdout)
    assert Path(demo) == installed / "trimtab/demo/config.yaml"
    assert Path(demo).exists()
    assert Path(module) == installed / "trimtab/server/cli.py"


def test_an_sdist_makes_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    sdist = build(source, "sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    rebuilt = build(tmp_path / "trimtab-0.1.0", "wheel", tmp_path / "wheel")
    assert contents(rebuilt) == contents(wheel)
