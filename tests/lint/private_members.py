"""Count the private members of Faust, mode and aiokafka that our code uses: ``python -m tests.lint.private_members``.

Found are reads, writes and overrides of names with a leading underscore, and imports of them. Not found: names that are
put together at run time, and code of theirs that was copied, which counts as well. A file that imports none of the
three is not searched for ``x._name``: ruff's SLF001 refuses that everywhere but in ``chat_streams/compat/``.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import inspect
import json
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table

from tests.lint.sources import python_files

DEPENDENCIES: Final = ("faust", "mode", "aiokafka")
SEARCHED: Final = ("chat_streams", "gateway", "tables", "clients", "docker", "bench")
ALLOWED: Final = "chat_streams/compat/"
MOST: Final = 8
"""The limit of ``count``: each may change in any release. There were 31 before the transport of our own."""
NAMED_TUPLE: Final = frozenset({"_asdict", "_field_defaults", "_fields", "_make", "_replace"})
"""The public members of a named tuple: the underscore keeps them apart from its fields."""
BY_NAME: Final = ("getattr", "setattr", "hasattr", "delattr")


class Use(NamedTuple):
    """A place that uses a private member; ``owner`` is the class of the dependency, or our file where it is unknown."""

    file: str
    line: int
    owner: str
    member: str
    how: str


def count(uses: Sequence[Use]) -> int:
    """Return the number of distinct members."""
    return len({(use.owner, use.member) for use in uses})


def is_private(name: str) -> bool:
    """Return whether a name has a leading underscore and is no special method; a lone ``_`` is no name."""
    return name.startswith("_") and name.strip("_") != "" and not (name.startswith("__") and name.endswith("__"))


def is_theirs(module: str | None) -> bool:
    """Return whether a module belongs to one of the dependencies."""
    return module is not None and module.partition(".")[0] in DEPENDENCIES


def members_of(theirs: type) -> set[str]:
    """Return the private names of one class: attributes, annotations, and what its methods assign to ``self``."""
    names = {*vars(theirs), *inspect.get_annotations(theirs)}
    # A class of a compiled module has no source.
    with contextlib.suppress(OSError, TypeError):
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(theirs)))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_own(node.value):
                names.add(node.attr)
    return set(filter(is_private, names))


def owners(modules: Sequence[ModuleType]) -> dict[tuple[str, str], dict[str, str]]:
    """Return by module and name of each class of ours the private members that it has from a dependency.

    Each has the name of the class that is the first to have it. A mixin has those of the classes it is mixed into.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}
    for ours in [value for module in modules for value in _classes(module)]:
        members: dict[str, str] = {}
        for theirs in filter(lambda base: is_theirs(base.__module__), ours.__mro__):
            for name in members_of(theirs):
                members.setdefault(name, f"{theirs.__module__}.{theirs.__qualname__}")
        for base in ours.__mro__ if members else ():
            if not is_theirs(base.__module__):
                found.setdefault((base.__module__, base.__qualname__), {}).update(members)
    return found


def _classes(holder: ModuleType | type) -> Iterator[type]:
    name = holder.__name__ if isinstance(holder, ModuleType) else holder.__module__
    for value in list(vars(holder).values()):
        if isinstance(value, type) and value.__module__ == name and value is not holder:
            yield value
            yield from _classes(value)


