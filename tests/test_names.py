"""Names: functions are verbs, a class name means one class, and words that meant eight things are not used.

What a test can hold of the rule; the rest of it (the field's own words) is for a reader.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from tests.test_imports import nodes, parse

ROOT = Path(__file__).parent.parent

CLEAN = ("bench", "decoders", "engine", "preferences", "recipes", "rewards", "runtime", "server", "training")
"""The packages that are held to the rule."""


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


IRREGULAR = words("""
    begun bent blown born borne bought brought built caught chosen cut dealt done drawn fed felt flown forgotten
    found frozen given gone grown heard held hidden kept known led left lent lost made meant met paid rung seen sent
    shown sold spelt spent spoken spun stood stuck sung swum taken taught thought thrown told torn understood woken won
    worn wound written said struck
""")
"""Past participles without a regular ending. Those that are a verb's first form too (read, run, put) are verbs here."""

VERBS = words("""
    bring embed exceed feed flatten happen lengthen listen need open ping proceed ring seed shed shorten sing speed
    straighten string succeed tighten widen
""")
"""They only look like participles."""

FORBIDDEN = frozenset({"told", "said", "given", "asked", "found", "kept", "own", "want"})
"""Each of them has stood for many things: there is always a word that says which."""

FIELDS = frozenset({"given"})
"""Forbidden words that are fields of the HTTP contract, and so of the records that carry them."""


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def is_participle(name: str) -> bool:
    word = name.strip("_")
    return word not in VERBS and (word in IRREGULAR or re.fullmatch(r"[a-z]+(ed|en|ing)", word) is not None)


def bindings(tree: list[ast.AST]) -> Iterator[tuple[str, int]]:
    """(name, line) of all that a module names itself: functions, classes, parameters, attributes, variables."""
    fields = {
        statement.target
        for node in tree
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
    }
    for node in tree:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name, node.lineno
            case ast.arg() if node.arg not in FIELDS:
                yield node.arg, node.lineno
            case ast.Name(ctx=ast.Store()) if not (node in fields and node.id in FIELDS):
                yield node.id, node.lineno
            case ast.Attribute(ctx=ast.Store()) if node.attr not in FIELDS:
                yield node.attr, node.lineno
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name, node.lineno
            case ast.alias(asname=str(name)):
                yield name, node.lineno


def are_confusable(a: str, b: str) -> bool:
    """Whether two names differ by a letter, or one is the other's plural."""
    short, long = sorted((a, b), key=len)
    if long in (f"{short}s", f"{short}es", f"{short[:-1]}ies"):
        return True
    if len(short) == len(long):
        return sum(x != y for x, y in zip(short, long, strict=True)) == 1
    return any(short == long[:i] + long[i + 1 :] for i in range(len(long)))


@pytest.mark.parametrize("package", CLEAN)
def test_no_function_is_named_by_a_bare_participle(package: str) -> None:
    named = [
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"
        for file in files(package)
        for node in parse(file).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and is_participle(node.name)
    ]
    assert not named, "a function does something: name it by a verb"


@pytest.mark.parametrize("package", CLEAN)
def test_no_forbidden_word_is_a_name(package: str) -> None:
    named = [
        f"{file.relative_to(ROOT)}:{line} {name}"
        for file in files(package)
        for name, line in bindings(nodes(file))
        if name.strip("_").lower() in FORBIDDEN
    ]
    assert not named, f"say which: {', '.join(sorted(FORBIDDEN))} mean too much"


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for package in CLEAN:
        for file in files(package):
            for node in nodes(file):
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not {name: where for name, where in places.items() if len(where) > 1}


@pytest.mark.parametrize("package", CLEAN)
def test_no_two_modules_are_a_letter_apart(package: str) -> None:
    folders = {file.parent for file in files(package)}
    for folder in folders:
        names = sorted({f.stem for f in folder.glob("*.py")} | {f.name for f in folders if f.parent == folder})
        assert not [pair for pair in combinations(names, 2) if are_confusable(*pair)], folder.relative_to(ROOT)
