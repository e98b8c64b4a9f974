from __future__ import annotations

from pathlib import Path

import pytest

from docker.local import layout
from docker.local.layout import Layout, StackError, variable
from tests.unit.runtime.wrong_values import CASES, check_line, make_files, wrong_values


@pytest.fixture(autouse=True)
def _only_these(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Layout.model_fields:
        monkeypatch.delenv(variable(field), raising=False)


@pytest.mark.parametrize("name", Layout.model_fields)
def test_each_wrong_value_of_each_variable_is_one_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for case in CASES:
        # An empty one is the default.
        for value in wrong_values(Layout.model_fields[name], case, {}) if case != "empty" else []:
            monkeypatch.setenv(variable(name), value)
            with pytest.raises(StackError) as caught:
                Layout.from_settings()
            check_line(str(caught.value), variable(name), value, secret=False)


@pytest.mark.parametrize("value", ["1", "g", "1t", "64m", "65g", "1 g", "-1g", "1.5g", "\u0661g", "9" * 5_000 + "g"])
def test_a_heap_is_a_size_that_kafka_can_start_with(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CHAT_LOCAL_KAFKA_HEAP", value)
    with pytest.raises(StackError) as caught:
        Layout.from_settings()
    check_line(str(caught.value), "CHAT_LOCAL_KAFKA_HEAP", value, secret=False)


def test_the_data_folder_is_none_where_something_else_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = make_files(tmp_path)
    for name in ("binary", "empty", "pipe", "below a file", "device"):
        monkeypatch.setenv("CHAT_LOCAL_DATA", str(files[name]))
        with pytest.raises(StackError) as caught:
            Layout.from_settings()
        check_line(str(caught.value), "CHAT_LOCAL_DATA", str(files[name]), secret=False)


def test_a_data_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(StackError) as caught:
        layout.create_secret(Layout(data=Path("/proc/none")))
    check_line(str(caught.value), "CHAT_LOCAL_DATA", "/proc/none", secret=False)


def test_an_empty_variable_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Layout.model_fields:
        monkeypatch.setenv(variable(field), "")
    assert Layout.from_settings() == Layout()


def test_two_ports_that_are_the_same_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_LOCAL_KAFKA", "9500")
    monkeypatch.setenv("CHAT_LOCAL_REDIS", "9500")
    with pytest.raises(StackError, match="CHAT_LOCAL_KAFKA and CHAT_LOCAL_REDIS are the same port, 9500"):
        Layout.from_settings()


def test_the_services_settings_are_checked_before_they_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = Layout(data=tmp_path)
    layout.create_secret(found)
    layout.check_services(found)
    monkeypatch.setenv("CHAT_LEASE", "nan")
    with pytest.raises(StackError, match="CHAT_LEASE is 'nan': a number from"):
        layout.check_services(found)
    monkeypatch.delenv("CHAT_LEASE")
    found.secret_file.write_text("")
    with pytest.raises(StackError, match=r"CHAT_JWT_SECRET_FILE is .*: it is empty"):
        layout.check_services(found)


def test_unknown_variables_of_stack_and_services_are_named_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_LOCAL_DATE", "x")
    monkeypatch.setenv("CHAT_SLOTZ", "1")
    assert layout.unknown_variables() == [
        "CHAT_SLOTZ is no setting, and is ignored: is CHAT_SLOTS meant?",
        "CHAT_LOCAL_DATE is no setting, and is ignored: is CHAT_LOCAL_DATA meant?",
    ]


@pytest.mark.parametrize("character", ["\n", "\t", "\x1b", "\x7f", "\udcff", "*", "?", "["])
def test_a_data_folder_with_a_character_that_is_not_supported_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, character: str
) -> None:
    monkeypatch.setenv("CHAT_LOCAL_DATA", str(tmp_path / f"a{character}b"))
    with pytest.raises(StackError) as caught:
        Layout.from_settings()
    assert f"without {character!r} is wanted" in str(caught.value)
    assert "CHAT_LOCAL_DATA is" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_checkout_with_a_colon_in_its_path_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "ROOT", Path("/a:b"))
    with pytest.raises(StackError, match="the checkout is '/a:b': a path without ':' is wanted"):
        Layout.from_settings()


def test_a_path_may_have_any_other_character(tmp_path: Path) -> None:
    layout.check_path("the checkout", tmp_path / '\u00fc ,5%d "q" o\'b \\n #1 ;x $H [y] (z)&!*?', separators=":")
