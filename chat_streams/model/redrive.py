"""What a record carries that is written to its topic a second time: for whom it is, and what it was before; pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, Self

REDRIVE_FOR: Final = "redrive-for"
"""The apps that apply the record, with commas; all others skip it."""
FIRST_FAILED_AT: Final = "first-failed-at"
"""When it failed for the first time, in ms since the epoch."""
AT_OFFSET: Final = "at-offset"
"""The offset that its messages' positions are made of, instead of the record's own."""

Headers = Iterable[tuple[str, bytes]]


class Redrive(NamedTuple):
    """The headers of a redriven record."""

    apps: frozenset[str]
    first_at: int | None = None
    offset: int | None = None

    @classmethod
    def of(cls, headers: Headers | None) -> Self | None:
        """What the headers of a record say; ``None`` for one that was not redriven."""
        found = {name: value.decode(errors="replace") for name, value in headers or ()}
        if REDRIVE_FOR not in found:
            return None
        return cls(
            frozenset(found[REDRIVE_FOR].split(",")), _number(found.get(FIRST_FAILED_AT)), _number(found.get(AT_OFFSET))
        )

    def headers(self) -> list[tuple[str, bytes]]:
        """The headers that say this."""
        headers = [(REDRIVE_FOR, ",".join(sorted(self.apps)).encode())]
        if self.first_at is not None:
            headers.append((FIRST_FAILED_AT, b"%d" % self.first_at))
        if self.offset is not None:
            headers.append((AT_OFFSET, b"%d" % self.offset))
        return headers


def offset_for(app: str, offset: int, headers: Headers | None) -> int | None:
    """The offset that an app makes the positions of a record's messages of; ``None`` where it is for other apps only.

    It failed in those; this app has applied it when it was new.
    """
    redrive = Redrive.of(headers)
    if redrive is None:
        return offset
    if app not in redrive.apps:
        return None
    return offset if redrive.offset is None else redrive.offset


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
