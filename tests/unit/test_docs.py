"""The documents name all that a user can set or meet."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from chat_streams.settings import Settings
from chat_streams.topics import NEEDS
from docker.local.layout import PREFIX, Layout
from gateway import protocol
from gateway.protocol import Close

ROOT = Path(__file__).resolve().parents[2]
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
SECURITY = (ROOT / "docs" / "security.md").read_text()


def rows(text: str) -> list[list[str]]:
    """Return the cells of all rows of all tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def keys(text: str) -> list[str]:
    """Return what stands as code in the first cell of each row that has nothing else there."""
    return [
        key
        for row in rows(text)
        if re.fullmatch(r"`[^`]+`(, `[^`]+`)*", row[0])
        for key in re.findall("`(.+?)`", row[0])
    ]


def error_codes() -> set[str]:
    """Return the first argument of every call of ``error`` and ``Bad`` in the gateway's source."""
    codes = set()
    for path in (ROOT / "gateway").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args:
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in ("error", "Bad"):
                    codes |= {
                        leaf.value
                        for leaf in ast.walk(node.args[0])
                        if isinstance(leaf, ast.Constant)
                        and isinstance(leaf.value, str)
                        and re.fullmatch(r"[a-z]+(_[a-z]+)*", leaf.value)
                    }
    return codes


def fields() -> Iterator[tuple[str, FieldInfo]]:
    for name, field in Settings.model_fields.items():
        yield f"CHAT_{name.upper()}", field
    for name, field in Layout.model_fields.items():
        yield f"{PREFIX}{name.upper()}", field


def test_every_setting_has_a_row_and_every_row_a_setting() -> None:
    documented = [key for key in keys(SETTINGS) if key.startswith("CHAT_")]
    assert sorted(documented) == sorted(name for name, _ in fields())


@pytest.mark.parametrize(("name", "field"), list(fields()))
def test_the_default_of_a_setting_is_the_documented_one(name: str, field: FieldInfo) -> None:
    default = field.default
    assert default is not PydanticUndefined
    cell = next(row[2] for row in rows(SETTINGS) if row[0] == f"`{name}`")
    if default is None:
        assert cell.split(":")[0] == "none"
    elif isinstance(default, bool):
        assert cell == str(default).lower()
    elif isinstance(default, int | float):
        assert float(cell.split(" ")[0].replace(",", "")) == default
    else:
        assert cell == f"`{default}`"


def test_every_close_code_has_a_row() -> None:
    documented = {int(key) for key in keys(PROTOCOL) if key.isdigit()}
    assert documented - set(Close) == {1009}
    assert set(Close) <= documented


def test_every_error_code_has_a_row() -> None:
    found = error_codes()
    assert {"bad_frame", "unknown_type", "not_logged"} <= found, "the source is no longer understood"
    assert found <= set(keys(PROTOCOL))


@pytest.mark.parametrize("frame", [protocol.Hello, protocol.Send, protocol.Ack, protocol.History, protocol.Ping])
def test_every_field_of_a_client_frame_has_a_row(frame: type[msgspec.Struct]) -> None:
    tag = str(frame.__struct_config__.tag)
    section = re.split(r"^### ", PROTOCOL, flags=re.M)
    text = next(part for part in section if part.startswith(f"`{tag}`, to the server"))
    assert set(frame.__struct_encode_fields__) <= set(keys(text))


def test_the_limits_of_the_protocol_are_the_documented_ones() -> None:
    for limit in (protocol.MAX_ID, protocol.MAX_TOKEN, protocol.MAX_CURSOR, protocol.MAX_HISTORY, protocol.MAX_DEPTH):
        assert re.search(rf"\b{limit:,}\b", PROTOCOL)
    assert protocol.PATH in PROTOCOL
    assert protocol.SUBPROTOCOL in PROTOCOL


@pytest.mark.parametrize("service", NEEDS)
def test_the_documented_rights_are_those_a_service_looks_for(service: str) -> None:
    (row,) = (row for row in rows(SECURITY) if row[0] == f"`{service}`")
    for operation, cell in (("read", row[1]), ("write", row[2])):
        assert set(re.findall("`(.+?)`", cell)) == {
            name for name, needs in NEEDS[service].items() if operation in needs
        }


def test_redis_users_may_call_what_the_functions_call() -> None:
    source = (ROOT / "tables" / "inbox.lua").read_text()
    called = {name.lower() for name in re.findall(r"redis\.p?call\('(\w+)'", source)}
    (rights,) = re.findall(r"^user chat-services (.+)$", SECURITY, re.MULTILINE)
    assert called
    assert called <= set(re.findall(r"\+(\S+)", rights))
