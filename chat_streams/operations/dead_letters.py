"""Dead letters, the records that could not be applied: reading, filtering and decoding them, and planning a redrive.

A dead letter is identified by its number, which is its offset in the topic ``dead_letters``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import structlog

from chat_streams.kafka.log_reader import LogReader, Progress, Span
from chat_streams.kafka.names import (
    HISTORY,
    INBOX_REQUESTS,
    INCOMING_MESSAGES,
    MESSAGING,
    SESSION_EVENTS,
    VERSION,
    Names,
    partition_of,
)
from chat_streams.model.errors import UndecodableRecord, UnknownVersion
from chat_streams.model.position import Position
from chat_streams.model.records import (
    DEAD_LETTERS,
    INCOMING,
    LOGGED,
    REQUESTS,
    SESSIONS,
    Codec,
    DeadLetter,
    Message,
    Messages,
    Redriven,
)
from chat_streams.model.redrive import Redrive

log = structlog.get_logger()

CODECS: Final[Mapping[str, Codec[Any]]] = {
    INCOMING_MESSAGES: INCOMING,
    SESSION_EVENTS: SESSIONS,
    INBOX_REQUESTS: REQUESTS,
}
FORMER: Final[Mapping[str, Codec[Any]]] = {
    name: codec
    for version in range(1, VERSION)
    for name, codec in zip(Names.of(version).logs, CODECS.values(), strict=True)
}
"""Codecs of the topics that repartitions have replaced: their dead letters can be shown, but not redriven."""
GAP: Final = 100
"""The largest distance between two dead letters that are read in one range."""


class Origin(NamedTuple):
    """The topic, partition and offset of a record that failed."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True)
class Filter:
    """A filter for dead letters; a field that is ``None`` matches all.

    ``reason`` matches any part of the reason, in upper or lower case; ``since`` is compared with the time of the last
    failure, in ms since the epoch.
    """

    app: str | None = None
    topic: str | None = None
    reason: str | None = None
    since: int | None = None

    def matches(self, letter: DeadLetter) -> bool:
        """Return whether a dead letter passes the filter."""
        return (
            self.app in (None, letter.app)
            and self.topic in (None, letter.topic)
            and (self.reason is None or self.reason.lower() in letter.reason.lower())
            and (self.since is None or letter.last_at >= self.since)
        )


class Summary(NamedTuple):
    """A dead letter without the bytes of its record; ``size`` is their number, times are in ms since the epoch."""

    number: int
    app: str
    origin: Origin
    reason: str
    first_at: int
    last_at: int
    size: int

    @classmethod
    def of(cls, number: int, letter: DeadLetter) -> Summary:
        """Return the summary of a dead letter."""
        return cls(
            number,
            letter.app,
            origin_of(letter),
            letter.reason,
            letter.first_at,
            letter.last_at,
            len(letter.value or b""),
        )


class Write(NamedTuple):
    """The write that redrives a dead letter: its bytes go back to its topic and partition with these headers.

    ``covers`` are the numbers of all dead letters that this one write redrives.
    """

    headers: list[tuple[str, bytes]]
    covers: list[int]


