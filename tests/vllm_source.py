"""A vLLM's source as it is read, not imported: what a name is there, what it takes, and what it has.

Only what the text says counts; what it leaves open (a base class from elsewhere, a value without an annotation) is
`None`, of which nothing is claimed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard

Def = ast.FunctionDef | ast.AsyncFunctionDef

PACKAGES = frozenset({"vllm", "trimtab", "tests"})
"""What is looked into; all else is unknown."""

CLOSED = frozenset({"object", "ABC", "Protocol", "Generic", "Enum", "IntEnum", "StrEnum", "NamedTuple", "TypedDict"})
"""Base classes that bring no names but these."""
BROUGHT = {"ABC": {"register"}, "Enum": {"name", "value"}, "IntEnum": {"name", "value"}, "StrEnum": {"name", "value"}}
FIELDS_ONLY = CLOSED | {"BaseModel", "Struct", "PydanticMsgspecMixin"}
"""Base classes whose constructors take the annotated fields and nothing else."""


class MissingNameError(Exception):
    """What is looked up is not there."""


@dataclass(frozen=True)
class Module:
    name: str


@dataclass(frozen=True)
class Class:
    module: str
    node: ast.ClassDef

    @property
    def name(self) -> str:
        return f"{self.module}.{self.node.name}"


@dataclass(frozen=True)
class Function:
    module: str
    node: Def
    owner: Class | None = None
    bound: bool = False
    """Whether its first parameter is already filled in."""

    @property
    def name(self) -> str:
        return f"{self.owner.name if self.owner else self.module}.{self.node.name}"

    @property
    def kind(self) -> str:
        """How it is called, where that is no plain call."""
        words = [name for d in self.node.decorator_list if (name := last_name(d)) in KINDS]
        return " ".join([*words, *(["async"] if isinstance(self.node, ast.AsyncFunctionDef) else [])])


KINDS = ("property", "cached_property", "staticmethod", "classmethod")


@dataclass(frozen=True)
class Instance:
    """Of a class, or of several, as `super()` is."""

    classes: tuple[Class, ...]


Value = Module | Class | Function | Instance | None


@dataclass(frozen=True, kw_only=True)
class Signature:
    positional: tuple[str, ...] = ()
    """Those that may be passed by position, in order."""
    positional_only: frozenset[str] = frozenset()
    keywords: tuple[str, ...] = ()
    required: frozenset[str] = frozenset()
    any_positional: bool = False
    any_keyword: bool = False

    @property
    def names(self) -> frozenset[str]:
        """Those that may be passed by name."""
        return frozenset({*self.positional, *self.keywords}) - self.positional_only

    def refuse(self, call: ast.Call) -> Iterator[str]:
        """What of a call it does not take."""
        spread = any(isinstance(argument, ast.Starred) for argument in call.args)
        names = [keyword.arg for keyword in call.keywords if keyword.arg is not None]
        if not self.any_keyword:
            yield from (f"takes no {name!r}" for name in names if name not in self.names)
        if not self.any_positional and len(call.args) > len(self.positional):
            yield f"takes {len(self.positional)} by position, not {len(call.args)}"
        if not spread and len(names) == len(call.keywords):
            filled = {*self.positional[: len(call.args)], *names}
            yield from (f"needs {name!r}" for name in sorted(self.required - filled))

    def refuse_base(self, base: Signature) -> Iterator[str]:
        """What of a base's it does not take: a method that takes the base's place is called as that is."""
        for i, name in enumerate(base.positional):
            if name not in self.positional[: i + 1] and not (self.any_positional and len(self.positional) <= i):
                yield f"the override takes no {name!r} at place {i + 1}"
        if not self.any_keyword:
            yield from (f"the override takes no {name!r}" for name in base.keywords if name not in self.names)
            if base.any_keyword:
                yield "the override takes no further keywords"
        if base.any_positional and not self.any_positional:
            yield "the override takes no further arguments"
        yield from (
            f"the override needs {name!r}" for name in sorted(self.required - {*base.positional, *base.keywords})
        )


def last_name(node: ast.expr | None) -> str:
    """`c` of `a.b.c`, of a call of it, and of a subscript of it."""
    match node:
        case ast.Call(func=inner) | ast.Subscript(value=inner):
            return last_name(inner)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case _:
            return ""


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Those that run where the body does, whichever branch is taken."""
    for node in body:
        yield node
        for inner in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from statements(getattr(node, inner, []))
        if isinstance(node, ast.Try):
            for handler in node.handlers:
                yield from statements(handler.body)


