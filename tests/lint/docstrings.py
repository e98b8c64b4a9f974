"""Refuse docstrings whose first word leaves open what the thing is or does: ``python -m tests.lint.docstrings``."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.lint.sources import python_files

REFUSED = ("Of", "In", "Whose", "What", "Who", "How", "Where", "Whether")


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of the docstring of each module, class and function, and of each text below a name."""
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for before, statement in zip([None, *body], body, strict=False):
            is_text = (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            )
            if is_text and (before is None or isinstance(before, (ast.Assign, ast.AnnAssign))):
                assert isinstance(statement, ast.Expr)
                assert isinstance(statement.value, ast.Constant)
                yield statement.lineno, str(statement.value.value).strip()


def refused(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and first line of each docstring that is refused."""
    for line, text in docstrings(source):
        if re.match(rf"({'|'.join(REFUSED)})\b", text):
            yield line, text.splitlines()[0]


def main() -> None:
    """Print each refused docstring; exits with 1 if there is one."""
    found = [
        f"{name}:{line}: say what it is or does: {text!r}"
        for name in python_files(".")
        for line, text in refused(Path(name).read_text())
    ]
    if found:
        sys.exit("\n".join([*found, f"{len(found)} docstrings begin with one of {', '.join(REFUSED)}"]))


if __name__ == "__main__":
    main()