@dataclass
class Catalogue:
    """An index of all dead letters, as needed to redrive any of them; a few hundred bytes for each."""

    redriven: dict[int, Redriven] = field(default_factory=dict)
    """The latest redrive of each dead letter that was redriven, by number."""
    chosen: list[int] = field(default_factory=list)
    """The numbers that match the filter, in order."""
    apps: dict[Origin, list[tuple[int, str]]] = field(default_factory=dict)
    """Numbers and apps of the dead letters of each record of ``incoming_messages``: both of its readers may fail."""
    numbers: set[int] = field(default_factory=set)
    """The numbers of all dead letters."""

    def add(self, number: int, item: DeadLetter | Redriven, wanted: Filter) -> None:
        """Add a record of ``dead_letters``; ``number`` is its offset."""
        if isinstance(item, Redriven):
            self.redriven[item.number] = item
            return
        self.numbers.add(number)
        if item.topic == INCOMING_MESSAGES:
            self.apps.setdefault(origin_of(item), []).append((number, item.app))
        if wanted.matches(item):
            self.chosen.append(number)

    def write(self, number: int, letter: DeadLetter) -> Write:
        """Return the write that redrives a dead letter, addressed to the app that failed.

        The chat database must hold a message at the position it has in the inbox. So a record that messaging failed on
        is addressed to history, too, which writes it again at its new position; and a record that history alone failed
        on keeps its position.
        """
        apps, covers, offset, first = {letter.app}, [number], None, None
        if letter.topic == INCOMING_MESSAGES:
            same = self.apps.get(origin_of(letter), [])
            first = letter.offset if letter.first_offset is None else letter.first_offset
            # When messaging is redriven again, history keeps the position of the first redrive: the inbox took that
            # copy, and drops this one as a retry.
            if letter.app == MESSAGING and number not in self.redriven:
                apps.add(HISTORY)
                covers += [n for n, app in same if app == HISTORY and n not in self.redriven]
            elif letter.app == HISTORY:
                moved = [self.redriven[n].offset for n, app in same if app == MESSAGING and n in self.redriven]
                offset = moved[-1] if moved else letter.offset
        redrive = Redrive(frozenset(apps), letter.first_at, offset, letter.logged_at or None, first)
        return Write(redrive.headers(), sorted(covers))


def origin_of(letter: DeadLetter) -> Origin:
    """Return topic, partition and offset of the record that a dead letter holds."""
    return Origin(letter.topic, letter.partition, letter.offset)


def runs(numbers: Iterable[int], gap: int = GAP) -> list[tuple[int, int]]:
    """Return ranges ``[first, end)`` that cover ascending numbers; numbers up to ``gap`` apart share a range."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number - found[-1][1] <= gap:
            found[-1] = found[-1][0], number + 1
        else:
            found.append((number, number + 1))
    return found


def decode(letter: DeadLetter) -> Any:
    """Decode the record of a dead letter; raises ``UndecodableRecord`` or ``UnknownVersion``, as in its app."""
    codec = CODECS.get(letter.topic) or FORMER.get(letter.topic)
    if codec is None:
        raise UndecodableRecord(f"no record of topic {letter.topic} can be decoded here")
    return codec.decode(letter.value)


def wrong_partition(letter: DeadLetter, partitions: int) -> str | None:
    """Return a user of the record who is on another partition after a repartition; ``None`` if there is none.

    ``partitions`` is the number of partitions that the record's topic has now.
    """
    try:
        record = decode(letter)
    except (UndecodableRecord, UnknownVersion):
        return None
    users = [m.to for m in record.messages] if isinstance(record, Messages) else [item.user for item in record]
    return next((user for user in users if partition_of(user, partitions) != letter.partition), None)


def readable(record: Any, bodies: bool) -> list[dict[str, Any]]:
    """Return the items of a decoded record as JSON values, the bodies of messages masked unless ``bodies``."""
    if isinstance(record, Messages):
        return [_message(message, bodies) for message in record.messages]
    return [
        {"type": item.__struct_config__.tag}
        | {name: _json_value(getattr(item, name)) for name in item.__struct_fields__}
        for item in record
    ]


def _json_value(value: Any) -> Any:
    if isinstance(value, Position):
        return str(value)
    return value.hex() if isinstance(value, bytes) else value


def _message(message: Message, bodies: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"to": message.to, "from": message.sender, "id": message.id}
    if message.at != LOGGED:
        found["at_ms"] = message.at
    try:
        body = json.loads(b"{" + message.json.lstrip(b","))["body"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return found | {"json": message.json.decode(errors="replace") if bodies else f"<{len(message.json)} bytes>"}
    return found | {"body": body if bodies else f"<masked, {len(message.json)} bytes of JSON>"}


async def read(
    reader: LogReader, spans: Iterable[Span], progress: Progress | None = None
) -> AsyncGenerator[tuple[int, DeadLetter | Redriven], None]:
    """Yield each record of ``dead_letters`` with its offset; one that doesn't decode is skipped with a warning."""
    async for record in reader.read(spans, progress):
        try:
            yield record.offset, DEAD_LETTERS.decode(record.value)
        except (UndecodableRecord, UnknownVersion) as error:
            place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
            log.warning("no dead letter", **place, error=repr(error))
