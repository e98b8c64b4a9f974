"""The headers of a redriven dead letter: the apps that must apply it, its first failure and its original offset."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, Self

REDRIVE_FOR: Final = "redrive-for"
"""The header with the names of the apps that apply the record, separated by commas; all others skip it."""
FIRST_FAILED_AT: Final = "first-failed-at"
"""The header with the time of the first failure, in ms since the epoch."""
AT_OFFSET: Final = "at-offset"
"""The header with the offset to use in the positions of its messages, instead of the record's own."""
FIRST_OFFSET: Final = "first-offset"
"""The header with the offset at which the record was first: by that the chat database knows its messages again."""
AT_TIME: Final = "at-time"
"""The header with the time at which the record was appended first, in ms since the epoch: its messages keep it."""

Headers = Iterable[tuple[str, bytes]]


class Redrive(NamedTuple):
    """The decoded headers of a redriven record."""

    apps: frozenset[str]
    first_at: int | None = None
    offset: int | None = None
    logged_at: int | None = None
    first_offset: int | None = None

    @classmethod
    def of(cls, headers: Headers | None) -> Self | None:
        """Decode the headers of a record; returns ``None`` for one that was not redriven."""
        found = {name: value.decode(errors="replace") for name, value in headers or ()}
        if REDRIVE_FOR not in found:
            return None
        return cls(
            frozenset(found[REDRIVE_FOR].split(",")),
            _number(found.get(FIRST_FAILED_AT)),
            _number(found.get(AT_OFFSET)),
            _number(found.get(AT_TIME)),
            _number(found.get(FIRST_OFFSET)),
        )

    def headers(self) -> list[tuple[str, bytes]]:
        """Return the headers, encoded."""
        headers = [(REDRIVE_FOR, ",".join(sorted(self.apps)).encode())]
        if self.first_at is not None:
            headers.append((FIRST_FAILED_AT, b"%d" % self.first_at))
        if self.offset is not None:
            headers.append((AT_OFFSET, b"%d" % self.offset))
        if self.logged_at is not None:
            headers.append((AT_TIME, b"%d" % self.logged_at))
        if self.first_offset is not None:
            headers.append((FIRST_OFFSET, b"%d" % self.first_offset))
        return headers


class Address(NamedTuple):
    """The offset and the time (ms since the epoch) that the messages of a record go by."""

    offset: int
    at: int


def address_for(app: str, offset: int, at: int, headers: Headers | None) -> Address | None:
    """Return the address of a record's messages; ``None`` when ``app`` must skip the record.

    An app skips a redriven record that failed in other apps only: it applied the original one.

    Args:
        app: Name of the app that reads the record.
        offset: Offset at which the record was read.
        at: Time at which the record was appended (ms since the epoch).
        headers: Headers of the record.
    """
    redrive = Redrive.of(headers)
    if redrive is None:
        return Address(offset, at)
    if app not in redrive.apps:
        return None
    return Address(offset if redrive.offset is None else redrive.offset, first_time(at, redrive))


def first_time(at: int, redrive: Redrive | None) -> int:
    """Return the time of the first record that held a record's messages: its own, ``at``, unless it was redriven."""
    return at if redrive is None or redrive.logged_at is None else redrive.logged_at


def first_offset(offset: int, headers: Headers | None) -> int:
    """Return the offset at which a record, read at ``offset``, was before it was redriven for the first time."""
    redrive = Redrive.of(headers)
    return offset if redrive is None or redrive.first_offset is None else redrive.first_offset


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
