"""Each task is made by ``runtime/tasks.py`` or ``processing/lasting.py``, so that somebody hears of what ends it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

import pytest

from docker.local.layout import ROOT

PACKAGES: Final = ("chat_streams", "gateway", "tables")
MAKERS: Final = {
    "create_task": {"chat_streams/runtime/tasks.py"},
    "ensure_future": set(),
    # A service that is crashed by what it adds; a cancellation from within does not.
    "add_future": {
        "chat_streams/messaging.py",
        "chat_streams/processing/consumer.py",
        "chat_streams/processing/ordered.py",
        "chat_streams/processing/transport.py",
    },
    "task": {"chat_streams/processing/lasting.py"},
    "timer": set(),
    "crontab": set(),
    "run_coroutine_threadsafe": set(),
}
"""Functions that make tasks, and the modules that may use them: ``add_future`` is for work that ends."""


def uses(source: str) -> set[str]:
    """Return which of the makers are called, or used as a decorator."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            callees = [node.func]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            callees = list(node.decorator_list)
        else:
            continue
        for callee in callees:
            name = callee.attr if isinstance(callee, ast.Attribute) else getattr(callee, "id", "")
            if name in MAKERS:
                found.add(name)
    return found


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def test_tasks_are_made_by_the_mechanism_alone() -> None:
    strays = {
        f"{name} in {path.relative_to(ROOT)}"
        for path in modules()
        for name in uses(path.read_text())
        if str(path.relative_to(ROOT)) not in MAKERS[name]
    }
    assert strays == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("asyncio.create_task(work())", {"create_task"}),
        ("async with asyncio.TaskGroup() as group:\n    group.create_task(work())", {"create_task"}),
        ("from asyncio import ensure_future\nensure_future(work())", {"ensure_future"}),
        ("@mode.Service.task\nasync def run(self): ...", {"task"}),
        ("@app.timer(1.0)\nasync def run(): ...", {"timer"}),
        ("app.task(run)\nself.add_future(run())", {"task", "add_future"}),
        ("spawn('run', work(), None)\ntask = 1\nprogress.add_task('')", set()),
    ],
)
def test_the_check_finds_each_way_to_make_a_task(source: str, found: set[str]) -> None:
    assert uses(source) == found