class Source:
    """Packages below some folders, the first folder that has a package being its."""

    def __init__(self, *roots: Path) -> None:
        self.roots = roots
        self._trees: dict[str, ast.Module | None] = {}
        self._names: dict[str, dict[str, list[ast.stmt]]] = {}
        self._open: set[tuple[str, str]] = set()

    def tree(self, module: str) -> ast.Module | None:
        """None: there is no such module."""
        if module not in self._trees:
            self._trees[module] = None
            for root in self.roots:
                path = root / module.replace(".", "/")
                file = path / "__init__.py" if path.is_dir() else path.with_name(f"{path.name}.py")
                if file.is_file():
                    self._trees[module] = ast.parse(file.read_text())
                elif path.is_dir():
                    self._trees[module] = ast.Module(body=[], type_ignores=[])
                else:
                    continue
                break
        return self._trees[module]

    def import_base(self, module: str, node: ast.ImportFrom) -> str:
        """The absolute name of what an import in the module is from."""
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        is_package = any((root / module.replace(".", "/")).is_dir() for root in self.roots)
        parts = parts[: len(parts) - node.level + is_package]
        return ".".join([*parts, *([node.module] if node.module else [])])

    def names(self, module: str) -> dict[str, list[ast.stmt]]:
        """What the module's own statements bind, with each statement that does; "*" for those that bind all."""
        if module not in self._names:
            names: dict[str, list[ast.stmt]] = {}
            tree = self.tree(module)
            for node in statements(tree.body if tree else []):
                for name in bound_names(node):
                    names.setdefault(name, []).append(node)
            self._names[module] = names
        return self._names[module]

    def module(self, name: str) -> Module:
        if self.tree(name) is None:
            raise MissingNameError(f"{name}: no such module")
        return Module(name)

    def resolve(self, module: str, name: str) -> Value:
        """What a module's name is; raises MissingNameError."""
        self.module(module)
        if (module, name) in self._open:
            return None
        self._open.add((module, name))
        try:
            return self._resolve(module, name)
        finally:
            self._open.discard((module, name))

    def _resolve(self, module: str, name: str) -> Value:
        nodes = [n for n in self.names(module).get(name, ()) if not is_overload(n)]
        missing: MissingNameError | None = None
        for node in nodes:
            try:
                return self.bound(module, node, name)
            except MissingNameError as error:
                missing = missing or error
        if missing is not None:
            raise missing
        if self.tree(f"{module}.{name}") is not None:
            return Module(f"{module}.{name}")
        for star in self.names(module).get("*", ()):
            assert isinstance(star, ast.ImportFrom)
            base = self.import_base(module, star)
            if base.split(".")[0] not in PACKAGES:
                return None
            try:
                return self.resolve(base, name)
            except MissingNameError:
                continue
        if (name.startswith("__") and name.endswith("__")) or "__getattr__" in self.names(module):
            return None
        raise MissingNameError(f"{module}.{name}: no such name")

    def bound(self, module: str, node: ast.stmt, name: str) -> Value:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                return Function(module, node)
            case ast.ClassDef():
                return Class(module, node)
            case ast.ImportFrom(names=names):
                base = self.import_base(module, node)
                if base.split(".")[0] in PACKAGES:
                    [alias] = [alias for alias in names if (alias.asname or alias.name) == name]
                    return self.resolve(base, alias.name)
            case ast.Import(names=names):
                for alias in names:
                    if (alias.asname or alias.name.split(".")[0]) == name and name in PACKAGES:
                        return self.module(alias.name if alias.asname else name)
            case ast.AnnAssign(annotation=annotation):
                return self.annotated(module, annotation)
            case ast.Assign(value=value):
                return self.evaluate(module, value)
        return None

    def evaluate(self, module: str, node: ast.expr | None) -> Value:
        """An expression's value among the module's names; None where it is no name, attribute or call."""
        try:
            match node:
                case ast.Name(id=name):
                    return self.resolve(module, name)
                case ast.Attribute(value=inner, attr=name):
                    return self.attribute(self.evaluate(module, inner), name)
                case ast.Call(func=inner):
                    return self.result(self.evaluate(module, inner))
        except MissingNameError:
            pass
        return None

    def result(self, value: Value) -> Value:
        """What a call gives."""
        if isinstance(value, Class):
            return Instance((value,))
        if isinstance(value, Function):
            if value.owner and last_name(value.node.returns) == "Self":
                return Instance((value.owner,))
            return self.annotated(value.module, value.node.returns)
        return None

    def annotated(self, module: str, annotation: ast.expr | None) -> Value:
        """What is annotated so: an instance of the one class that it names, or such a class itself."""
        match annotation:
            case ast.Constant(value=str(text)):
                return self.annotated(module, ast.parse(text, mode="eval").body)
            case ast.BinOp(left=left, right=right):
                sides = [side for side in (left, right) if not (isinstance(side, ast.Constant) and side.value is None)]
                return self.annotated(module, sides[0]) if len(sides) == 1 else None
            case ast.Subscript(value=outer, slice=inner):
                if last_name(outer) in ("Optional", "Final", "ClassVar", "Annotated"):
                    return self.annotated(module, inner.elts[0] if isinstance(inner, ast.Tuple) else inner)
                if last_name(outer) in ("type", "Type"):
                    value = self.evaluate(module, inner)
                    return value if isinstance(value, Class) else None
            case ast.Name() | ast.Attribute():
                value = self.evaluate(module, annotation)
                return Instance((value,)) if isinstance(value, Class) else None
        return None

    def bases(self, one: Class) -> tuple[list[Class], set[str]]:
        """The class and those that it inherits from, nearest first; and the names of those that are from elsewhere."""
        classes, elsewhere = [one], set()
        for base in one.node.bases:
            inner = base.value if isinstance(base, ast.Subscript) else base
            value = self.evaluate(one.module, inner)
            if isinstance(value, Class):
                nearer, others = self.bases(value)
                classes += [c for c in nearer if c not in classes]
                elsewhere |= others
            else:
                elsewhere.add(last_name(base))
        return classes, elsewhere

    def attribute(self, value: Value, name: str) -> Value:
        """Raises MissingNameError."""
        if isinstance(value, Module):
            return self.resolve(value.name, name)
        if isinstance(value, Class):
            return self.member([value], name, of_instance=False)
        if isinstance(value, Instance):
            return self.member(value.classes, name, of_instance=True)
        return None

    def member(self, classes: tuple[Class, ...] | list[Class], name: str, *, of_instance: bool) -> Value:
        closed = True
        for start in classes:
            line, elsewhere = self.bases(start)
            for one in line:
                for node in statements(one.node.body):
                    if name in bound_names(node) and not is_overload(node):
                        return self.of_class(one, node, name, of_instance=of_instance)
                if of_instance and (assigned := assigned_attribute(one, name)) is not None:
                    return self.bound(one.module, assigned, name)
                closed &= "__getattr__" not in {n for node in one.node.body for n in bound_names(node)}
            closed &= elsewhere <= CLOSED and not any(name in BROUGHT.get(base, ()) for base in elsewhere)
        if not closed or (name.startswith("__") and name.endswith("__")):
            return None
        raise MissingNameError(f"{classes[0].name}.{name}: no such attribute")

    def of_class(self, one: Class, node: ast.stmt, name: str, *, of_instance: bool) -> Value:
        value = self.bound(one.module, node, name)
        if not isinstance(value, Function):
            return value
        method = replace(value, owner=one)
        if "property" in method.kind:
            return self.annotated(one.module, method.node.returns) if of_instance else None
        return replace(method, bound="static" not in method.kind and (of_instance or "class" in method.kind))

    def signature(self, value: Value) -> Signature | None:
        """None: unknown."""
        if isinstance(value, Function):
            return as_signature(value.node.args, skip=value.bound)
        if isinstance(value, Class):
            line, elsewhere = self.bases(value)
            for one in line:
                for node in statements(one.node.body):
                    if isinstance(node, ast.FunctionDef) and node.name in ("__init__", "__new__"):
                        return as_signature(node.args, skip=True)
            if elsewhere <= FIELDS_ONLY and not any("Enum" in base for base in elsewhere):
                return fields_of(line)
        return None

    def places(self, name: str) -> list[str]:
        """Modules that define a name, for advice on one that has moved."""
        heads = (f"def {name}(", f"class {name}(", f"class {name}:", f"{name} = ", f"{name}: ")
        places = []
        for root in self.roots:
            for file in sorted((root / "vllm").rglob("*.py")):
                if any(f"\n{head}" in text for text in [file.read_text()] for head in heads):
                    places.append(".".join(file.relative_to(root).with_suffix("").parts))
        return places


