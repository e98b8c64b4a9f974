"""The documents name everything that a user can set or encounter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from chat_streams.kafka.topics import NEEDS
from chat_streams.model import ids
from chat_streams.model.codes import Close, ErrorCode
from chat_streams.runtime.settings import Settings
from docker.local.layout import PREFIX, Layout
from gateway import protocol

ROOT = Path(__file__).resolve().parents[2]
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
SECURITY = (ROOT / "docs" / "security.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def rows(text: str) -> list[list[str]]:
    """Return the cells of all rows of all tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def keys(text: str) -> list[str]:
    """Return the code in the first cell of each row where that cell has nothing else."""
    return [
        key
        for row in rows(text)
        if re.fullmatch(r"`[^`]+`(, `[^`]+`)*", row[0])
        for key in re.findall("`(.+?)`", row[0])
    ]


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


def test_every_error_code_has_a_row_that_says_whether_to_retry() -> None:
    documented = {row[0].strip("`"): row[1] for row in rows(PROTOCOL) if len(row) == 4 and row[1] in ("true", "false")}
    assert documented == {str(code): str(code.retry).lower() for code in ErrorCode}


@pytest.mark.parametrize("frame", [protocol.Hello, protocol.Send, protocol.Ack, protocol.History, protocol.Ping])
def test_every_field_of_a_client_frame_has_a_row(frame: type[msgspec.Struct]) -> None:
    tag = str(frame.__struct_config__.tag)
    section = re.split(r"^### ", PROTOCOL, flags=re.M)
    text = next(part for part in section if part.startswith(f"`{tag}`, to the server"))
    assert set(frame.__struct_encode_fields__) <= set(keys(text))


def test_the_limits_of_the_protocol_are_the_documented_ones() -> None:
    for limit in (ids.MAX_ID, protocol.MAX_TOKEN, protocol.MAX_CURSOR, protocol.MAX_HISTORY, protocol.MAX_DEPTH):
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
    source = (ROOT / "tables" / "lua" / "inbox.lua").read_text()
    called = {name.lower() for name in re.findall(r"redis\.p?call\('(\w+)'", source)}
    (rights,) = re.findall(r"^user chat-services (.+)$", SECURITY, re.MULTILINE)
    assert called
    assert called <= set(re.findall(r"\+(\S+)", rights))


def prose(page: Path) -> str:
    """Return the text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures, without those outside the repository."""
    return [to for to in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in to]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for to in links(page):
        name, _, anchor = to.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{to} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{target.name} has no heading for {to}"


@pytest.mark.parametrize("folder", [ROOT / "docs", ROOT / "docs" / "adr"], ids=["docs", "adr"])
def test_every_page_is_in_the_index_of_its_folder(folder: Path) -> None:
    listed = {to.partition("#")[0] for to in links(folder / "README.md")}
    assert {page.name for page in folder.glob("*.md")} - {"README.md"} <= listed


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "adr").glob("[0-9]*.md")), ids=lambda page: page.name[:4])
def test_every_decision_has_all_parts(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r"^## (.+)$", text, flags=re.M) == ["Context", "Decision", "Consequences", "Alternatives refused"]
    assert re.findall(r"^- (\w+):", text.partition("## ")[0], flags=re.M) == ["Status", "Date", "Code"]
    assert text.startswith(f"# {int(page.name[:4])}. ")


def test_every_file_that_a_page_names_exists() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    missing = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in pages
        if page.name != "CHANGELOG.md"
        for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|lua|mjs|sh|yaml|toml))`", page.read_text())
        if not (ROOT / name).exists() and not list(ROOT.glob(f"*/{name}")) and not name.startswith(("/", ".local"))
    ]
    assert missing == []
