"""The unit tests mirror the tree: ``chat_streams/kafka/names.py`` has ``tests/unit/kafka/test_names.py``."""

from __future__ import annotations

from docker.local.layout import ROOT

UNIT = ROOT / "tests" / "unit"
PACKAGES = ("chat_streams", "clients", "gateway", "tables")
WITHOUT = frozenset((UNIT / "without_tests.txt").read_text().split())
"""Modules without unit tests of their own, most of which integration tests drive; the list only gets shorter."""


def unit_tests_of(module: str) -> str:
    """Return where the unit tests of a module are, relative to ``tests/unit``."""
    folder, _, name = module.removeprefix("chat_streams/").rpartition("/")
    return f"{folder}/test_{name}".lstrip("/")


def modules() -> list[str]:
    """Return the paths of all modules but ``__init__`` and ``__main__``."""
    return sorted(
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "node_modules" not in path.parts and not path.name.startswith("__")
    )


def test_each_module_has_a_file_of_unit_tests_or_is_named_as_without() -> None:
    assert {module for module in modules() if not (UNIT / unit_tests_of(module)).exists()} == WITHOUT


def test_each_file_of_unit_tests_stands_beside_what_it_tests() -> None:
    of_modules = {unit_tests_of(module) for module in modules()}
    of_others = ("bench/", "docker/", "inspector/", "kafka/test_lanes_model.py", "test_")
    strays = {
        name
        for path in UNIT.rglob("test_*.py")
        if (name := str(path.relative_to(UNIT))) not in of_modules and not name.startswith(of_others)
    }
    assert strays == set()