class _Search(ast.NodeVisitor):
    def __init__(self, file: str, tree: ast.Module, owners: Mapping[tuple[str, str], Mapping[str, str]]) -> None:
        self.uses: list[Use] = []
        self._file = file
        self._module = module_of(file)
        self._owners = owners
        self._imports = any(is_theirs(name) for node in ast.walk(tree) for name in _imported(node).values())
        # The classes and functions around the place, and the members that "self" has there from a dependency: none in
        # a class that is only ours, and None where "self" may be anything.
        self._around: list[str] = []
        self._members: Mapping[str, str] | None = None
        self.visit(tree)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._import(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self._import(node, f"{node.module}.{alias.name}" if not node.level else "")

    def _import(self, node: ast.stmt, name: str) -> None:
        if is_theirs(name) and any(map(is_private, name.split("."))):
            owner, _, member = name.rpartition(".")
            self._add(node, owner, member, "imports")

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._define(node, node.name)
        around, members = self._around, self._members
        self._around = [*around, node.name]
        # A class within a function cannot be imported: its "self" may be anything.
        unknown: dict[str, str] | None = None if node.bases and "<locals>" in around else {}
        self._members = self._owners.get((self._module, ".".join(self._around)), unknown)
        self.generic_visit(node)
        self._around, self._members = around, members

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        is_method = bool(self._around) and self._around[-1] != "<locals>"
        if is_method:
            self._define(node, node.name)
        around, members = self._around, self._members
        if not is_method and any(argument.arg in ("self", "cls") for argument in node.args.args):
            # A function that is put into a class later.
            self._members = None
        self._around = [*around, node.name, "<locals>"]
        self.generic_visit(node)
        self._around, self._members = around, members

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - the visitor's name for it

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store) and self._around and self._around[-1] != "<locals>":
            self._define(node, node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._access(node, node.value, node.attr, "reads" if isinstance(node.ctx, ast.Load) else "sets")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        match node:
            case ast.Call(func=ast.Name(id=function), args=[thing, ast.Constant(value=str(name)), *_]):
                if function in BY_NAME:
                    self._access(node, thing, name, function)
        self.generic_visit(node)

    def _define(self, node: ast.stmt | ast.expr, name: str) -> None:
        if is_private(name) and self._members and name in self._members:
            self._add(node, self._members[name], name, "overrides")

    def _access(self, node: ast.expr, thing: ast.expr, name: str, how: str) -> None:
        if not is_private(name):
            return
        if _is_own(thing) and self._members is not None:
            if name in self._members:
                self._add(node, self._members[name], name, how)
        elif self._imports and name not in NAMED_TUPLE:
            self._add(node, self._file, name, how)

    def _add(self, node: ast.stmt | ast.expr, owner: str, member: str, how: str) -> None:
        self.uses.append(Use(self._file, node.lineno, owner, member, how))


def _is_own(thing: ast.expr) -> bool:
    match thing:
        case ast.Name(id="self" | "cls") | ast.Call(func=ast.Name(id="super")):
            return True
    return False


def _imported(node: ast.AST) -> dict[str, str]:
    """Return what a statement imports, by the names that it has here."""
    if isinstance(node, ast.Import):
        # "import a.b" gives the name "a".
        names = [(alias.asname, alias.name) for alias in node.names]
        return {here or name.partition(".")[0]: name if here else name.partition(".")[0] for here, name in names}
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {}


def module_of(file: str) -> str:
    """Return the name of the module in a file."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def search(file: str, source: str, owners: Mapping[tuple[str, str], Mapping[str, str]]) -> list[Use]:
    """Return the uses in one file of ours, in the order of its lines."""
    return sorted(_Search(file, ast.parse(source), owners).uses)


def deriving(sources: Mapping[str, str]) -> set[str]:
    """Return the modules with a class that has one of a dependency among its bases, directly or through ours.

    Only they are imported: others, such as those of the benchmark, need packages that not everyone has.
    """
    names: dict[str, set[str]] = {}
    classes: dict[str, str] = {}
    for file, source in sources.items():
        module, nodes = module_of(file), list(ast.walk(ast.parse(source)))
        imported = {here: name for node in nodes for here, name in _imported(node).items()}
        names |= {f"{module}.{here}": {name} for here, name in imported.items()}
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                classes[f"{module}.{node.name}"] = module
                bases = [ast.unparse(base).partition("[")[0].partition(".") for base in node.bases]
                names[f"{module}.{node.name}"] = {
                    imported.get(first, f"{module}.{first}") + dot + rest for first, dot, rest in bases
                }
    found: set[str] = set()
    while more := {name for name, of in names.items() if of & found or any(map(is_theirs, of))} - found:
        found |= more
    return {classes[name] for name in found if name in classes}


def complaint(uses: Sequence[Use], most: int = MOST) -> str | None:
    """Return in one line what is not allowed, or ``None``."""
    for use in uses:
        if not use.file.startswith(ALLOWED):
            return f"{use.file}:{use.line} {use.how} {use.member} of a dependency: only {ALLOWED} may"
    if count(uses) > most:
        return f"{count(uses)} private members of {', '.join(DEPENDENCIES)} are used, {most} are allowed"
    return None


def main() -> None:
    """Print each use and the number of members; exits with 1 if there are too many or one is in a wrong place."""
    parser = argparse.ArgumentParser(prog="python -m tests.lint.private_members", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    as_json = parser.parse_args().json
    sources = {name: Path(name).read_text() for name in python_files(*SEARCHED)}
    # The inspector's app is made when its module is imported, and wants a key.
    os.environ.setdefault("CHAT_JWT_SECRET", "x" * 32)
    found = owners([importlib.import_module(name) for name in sorted(deriving(sources))])
    uses = [use for name, source in sources.items() for use in search(name, source, found)]
    if as_json:
        print(json.dumps({"members": count(uses), "most": MOST, "uses": [use._asdict() for use in uses]}))  # noqa: T201
    else:
        table = Table("file", "line", "member", "of", "how")
        for use in uses:
            table.add_row(use.file, str(use.line), use.member, use.owner, use.how)
        out = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
        out.print(table)
        out.print(f"{count(uses)} private members of {', '.join(DEPENDENCIES)}")
    if (wrong := complaint(uses)) is not None:
        sys.exit(wrong)


if __name__ == "__main__":
    main()
