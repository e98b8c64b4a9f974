"""Wrong values for settings, made from their types; used for ``Settings`` and for the local stack's ``Layout``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, Literal, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from chat_streams.model.origins import checked_origins
from chat_streams.runtime import values
from chat_streams.runtime.values import unwrap

CASES: Final = ("empty", "other words", "numbers that are none", "out of range", "no UTF-8", "addresses", "files")
_NUMBERS: Final = ("inf", "-inf", "nan", "1e999", "0x10", "1,000", "\u0665\u0665")
_URLS: Final = (
    *("/", "x", "//host:1", "http://", "http:///path", "http://host:0/path", "http://host:99999/path", "ftp://host/x"),
    *("http://a b/c", "http://host/pa th", "http://[::1/x", "http://alice:sesame@host/x", "http://host/x#y"),
)
_TEXTS: Final[dict[Any, tuple[str, ...]]] = {
    values.server_list: (
        *("x", "x:", ":1", "x:y", "x:0", "x:65536", "kafka://x:1", "x:1/y", "x:1,", "x:1;y:1", "::1:9092", "[::1]"),
        *("[x]:1", "alice:sesame@x:1", "a b:1", "-x:1", "x" * 70_000),
    ),
    values.redis_nodes: (
        *("x", "x:1", "http://x:1", "redis://", "redis://:1", "redis://x:1/", "redis://x:1/0", "redis://x:1,y"),
        *("redis://x:1,redis://y:1", "redis://:sesame@x:1", "redis://x:70000", "redis://::1:7000", "redis:x:1"),
    ),
    values.listening_host: ("x:1", "http://x", "a b", "[x]", "::1::", "/", "*", "alice:sesame@x"),
    values.table_name: ("x", "a b", "arn:aws:dynamodb", "t\u00e4ble", "x" * 256),
    values.audience_list: ("chat,,web", ",", "chat,", "a\nb"),
    values.issuer: ("a\nb", "a\x1b[2J"),
    checked_origins: (
        "chat.test",
        "https://chat.test/",
        "https://*.chat.test",
        "https://a.test,",
        "Null",
        "https://x:70000",
    ),
    values.login_name: ("a\nb", "a\x1b[2J"),
}
_ABSOLUTE: Final = ("http://host", "http://host/")
"""Wrong where a path is wanted; where none may be there, each other URL with a path is."""
_RELATIVE: Final = ("http://host/path", "http://host:1/?query")


def make_files(folder: Path) -> dict[str, Path]:
    """Make what is no file of text: by what is wrong with it."""
    found = {
        name: folder / name for name in ("missing", "folder", "binary", "empty", "blank", "huge", "pipe", "forbidden")
    }
    found["folder"].mkdir()
    found["binary"].write_bytes(bytes(range(128, 256)))
    found["empty"].touch()
    found["blank"].write_text(" \n\n")
    with found["huge"].open("wb") as file:
        file.truncate(2**30)
    os.mkfifo(found["pipe"])
    found["forbidden"].write_text("k" * 40)
    found["forbidden"].chmod(0)
    if os.geteuid() == 0:  # who may read everything else
        found["forbidden"] = Path("/proc/self/mem")
    found["below a file"] = found["empty"] / "x"
    found["device"] = Path("/dev/zero")
    found["long"] = folder / ("x" * 5_000)
    return found


def wrong_values(field: FieldInfo, case: str, files: dict[str, Path]) -> list[str]:
    """Return values of one kind that a field must not take; none where its type has no such kind."""
    kind, metadata = unwrap(field)
    number, text = kind in (int, float), kind in (str, SecretStr)
    bounds = {name: getattr(each, name) for each in metadata for name in ("ge", "gt", "le") if hasattr(each, name)}
    checks: set[Any] = {each.func for each in metadata if hasattr(each, "func")}
    found: dict[str, list[str]] = {
        "empty": ["", "  "],
        "other words": ["x", "none"] if number or kind is bool or get_origin(kind) is Literal else [],
        "numbers that are none": [*_NUMBERS, *(["1.5"] if kind is int else [])] if number or kind is bool else [],
        "out of range": [],
        "no UTF-8": ["x\udcff"] if text else [],
        "addresses": [],
        "files": [str(path) for path in files.values()] if kind is Path else [],
    }
    if number:
        low = bounds["ge"] - 1 if "ge" in bounds else bounds["gt"]
        found["out of range"] = [str(low), str(bounds["le"] + 1), "-1", "9" * 30, "9" * 5_000]
    for check in checks:
        if getattr(check, "func", None) is values.web_url:
            more = _ABSOLUTE if check.keywords["path"] else _RELATIVE
            found["addresses"] += [*_URLS, *more]
        else:
            found["addresses"] += _TEXTS.get(check, ())
    return found[case]


def check_line(line: str, variable: str, value: str, secret: bool) -> None:
    """Check that an error is one line that names variable and value, but no secret, and says what is wanted."""
    assert line.isprintable(), line
    assert line.count(f"{variable} is ") == 1, line
    assert "wanted" in line
    assert "sesame" not in line
    assert len(line) < 600
    if value.strip() and not secret and "@" not in value and "?" not in value and value.isprintable():
        assert f"{variable} is {value[:90]!r}"[:-1] in line, line
