"""The current time, and texts of times and durations."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now_ms() -> int:
    """Return the current time in ms since the epoch."""
    return time.time_ns() // 1_000_000


def utc(ms: int) -> str:
    """Format a time in ms since the epoch as RFC 3339 in UTC, with milliseconds."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return f"{ms} ms"


def duration(ms: int) -> str:
    """Format a duration in ms for people to read: ``1.234 s``, ``5 min 3 s``, ``2 d 4 h``."""
    sign, ms = ("-", -ms) if ms < 0 else ("", ms)
    seconds = ms // 1000
    if seconds < 60:
        return f"{sign}{ms / 1000:.3f} s"
    for unit, name, lower_unit, lower in ((60, "min", 1, "s"), (3600, "h", 60, "min"), (24 * 3600, "d", 3600, "h")):
        if seconds < unit * (24 if name == "h" else 60) or name == "d":
            return f"{sign}{seconds // unit} {name} {seconds % unit // lower_unit} {lower}"
    raise AssertionError
