"""Dead letters: records that could not be applied. What is said of them, which are meant, and how they go back.

A dead letter goes by its number, its offset in ``dead_letters``.
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
"""Topics of before the last repartition: what failed there can be looked at."""
GAP: Final = 100
"""Dead letters so near to each other are read in one go."""


class Origin(NamedTuple):
    """Where a record failed."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True)
class Filter:
    """Which dead letters are meant; ``None`` is all. ``since`` asks for the last failure, in ms since the epoch."""

    app: str | None = None
    topic: str | None = None
    reason: str | None = None
    since: int | None = None

    def matches(self, letter: DeadLetter) -> bool:
        """Whether this one is; ``reason`` may be any part of it, in upper or lower case."""
        return (
            self.app in (None, letter.app)
            and self.topic in (None, letter.topic)
            and (self.reason is None or self.reason.lower() in letter.reason.lower())
            and (self.since is None or letter.last_at >= self.since)
        )


class Summary(NamedTuple):
    """A dead letter without its bytes; ``size`` is how many they are."""

    number: int
    app: str
    origin: Origin
    reason: str
    first_at: int
    last_at: int
    size: int

    @classmethod
    def of(cls, number: int, letter: DeadLetter) -> Summary:
        """What a list shows of it."""
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
    """What redriving a dead letter does: its bytes go back to its topic and partition with these headers.

    ``covers`` are the numbers of the dead letters that are done with then.
    """

    headers: list[tuple[str, bytes]]
    covers: list[int]


@dataclass
class Catalogue:
    """What must be known of all dead letters to redrive one; a few hundred bytes for each."""

    redriven: dict[int, Redriven] = field(default_factory=dict)
    chosen: list[int] = field(default_factory=list)
    """The numbers that match the filter, in order."""
    apps: dict[Origin, list[tuple[int, str]]] = field(default_factory=dict)
    """The numbers and apps of those with the same origin in ``incoming_messages``: both its readers may fail."""
    numbers: set[int] = field(default_factory=set)

    def add(self, number: int, item: DeadLetter | Redriven, wanted: Filter) -> None:
        """Note a record of ``dead_letters``."""
        if isinstance(item, Redriven):
            self.redriven[item.number] = item
            return
        self.numbers.add(number)
        if item.topic == INCOMING_MESSAGES:
            self.apps.setdefault(origin_of(item), []).append((number, item.app))
        if wanted.matches(item):
            self.chosen.append(number)

    def write(self, number: int, letter: DeadLetter) -> Write:
        """How to redrive one.

        It is for the app that failed. The chat database must hold a message at the position it has in the inbox: so
        what messaging failed on is for history, too, which writes it anew at its new position; and what history alone
        failed on keeps the position it had.
        """
        apps, covers, offset = {letter.app}, [number], None
        if letter.topic == INCOMING_MESSAGES:
            same = self.apps.get(origin_of(letter), [])
            # The second time, history stays with the first: that is the one an inbox took, and this one a retry.
            if letter.app == MESSAGING and number not in self.redriven:
                apps.add(HISTORY)
                covers += [n for n, app in same if app == HISTORY and n not in self.redriven]
            elif letter.app == HISTORY:
                moved = [self.redriven[n].offset for n, app in same if app == MESSAGING and n in self.redriven]
                offset = moved[-1] if moved else letter.offset
        return Write(Redrive(frozenset(apps), letter.first_at, offset).headers(), sorted(covers))


def origin_of(letter: DeadLetter) -> Origin:
    """Where the record of a dead letter failed."""
    return Origin(letter.topic, letter.partition, letter.offset)


def runs(numbers: Iterable[int], gap: int = GAP) -> list[tuple[int, int]]:
    """The ranges ``[first, end)`` that hold some ascending numbers, with holes of up to ``gap``."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number - found[-1][1] <= gap:
            found[-1] = found[-1][0], number + 1
        else:
            found.append((number, number + 1))
    return found


def decode(letter: DeadLetter) -> Any:
    """The record of a dead letter; raises ``UndecodableRecord`` or ``UnknownVersion``, as its app did or would."""
    codec = CODECS.get(letter.topic) or FORMER.get(letter.topic)
    if codec is None:
        raise UndecodableRecord(f"no record of topic {letter.topic} can be decoded here")
    return codec.decode(letter.value)


def wrong_partition(letter: DeadLetter, partitions: int) -> str | None:
    """A user of the record who lives on another partition than it is for, by now; ``None`` if there is none."""
    try:
        record = decode(letter)
    except (UndecodableRecord, UnknownVersion):
        return None
    users = [m.to for m in record.messages] if isinstance(record, Messages) else [item.user for item in record]
    return next((user for user in users if partition_of(user, partitions) != letter.partition), None)


def readable(record: Any, bodies: bool) -> list[dict[str, Any]]:
    """What is in a record as JSON values, the bodies of messages masked unless ``bodies``."""
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
    found: dict[str, Any] = {"to": message.to, "from": message.sender, "id": message.id, "at_ms": message.at}
    try:
        body = json.loads(b"{" + message.json.lstrip(b","))["body"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return found | {"json": message.json.decode(errors="replace") if bodies else f"<{len(message.json)} bytes>"}
    return found | {"body": body if bodies else f"<masked, {len(message.json)} bytes of JSON>"}


async def read(
    reader: LogReader, spans: Iterable[Span], progress: Progress | None = None
) -> AsyncGenerator[tuple[int, DeadLetter | Redriven], None]:
    """Each record of ``dead_letters`` with its number; one that doesn't decode is left out with a warning."""
    async for record in reader.read(spans, progress):
        try:
            yield record.offset, DEAD_LETTERS.decode(record.value)
        except (UndecodableRecord, UnknownVersion) as error:
            log.warning("no dead letter", topic=record.topic, offset=record.offset, reason=str(error))