def is_overload(node: ast.stmt) -> bool:
    return isinstance(node, Def) and any(last_name(d) == "overload" for d in node.decorator_list)


def is_stored(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def bound_names(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Import(names=names):
            return [alias.asname or alias.name.split(".")[0] for alias in names]
        case ast.ImportFrom(names=names):
            return [alias.asname or alias.name for alias in names]
        case ast.Assign(targets=targets):
            return [n.id for target in targets for n in ast.walk(target) if is_stored(n)]
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.AugAssign(target=ast.Name(id=name)):
            return [name]
        case _:
            return []


def assigned_attribute(one: Class, name: str) -> ast.stmt | None:
    """The statement of a method that gives an instance the attribute."""
    for method in one.node.body:
        if isinstance(method, Def):
            for node in ast.walk(method):
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                for target in (t for outer in targets if outer is not None for t in ast.walk(outer)):
                    if isinstance(target, ast.Attribute) and target.attr == name and last_name(target.value) == "self":
                        return node if isinstance(node, ast.AnnAssign) else ast.Pass()
    return None


def as_signature(args: ast.arguments, *, skip: bool) -> Signature:
    """`skip`: without the first parameter."""
    first = [arg.arg for arg in args.posonlyargs]
    positional = [*first, *(arg.arg for arg in args.args)]
    required = {*positional[: len(positional) - len(args.defaults)]}
    required |= {a.arg for a, default in zip(args.kwonlyargs, args.kw_defaults, strict=True) if default is None}
    dropped = positional[:1] if skip else []
    return Signature(
        positional=tuple(positional[len(dropped) :]),
        positional_only=frozenset(first),
        keywords=tuple(arg.arg for arg in args.kwonlyargs),
        required=frozenset(required) - {*dropped},
        any_positional=args.vararg is not None,
        any_keyword=args.kwarg is not None,
    )


def fields_of(line: list[Class]) -> Signature:
    """Of the constructor that a dataclass, a pydantic model or a msgspec struct gets from its annotated fields."""
    names: dict[str, bool] = {}
    aliases: list[str] = []
    extra = False
    for one in reversed(line):
        for node in statements(one.node.body):
            if isinstance(node, ast.Assign) and bound_names(node) == ["model_config"]:
                extra |= any(k.arg == "extra" and "allow" in ast.unparse(k.value) for k in keywords_of(node.value))
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                options = {k.arg: k.value for k in keywords_of(node.value)}
                if last_name(node.annotation) == "ClassVar" or is_false(options.get("init")):
                    continue
                names[node.target.id] = node.value is None or is_bare_field(node.value)
                alias = options.get("alias")
                aliases += [alias.value] if isinstance(alias, ast.Constant) else []
    return Signature(
        positional=tuple(names),
        keywords=tuple(aliases),
        required=frozenset(n for n, required in names.items() if required) if not aliases else frozenset(),
        any_keyword=extra,
    )


def keywords_of(node: ast.expr | None) -> list[ast.keyword]:
    return node.keywords if isinstance(node, ast.Call) else []


def is_false(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def is_bare_field(node: ast.expr) -> bool:
    """Whether it describes a field and gives it no default."""
    if not (isinstance(node, ast.Call) and last_name(node) in ("field", "Field")):
        return False
    defaults = {k.arg for k in node.keywords} & {"default", "default_factory"}
    first = node.args[0] if node.args else ast.Constant(value=...)
    return not defaults and isinstance(first, ast.Constant) and first.value is ...
