"""What our code uses of vLLM, looked up in a vLLM's source: `python -m tests.vllm_uses`, as `make check` runs it.

vLLM promises nothing of its insides, so an upgrade starts from a list: modules and names that are gone, calls and
overrides that no longer fit. It is made before the next version is installed, from the Python files of that version's
wheel, and has to be the list in `NEXT`. Looked up are imports; attributes of what is imported, of what is annotated
with vLLM's classes, and of `self`; the arguments of calls; and methods that override vLLM's. What a method does, or
what is reached through a value without an annotation, only a test can see.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from tests.vllm_source import (
    Class,
    Def,
    Function,
    Instance,
    MissingNameError,
    Source,
    Value,
    as_signature,
    bound_names,
    last_name,
    statements,
)

ROOT = Path(__file__).parent.parent
PACKAGES = ("bench", "engine", "recipes", "server", "tests")

NEXT: tuple[str, frozenset[str]] = ("0.33.0", frozenset())
"""The version after the one that is installed, and what of it our code does not fit yet."""

Problems = dict[str, set[str]]
"""what does not fit -> the files where"""


@dataclass(frozen=True)
class Inherited:
    """An instance of a class of ours that inherits from vLLM's: names of ours hide the rest."""

    base: Instance
    names: frozenset[str]
    closed: bool
    """Whether all that is no name of ours is the bases'."""


