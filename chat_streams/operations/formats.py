"""Numbers and times for the eye."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import quote

from chat_streams.model.times import duration, now_ms, utc

HEX_ROW: Final = 16
SHORT_S: Final = 5.0
"""Offsets are committed once a second, and looked at every other: a lag so short means nothing yet."""


def number(value: float | None, digits: int = 0) -> str:
    """A number with thousands apart; a dash for none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def rate(value: float | None) -> str:
    """So many a second."""
    if value is None:
        return "–"
    return f"{value:,.0f}/s" if value >= 100 or value == 0 else f"{value:,.1f}/s"


def size(value: float | None) -> str:
    """Bytes: ``1.5 KiB``."""
    if value is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def ms(value: float | None) -> str:
    """A short length of time, of ms."""
    if value is None:
        return "–"
    return f"{value:.2g} ms" if value < 10 else f"{value:,.0f} ms" if value < 10_000 else duration(int(value))


def seconds(value: float | None) -> str:
    """A length of time, of seconds."""
    if value is None:
        return "–"
    return f"{value:.1f} s" if value < 60 else duration(int(value * 1000))


def empty_in(row: Mapping[str, Any]) -> str:
    """When a group has caught up; that it does not is said of what has waited for a while only."""
    if row["time_to_empty_s"] is not None:
        return seconds(row["time_to_empty_s"])
    return "not catching up" if (row["seconds"] or 0) > SHORT_S else "–"


def ago(at: int) -> str:
    """How long a time (ms since the epoch) is ago."""
    passed = now_ms() - at
    return "now" if passed < 1000 else f"{duration(passed // 1000 * 1000).replace('.000', '')} ago"


def clock(at: int) -> str:
    """The time of day of a time, in UTC, to the ms."""
    return utc(at)[11:23]


def hex_rows(text: str) -> str:
    """A dump of bytes given as hex digits: offset, bytes, and what of them is readable."""
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
    # Jinja's own lets slashes through.
    "urlencode": partial(quote, safe=""),
}
