"""Reading the journey of a message: finds it in the log and collects what the topics and the stores have of it."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from chat_streams.kafka import names, topics
from chat_streams.kafka.client import client_options, explain_failure
from chat_streams.kafka.log_reader import LogReader, LogRecord, Progress, Span
from chat_streams.kafka.names import (
    INBOX_REQUESTS,
    INCOMING_MESSAGES,
    OUTGOING_MESSAGES,
    OUTGOING_SECONDS,
    SESSION_EVENTS,
    partition_of,
)
from chat_streams.model.errors import HistoryUnavailable, KafkaUnavailable, UndecodableRecord, UnknownVersion
from chat_streams.model.position import MAX_INDEX, ORIGIN, Position
from chat_streams.model.records import DEAD_LETTERS, INCOMING, OUTGOING, REQUESTS, SESSIONS, DeadLetter, Redriven
from chat_streams.model.redrive import Redrive
from chat_streams.operations.journey import Copy, Inbox, Journey, Letter, Name, Rules, journeys, letter_of
from chat_streams.runtime.settings import Settings
from tables.chat_history import ChatHistory
from tables.inbox_index import PAGE, InboxIndex
from tables.redis_cluster import Cluster

MARK_BYTES: Final = 128
"""An upper limit for the size of a ``Redriven`` record."""
CLOCKS_MS: Final = 60_000
"""The largest difference between clocks that is allowed for, in ms."""

Bar = Callable[[str], AbstractContextManager[Progress]]


@contextlib.contextmanager
def _silent(what: str) -> Iterator[Progress]:
    yield lambda done, total: None


class Searched(NamedTuple):
    """The part of the log that was searched for a message; as a text, it explains that nothing was found.

    ``letters`` is the number of dead letters searched, ``bytes_in`` the numbers of those that hold the bytes of the id.
    """

    spans: list[Span]
    letters: int
    bytes_in: list[int]

    def __str__(self) -> str:
        records = sum(span.end - span.first for span in self.spans)
        partitions = ", ".join(f"{s.partition} ({s.first} to {s.end})" for s in self.spans)
        also = (
            f"; the bytes of the id are in dead letter {', '.join(map(str, self.bytes_in))}, which was never applied"
            if self.bytes_in
            else ""
        )
        return (
            f"not in the {records} records of {INCOMING_MESSAGES}, partitions and offsets {partitions}, nor in"
            f" {self.letters} records of {names.DEAD_LETTERS}{also}; what was never confirmed to its sender is"
            " nowhere, and the log is kept for CHAT_RETENTION seconds"
        )


@dataclass
class _Letters:
    """The dead letters of records that contain the bytes of the id, and the number of records read."""

    found: list[tuple[int, DeadLetter]] = field(default_factory=list)
    redriven: dict[int, Redriven] = field(default_factory=dict)
    read: int = 0

    def of(self, copies: list[Copy]) -> list[Letter]:
        records = {(copy.partition, copy.position.offset) for copy in copies}
        return [
            letter_of(number, letter, self.redriven.get(number))
            for number, letter in self.found
            if letter.topic == INCOMING_MESSAGES and (letter.partition, letter.offset) in records
        ]


class Tracer:
    """A reader that finds a message and its journey, for the command and the inspector.

    ``bar`` shows the progress of each read. Entering it and its methods raise ``KafkaUnavailable``,
    ``RedisUnavailable`` and ``TopicsError``.
    """

    def __init__(self, settings: Settings, bar: Bar = _silent) -> None:
        self._settings = settings
        self._bar = bar
        self._reader = LogReader(settings)
        self._cluster = Cluster(settings)
        self._history = ChatHistory(settings)

    async def __aenter__(self) -> Tracer:
        self._log = await topics.check(self._settings)
        await self._reader.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._reader.__aexit__()
        await self._cluster.close()
        await self._history.close()

    async def find(
        self, message_id: str, sender: str | None, to: str | None, since: int | None
    ) -> tuple[list[Journey], Searched]:
        """Find all messages of an id; returns a journey for each delivery of one, and what was searched.

        ``sender`` and ``to`` restrict the search if given, and so does ``since`` (ms since the epoch).
        """
        partitions = None if to is None else [partition_of(to, self._log.partitions)]
        spans = await self._reader.spans(INCOMING_MESSAGES, partitions, since_ms=since)
        copies: defaultdict[Name, list[Copy]] = defaultdict(list)
        needle = message_id.encode()

        def look(record: LogRecord) -> None:
            for index, message in enumerate(INCOMING.decode(record.value).messages):
                if message.id == message_id and sender in (None, message.sender) and to in (None, message.to):
                    position = Position.of(self._log.generation, record.offset, index)
                    copy = Copy.of(position, record.partition, record.at, message, Redrive.of(record.headers))
                    copies[Name(message.sender, message.to, message.id)].append(copy)

        await self._each(spans, f"reading {INCOMING_MESSAGES}", needle, look)
        letters = await self._letters(needle, since)
        window_ms = self._settings.retry_window * 1000
        found = [
            journey for name, named in copies.items() for journey in journeys(name, named, letters.of(named), window_ms)
        ]
        return found, Searched(spans, letters.read, [number for number, _ in letters.found])

    async def follow(self, journey: Journey) -> Rules:
        """Fill in the journey of a message that was found; returns the times that its verdict depends on."""
        settings, copy, start = self._settings, journey.applied, journey.first.accepted_at - CLOCKS_MS
        partition, user = journey.first.partition, journey.name.to.encode()
        sweep_ms = int(settings.announce_sweep * 1000)
        now = await self._reader.now_ms()
        # An open connection is announced once in each sweep: two sweeps of events name all that are open.
        heard_from = min(start, now) - 2 * sweep_ms
        journey.add_copies()
        await self._each(
            await self._reader.spans(SESSION_EVENTS, [partition], since_ms=heard_from),
            f"reading {SESSION_EVENTS}",
            user,
            lambda record: journey.add_sessions(SESSIONS.decode(record.value), record.at),
        )
        journey.add_connections()
        if copy is not None:
            await self._each(
                await self._reader.spans(INBOX_REQUESTS, [partition], since_ms=start),
                f"reading {INBOX_REQUESTS}",
                user,
                lambda record: journey.add_requests(REQUESTS.decode(record.value), record.at),
            )
            await self._each(
                await self._reader.spans(OUTGOING_MESSAGES, since_ms=start),
                f"reading {OUTGOING_MESSAGES}",
                user,
                lambda record: journey.add_outgoing(OUTGOING.decode(record.value), record.partition, record.at),
            )
            journey.inbox = await self._inbox(journey.name.to, copy.position)
        journey.in_history = await self._in_history(journey)
        journey.next_offsets = {app: await self._next_offset(app, partition) for app in ("messaging", "history")}
        return Rules(now, sweep_ms, settings.inbox_ttl * 1000, heard_from, now - OUTGOING_SECONDS * 1000)

    async def _letters(self, needle: bytes, since: int | None) -> _Letters:
        letters = _Letters()
        spans = await self._reader.spans(names.DEAD_LETTERS, since_ms=since)
        letters.read = sum(span.end - span.first for span in spans)

        def look(record: LogRecord) -> None:
            item = DEAD_LETTERS.decode(record.value)
            if isinstance(item, Redriven):
                letters.redriven[item.number] = item
            elif needle in (item.value or b""):
                item.traceback, item.value = "", None
                letters.found.append((record.offset, item))

        await self._each(spans, f"reading {names.DEAD_LETTERS}", needle, look, also_below=MARK_BYTES)
        return letters

    async def _each(
        self, spans: list[Span], what: str, needle: bytes, look: Callable[[LogRecord], None], also_below: int = 0
    ) -> None:
        """Call ``look`` for each record that contains ``needle`` or is small; one that does not decode is skipped."""
        with self._bar(what) as progress:
            async for record in self._reader.read(spans, progress):
                if record.value is not None and (needle in record.value or len(record.value) < also_below):
                    try:
                        look(record)
                    except (UndecodableRecord, UnknownVersion):
                        continue

    async def _inbox(self, user: str, position: Position) -> Inbox:
        index = InboxIndex(self._cluster)
        (sight,) = await index.look([(user, position, 1)])
        inbox = Inbox(
            sight.fields.get("top"),
            sight.fields.get("floor"),
            {device: cursor.position for device, cursor in sight.devices.items()},
        )
        if sight.entries:
            entry = sight.entries[0]
            if entry.gap is not None and entry.gap < position:
                inbox.gap = entry.gap
            inbox.stored = entry.position == position
        after = ORIGIN
        while inbox.stored:
            (page,) = await index.look([(user, after, PAGE)])
            below = [entry.position for entry in page.entries if entry.position < position]
            inbox.before += len(below)
            if len(below) < PAGE:
                break
            after = Position(below[-1].entry, below[-1].index + 1)
        return inbox

    async def _in_history(self, journey: Journey) -> bool | None:
        try:
            for copy in journey.copies:
                entry, index = copy.position
                below = Position(entry, index - 1) if index else Position(entry - 1, MAX_INDEX)
                if (await self._history.range(journey.name.to, below, copy.position, None, 1)).messages:
                    return True
        except HistoryUnavailable:
            return None
        return False

    async def _next_offset(self, group: str, partition: int) -> int | None:
        admin = AIOKafkaAdminClient(**client_options(self._settings))
        tp = TopicPartition(INCOMING_MESSAGES, partition)
        try:
            await admin.start()
            offset = int((await admin.list_consumer_group_offsets(group, partitions=[tp]))[tp].offset)
        except KafkaError as error:
            raise KafkaUnavailable(await explain_failure(self._settings, error)) from error
        finally:
            await admin.close()
        return offset if offset >= 0 else None