class Uses(ast.NodeVisitor):
    """Walks a file; `visit` of an expression gives its value, None where nothing is known of it."""

    def __init__(self, source: Source, module: str) -> None:
        self.source = source
        self.module = module
        self.problems: set[str] = set()
        self.overrides: dict[tuple[str, str], tuple[Function, Def]] = {}
        """(class, method) -> the base's, and ours in its place"""
        self.scopes: list[dict[str, Value | Inherited]] = [{}]

    def report(self, name: str, complaint: str) -> None:
        self.problems.add(f"{name}: {complaint}")

    def bind(self, name: str, value: Value | Inherited) -> None:
        self.scopes[-1][name] = value

    def look_up(self, name: str) -> Value | Inherited:
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), None)

    # Imports

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            value: Value = None
            if alias.name.split(".")[0] == "vllm":
                try:
                    value = self.source.module(alias.name)
                    value = value if alias.asname else self.source.module("vllm")
                except MissingNameError as error:
                    self.problems.add(str(error))
            self.bind(alias.asname or alias.name.split(".")[0], value)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            value: Value = None
            top = (node.module or "").split(".")[0]
            if top in ("vllm", "trimtab", "tests"):
                try:
                    value = self.source.resolve(node.module or "", alias.name)
                except MissingNameError as error:
                    if top == "vllm":
                        self.problems.add(str(error))
                value = value if is_vllm(value) else None  # ours is the type checker's
            self.bind(alias.asname or alias.name, value)

    def visit_Try(self, node: ast.Try) -> None:
        """One that catches ImportError holds in a version that has what any of its branches imports."""
        before = set(self.problems)
        branches = [h.body for h in node.handlers if "ImportError" in ast.unparse(h.type or ast.Name("BaseException"))]
        self.visit_all(node.body)
        for body in branches:
            if self.problems == before:
                break
            failed, self.problems = self.problems, set(before)
            self.visit_all(body)
            if self.problems != before:
                self.problems |= failed
        if not branches:
            self.visit_all([statement for handler in node.handlers for statement in handler.body])
        self.visit_all([*node.orelse, *node.finalbody])

    # Scopes

    def visit_all(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)

    def visit_FunctionDef(self, node: Def) -> None:
        self.visit_all([*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)])
        self.bind(node.name, None)
        me = self.look_up("self")
        self.scopes.append({})
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        for argument in filter(None, every):
            self.bind(argument.arg, self.annotated(argument.annotation))
        if isinstance(me, Inherited) and node.args.args and node.args.args[0].arg == "self":
            self.bind("self", me)
        self.visit_all(node.body)
        self.scopes.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.scopes.append({argument.arg: None for argument in ast.walk(node.args) if isinstance(argument, ast.arg)})
        self.visit(node.body)
        self.scopes.pop()

    def visit_comprehension_scope(self, node: ast.AST) -> None:
        self.scopes.append({})
        self.visit_all(
            [generator for generator in ast.iter_child_nodes(node) if isinstance(generator, ast.comprehension)]
        )
        self.visit_all([part for part in ast.iter_child_nodes(node) if not isinstance(part, ast.comprehension)])
        self.scopes.pop()

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_comprehension_scope

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.visit_all([*node.decorator_list, *node.keywords])
        values = [self.visit(base) for base in node.bases]
        bases = tuple(value for value in values if isinstance(value, Class))
        self.bind(node.name, None)
        self.scopes.append({})
        if bases:
            self.check_overrides(node, bases)
            names = {name for inner in statements(node.body) for name in bound_names(inner)}
            names |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
            self.bind("self", Inherited(Instance(bases), frozenset(names), closed=len(bases) == len(node.bases)))
        self.visit_all(node.body)
        self.scopes.pop()

    def check_overrides(self, node: ast.ClassDef, bases: tuple[Class, ...]) -> None:
        methods = {inner.name: inner for inner in node.body if isinstance(inner, Def)}
        for name, method in methods.items():
            for base in bases:
                try:
                    value = self.source.member([base], name, of_instance=False)
                except MissingNameError:
                    continue
                if isinstance(value, Function):
                    self.overrides[node.name, name] = (value, method)
                    self.compare(Function(self.module, method), value)
        names = {name for inner in statements(node.body) for name in bound_names(inner)}
        for base in bases:
            for line in self.source.bases(base)[0]:
                for inner in line.node.body:
                    if isinstance(inner, Def) and any(last_name(d) == "abstractmethod" for d in inner.decorator_list):
                        settled = self.source.member(list(bases), inner.name, of_instance=False)
                        if inner.name not in names and isinstance(settled, Function) and settled.node is inner:
                            self.report(f"{line.name}.{inner.name}", f"is abstract, and {node.name} has none")

    def compare(self, ours: Function, base: Function) -> None:
        if ours.kind != base.kind:
            self.report(base.name, f"is {base.kind or 'a plain method'}, and the override is {ours.kind or 'one'}")
        if ours.node.name in ("__init__", "__new__"):
            return  # vLLM calls a constructor as its own class has it, and ours are mostly called by us
        skip = "static" not in base.kind
        expected = as_signature(base.node.args, skip=skip)
        for complaint in as_signature(ours.node.args, skip=skip).refuse_base(expected):
            self.report(base.name, complaint)

    # Statements that bind

    def visit_Assign(self, node: ast.Assign) -> None:
        value = self.visit(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.bind(target.id, value)
            else:
                self.visit(target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
        if isinstance(node.target, ast.Name):
            self.bind(node.target.id, self.annotated(node.annotation))
        else:
            self.visit(node.target)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.type is not None:
            self.visit(node.type)
        if node.name:
            self.bind(node.name, None)
        self.visit_all(node.body)

    # Expressions

    def annotated(self, node: ast.expr | None) -> Value:
        """As `Source.annotated`, among this file's names."""
        match node:
            case ast.Constant(value=str(text)):
                return self.annotated(ast.parse(text, mode="eval").body)
            case ast.BinOp(left=left, right=ast.Constant(value=None)):
                return self.annotated(left)
            case ast.Subscript(value=outer, slice=inner) if last_name(outer) == "type":
                value = self.visit(inner)
                return value if isinstance(value, Class) else None
            case ast.Name() | ast.Attribute():
                value = self.visit(node)
                return Instance((value,)) if isinstance(value, Class) else None
        return None

    def visit_Name(self, node: ast.Name) -> Value | Inherited:
        if isinstance(node.ctx, ast.Store):
            self.bind(node.id, None)
            return None
        return self.look_up(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> Value:
        value = self.visit(node.value)
        if isinstance(value, Inherited):
            if node.attr in value.names or not value.closed:
                return None
            value = value.base
        try:
            return self.source.attribute(value, node.attr)
        except MissingNameError as error:
            self.problems.add(str(error))
            return None

    def visit_Constant(self, node: ast.Constant) -> None:
        """A module's name as text: for what imports it by name, or replaces something in it."""
        if isinstance(node.value, str) and re.fullmatch(r"vllm(\.\w+){2,}", node.value):
            try:
                self.source.module(node.value)
            except MissingNameError as error:
                self.problems.add(str(error))

    def visit_Await(self, node: ast.Await) -> Value | Inherited:
        return self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> Value:
        if isinstance(node.func, ast.Name) and node.func.id == "super":
            me = self.look_up("self")
            return me.base if isinstance(me, Inherited) else None
        function = self.visit(node.func)
        values = [self.visit(argument) for argument in node.args]
        self.visit_all([keyword.value for keyword in node.keywords])
        if last_name(node.func) == "cast" and len(values) == 2:
            return self.annotated(node.args[0])
        if last_name(node.func) in ("replace", "partial") and values:
            return self.check_indirect(node, values[0])
        if isinstance(function, Class | Function):
            self.check_call(function, node)
            return self.source.result(function)
        return None

    def check_call(self, function: Class | Function, call: ast.Call) -> None:
        expected = self.source.signature(function)
        for complaint in expected.refuse(call) if expected else ():
            self.report(f"{function.name}()", complaint)

    def check_indirect(self, node: ast.Call, first: Value | Inherited) -> Value:
        """`replace(value, field=...)`, whose keywords are fields, and `partial(function, ...)`, a call in part."""
        if isinstance(first, Instance):
            for keyword in node.keywords:
                try:
                    self.source.attribute(first, keyword.arg or "__dict__")
                except MissingNameError as error:
                    self.problems.add(str(error))
            return first
        if isinstance(first, Class | Function):
            whole = ast.Call(func=node.func, args=node.args[1:], keywords=[*node.keywords, ast.keyword(arg=None)])
            self.check_call(first, whole)
        return None


def is_vllm(value: Value) -> bool:
    names = [getattr(c, "module", "") or getattr(c, "name", "") for c in getattr(value, "classes", (value,))]
    return all(name.split(".")[0] == "vllm" for name in names)


def check(root: Path, installed: Path, vllm: Path) -> Problems:
    """What of the code below `root` does not fit the vLLM in the folder `vllm`, and does fit the one in `installed`."""
    problems: Problems = defaultdict(set)
    source, before = Source(vllm, root), Source(installed, root)
    for file in sorted(file for package in PACKAGES for file in (root / package).rglob("*.py")):
        text = file.read_text()
        if "vllm" not in text:
            continue
        where = str(file.relative_to(root))
        module = f"trimtab.{where.removesuffix('.py').replace('/', '.')}"
        tree = ast.parse(text)
        now, then = Uses(source, module), Uses(before, module)
        now.visit(tree)
        then.visit(tree if installed != vllm else ast.Pass())
        for place, (base, _) in then.overrides.items():
            if place not in now.overrides:
                now.report(base.name, f"is gone, which {'.'.join(place)} overrides")
        for problem in now.problems:
            problems[problem].add(where)
    return problems


def installed_folder() -> Path:
    """Where the installed vLLM's package is, without importing it."""
    [folder] = [path for path in map(Path, sys.path) if (path / "vllm" / "__init__.py").is_file()][:1]
    return folder


def download(version: str, target: Path) -> str:
    """Puts the Python files of a version's wheel into a folder, once; what went wrong, or nothing.

    The wheel is CUDA's, hundreds of megabytes of which these are a few, because an sdist cannot be had from pip without
    building it.
    """
    if target.is_dir():
        return ""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        pip += ["--platform", "manylinux_2_28_x86_64", "--retries", "1", "--timeout", "20", "--dest", scratch]
        done = subprocess.run([*pip, f"vllm=={version}"], capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            return (done.stderr.strip().splitlines() or ["pip left no wheel"])[-1]
        with ZipFile(wheels[0]) as wheel:
            names = [name for name in wheel.namelist() if name.startswith("vllm/") and name.endswith(".py")]
            wheel.extractall(f"{scratch}/out", names)
        Path(f"{scratch}/out").rename(target)
    return ""


def table(problems: Problems, source: Source) -> str:
    """Sorted, with the files, and with where else a name that is gone can be had."""
    lines = []
    for problem, files in sorted(problems.items()):
        name, _, complaint = problem.partition(": ")
        places = source.places(name.rpartition(".")[2]) if complaint == "no such name" else []
        lines += [problem, f"    in {', '.join(sorted(files))}"]
        lines += [f"    defined by {', '.join(places)}"] if places else []
    return "".join(f"{line}\n" for line in lines)


def judge(name: str, folder: Path, known: frozenset[str]) -> bool:
    """Prints what does not fit, and whether that is what is known."""
    problems = check(ROOT, installed_folder(), folder)
    sys.stdout.write(f"{name}: {len(problems)} uses of it do not fit\n{table(problems, Source(folder))}")
    for change, names in (("not in NEXT", problems.keys() - known), ("in NEXT, and not so", known - problems.keys())):
        if names:
            sys.stdout.write(f"{change}:\n" + "".join(f"    {line}\n" for line in sorted(names)))
    return problems.keys() == known


def main() -> int:
    version, known = NEXT
    fits = judge("the installed vLLM", installed_folder(), frozenset())
    folder = Path(sys.prefix) / "cache" / f"vllm-{version}"
    if error := download(version, folder):
        sys.stdout.write(f"vLLM {version}: not checked: its wheel could not be downloaded: {error}\n")
    else:
        fits &= judge(f"vLLM {version}", folder, known)
    return int(not fits)


if __name__ == "__main__":
    sys.exit(main())
