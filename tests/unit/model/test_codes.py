"""Codes and errors: the server's, the client's copy of them, and the trees in the docstrings."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import clients.python.errors
from chat_streams.model import errors
from chat_streams.model.codes import Close, ErrorCode
from clients.python import codes
from docker.local.layout import ROOT


def test_the_client_knows_each_error_code_and_whether_to_retry() -> None:
    assert {str(code): code.retry for code in ErrorCode} == codes.RETRY


def test_the_client_knows_each_close_code_and_its_meaning() -> None:
    assert {int(code): code.meaning for code in Close} == codes.CLOSES


@pytest.mark.parametrize("code", list(Close))
def test_client_and_server_agree_on_who_reconnects(code: Close) -> None:
    assert codes.is_final(code) is not code.reconnect


@pytest.mark.parametrize(("module", "base"), [(errors, "ConnectChatError"), (clients.python.errors, "ChatError")])
def test_the_tree_in_the_docstring_is_the_one_in_the_code(module: object, base: str) -> None:
    lines = [re.match(r"([│├└─ ]*)([A-Z]\w+)(  |$)", line) for line in (inspect.getdoc(module) or "").splitlines()]
    drawn = [(len(match[1]) // 4, match[2]) for match in lines if match]
    depth = min(level for level, _ in drawn)
    found: list[tuple[int, str]] = []

    def walk(kind: type[Exception], level: int) -> None:
        found.append((level, kind.__name__))
        for child in kind.__subclasses__():
            if child.__module__ == kind.__module__:
                walk(child, level + 1)

    walk(getattr(module, base), depth)
    assert drawn == found


def test_every_error_of_the_services_has_the_one_base() -> None:
    paths = [path for folder in ("chat_streams", "gateway", "tables") for path in (ROOT / folder).rglob("*.py")]
    strangers = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in paths
        if "node_modules" not in Path(path).parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and not node.name.startswith("_")
        and any(isinstance(b, ast.Name) and b.id in ("Exception", "ValueError", "RuntimeError") for b in node.bases)
        and node.name != "ConnectChatError"
    ]
    assert strangers == []
