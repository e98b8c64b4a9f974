"""Numbers, sizes and times as texts for people; ``FILTERS`` are the same as filters for templates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import quote

from chat_streams.model.times import duration, now_ms, utc

HEX_ROW: Final = 16
SHORT_S: Final = 5.0
"""Seconds below which a lag means nothing: offsets are committed every second, and read every two."""


def number(value: float | None, digits: int = 0) -> str:
    """Format a number with thousands separators; a dash for ``None``, as in all formats here."""
    return "–" if value is None else f"{value:,.{digits}f}"


def rate(value: float | None) -> str:
    """Format a number per second: ``12.5/s``."""
    if value is None:
        return "–"
    return f"{value:,.0f}/s" if value >= 100 or value == 0 else f"{value:,.1f}/s"


def size(value: float | None) -> str:
    """Format a number of bytes: ``1.5 KiB``."""
    if value is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def ms(value: float | None) -> str:
    """Format a duration in ms, from 10 s on as ``duration`` does."""
    if value is None:
        return "–"
    return f"{value:.2g} ms" if value < 10 else f"{value:,.0f} ms" if value < 10_000 else duration(int(value))


def seconds(value: float | None) -> str:
    """Format a duration in seconds, from 60 s on as ``duration`` does."""
    if value is None:
        return "–"
    return f"{value:.1f} s" if value < 60 else duration(int(value * 1000))


def empty_in(row: Mapping[str, Any]) -> str:
    """Format the time until a group has caught up; "not catching up" only if its lag has lasted for ``SHORT_S``."""
    if row["time_to_empty_s"] is not None:
        return seconds(row["time_to_empty_s"])
    return "not catching up" if (row["seconds"] or 0) > SHORT_S else "–"


def ago(at: int) -> str:
    """Format the age of a time (ms since the epoch): ``5 s ago``."""
    passed = now_ms() - at
    return "now" if passed < 1000 else f"{duration(passed // 1000 * 1000).replace('.000', '')} ago"


def clock(at: int) -> str:
    """Format the time of day of a time (ms since the epoch), in UTC, to the ms."""
    return utc(at)[11:23]


def hex_rows(text: str) -> str:
    """Return a dump of bytes, given as hex digits: a row has the offset, the bytes and their printable characters."""
    data = bytes.fromhex(text)
    rows = []
    for start in range(0, len(data), HEX_ROW):
        row = data[start : start + HEX_ROW]
        plain = "".join(chr(b) if 32 <= b < 127 else "." for b in row)
        rows.append(f"{start:08x}  {row.hex(' '):<{3 * HEX_ROW}} {plain}")
    return "\n".join(rows)


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "num": number,
    "rate": rate,
    "size": size,
    "ms": ms,
    "secs": seconds,
    "empty_in": empty_in,
    "utc": utc,
    "ago": ago,
    "clock": clock,
    "hexdump": hex_rows,
    "dur": duration,
    # Jinja's own filter does not escape slashes.
    "urlencode": partial(quote, safe=""),
}
