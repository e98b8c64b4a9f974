"""``faust -A chat_streams trace MESSAGE_ID``: the way of one message, from what the log and the stores say."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import click
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition
from faust.cli import argument, option
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chat_streams import topics, tracing
from chat_streams.commands.output import Command, Since, bar, console, duration, utc
from chat_streams.log_reader import LogReader, LogRecord, LogUnavailable, Span
from chat_streams.position import MAX_PLACE, ORIGIN, Position
from chat_streams.records import (
    DEAD_LETTERS,
    INCOMING,
    OUTGOING,
    REQUESTS,
    SESSIONS,
    DeadLetter,
    Redriven,
    Undecodable,
    UnknownVersion,
    now_ms,
)
from chat_streams.redrive import Redrive
from chat_streams.service import Service
from chat_streams.settings import Settings
from chat_streams.topics import (
    INBOX_REQUESTS,
    INCOMING_MESSAGES,
    OUTGOING_MESSAGES,
    OUTGOING_SECONDS,
    SESSION_EVENTS,
    partition_of,
)
from chat_streams.tracing import Copy, Inbox, Letter, Name, Rules, Trail, Verdict, letter_of, trails, verdict
from tables.chat_history import ChatHistory, HistoryUnavailable
from tables.cluster import Cluster, StoreUnavailable
from tables.inbox_index import PAGE, InboxIndex

MAX_TRAILS: Final = 10
"""Shown at once: an id is its sender's own, and others may use the same."""
MARK_BYTES: Final = 128
"""A ``Redriven`` is smaller."""
CLOCKS_MS: Final = 60_000
"""By how much clocks may differ."""


def register(app: Service) -> None:
    """Add the command to an app."""

    @app.command(
        argument("message_id"),
        option("--sender", help="Only a message of this user."),
        option("--to", help="Only a message to this user; only that partition of the log is read then."),
        option("--since", type=Since(), help="Accepted since: 30m, 7d or 2026-01-31T14:02:00Z; else all of the log."),
        option("--json", "as_json", is_flag=True, help="A line with an object for each message; RFC 3339, ms."),
        base=Command,
    )
    async def trace(
        self: Command, message_id: str, sender: str | None, to: str | None, since: int | None, as_json: bool
    ) -> None:
        """Show the way of one message, with the time at each stage, and why it is not delivered, if it is not.

        It reads the log: what was sent towards connections is kept there for one hour. Exit code 1 if there is no
        such message.
        """
        try:
            async with _Tracer(app.settings) as tracer:
                found, searched = await tracer.find(message_id, sender, to, since)
                if not found:
                    raise click.ClickException(f"no message {message_id!r}{_whose(sender, to)}: {searched}")
                for trail in found[:MAX_TRAILS]:
                    rules = await tracer.follow(trail)
                    _show(trail, verdict(trail, rules, utc), rules, as_json)
        except (LogUnavailable, StoreUnavailable, topics.TopicsError) as error:
            raise click.ClickException(str(error)) from error
        if len(found) > MAX_TRAILS:
            click.echo(f"{len(found) - MAX_TRAILS} more: narrow it down with --sender and --to", err=True)


def _whose(sender: str | None, to: str | None) -> str:
    return (f" of {sender}" if sender else "") + (f" to {to}" if to else "")


class Searched(NamedTuple):
    """What was read in vain."""

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
            f" {self.letters} records of {topics.DEAD_LETTERS}{also}; what was never confirmed to its sender is"
            " nowhere, and the log is kept for CHAT_RETENTION seconds"
        )


@dataclass
class _Letters:
    """The dead letters of records that hold the id."""

    found: list[tuple[int, DeadLetter]] = field(default_factory=list)
    redriven: dict[int, Redriven] = field(default_factory=dict)
    read: int = 0

    def of(self, copies: list[Copy]) -> list[Letter]:
        places = {(copy.partition, copy.position.offset) for copy in copies}
        return [
            letter_of(number, letter, self.redriven.get(number))
            for number, letter in self.found
            if letter.topic == INCOMING_MESSAGES and (letter.partition, letter.offset) in places
        ]


class _Tracer:
    """Reads what there is; raises ``LogUnavailable``, ``StoreUnavailable`` and ``TopicsError``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reader = LogReader(settings)
        self._cluster = Cluster(settings)
        self._history = ChatHistory(settings)

    async def __aenter__(self) -> _Tracer:
        self._log = await topics.check(self._settings)
        await self._reader.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._reader.__aexit__()
        await self._cluster.close()
        await self._history.close()

    async def find(
        self, message_id: str, sender: str | None, to: str | None, since: int | None
    ) -> tuple[list[Trail], Searched]:
        """All messages of that id, one trail for each time one is delivered, and what was read for it."""
        partitions = None if to is None else [partition_of(to, self._log.partitions)]
        spans = await self._reader.spans(INCOMING_MESSAGES, partitions, since_ms=since)
        copies: defaultdict[Name, list[Copy]] = defaultdict(list)
        needle = message_id.encode()

        def look(record: LogRecord) -> None:
            for place, message in enumerate(INCOMING.decode(record.value).messages):
                if message.id == message_id and sender in (None, message.sender) and to in (None, message.to):
                    position = Position.of(self._log.generation, record.offset, place)
                    copy = Copy.of(position, record.partition, record.at, message, Redrive.of(record.headers))
                    copies[Name(message.sender, message.to, message.id)].append(copy)

        await self._each(spans, f"reading {INCOMING_MESSAGES}", needle, look)
        letters = await self._letters(needle, since)
        window_ms = self._settings.retry_window * 1000
        found = [trail for name, those in copies.items() for trail in trails(name, those, letters.of(those), window_ms)]
        return found, Searched(spans, letters.read, [number for number, _ in letters.found])

    async def follow(self, trail: Trail) -> Rules:
        """Find all that is known of a message that was found; returns what the verdict depends on."""
        settings, copy, start = self._settings, trail.applied, trail.first.accepted_at - CLOCKS_MS
        partition, user = trail.first.partition, trail.name.to.encode()
        sweep_ms = int(settings.announce_sweep * 1000)
        now = now_ms()
        # A living connection is announced once in a sweep: whoever is there has been heard of since then.
        heard_from = min(start, now) - 2 * sweep_ms
        trail.add_copies()
        await self._each(
            await self._reader.spans(SESSION_EVENTS, [partition], since_ms=heard_from),
            f"reading {SESSION_EVENTS}",
            user,
            lambda record: trail.add_sessions(SESSIONS.decode(record.value), record.at),
        )
        trail.add_connections()
        if copy is not None:
            await self._each(
                await self._reader.spans(INBOX_REQUESTS, [partition], since_ms=start),
                f"reading {INBOX_REQUESTS}",
                user,
                lambda record: trail.add_requests(REQUESTS.decode(record.value), record.at),
            )
            await self._each(
                await self._reader.spans(OUTGOING_MESSAGES, since_ms=start),
                f"reading {OUTGOING_MESSAGES}",
                user,
                lambda record: trail.add_outgoing(OUTGOING.decode(record.value), record.partition, record.at),
            )
            trail.inbox = await self._inbox(trail.name.to, copy.position)
        trail.in_history = await self._in_history(trail)
        trail.next_offsets = {app: await self._next_offset(app, partition) for app in ("messaging", "history")}
        return Rules(now_ms(), sweep_ms, settings.inbox_ttl * 1000, heard_from, now - OUTGOING_SECONDS * 1000)

    async def _letters(self, needle: bytes, since: int | None) -> _Letters:
        letters = _Letters()
        spans = await self._reader.spans(topics.DEAD_LETTERS, since_ms=since)
        letters.read = sum(span.end - span.first for span in spans)

        def look(record: LogRecord) -> None:
            item = DEAD_LETTERS.decode(record.value)
            if isinstance(item, Redriven):
                letters.redriven[item.number] = item
            elif needle in (item.value or b""):
                item.traceback, item.value = "", None
                letters.found.append((record.offset, item))

        await self._each(spans, f"reading {topics.DEAD_LETTERS}", needle, look, also_below=MARK_BYTES)
        return letters

    async def _each(
        self, spans: list[Span], what: str, needle: bytes, look: Callable[[LogRecord], None], also_below: int = 0
    ) -> None:
        """Let ``look`` decode the records with these bytes in them, and small ones; what doesn't decode is skipped."""
        with bar(what) as progress:
            async for record in self._reader.read(spans, progress):
                if record.value is not None and (needle in record.value or len(record.value) < also_below):
                    try:
                        look(record)
                    except (Undecodable, UnknownVersion):
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
            after = Position(below[-1].entry, below[-1].place + 1)
        return inbox

    async def _in_history(self, trail: Trail) -> bool | None:
        try:
            for copy in trail.copies:
                entry, place = copy.position
                below = Position(entry, place - 1) if place else Position(entry - 1, MAX_PLACE)
                if (await self._history.range(trail.name.to, below, copy.position, None, 1)).messages:
                    return True
        except HistoryUnavailable:
            return None
        return False

    async def _next_offset(self, group: str, partition: int) -> int | None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._settings.kafka)
        tp = TopicPartition(INCOMING_MESSAGES, partition)
        try:
            await admin.start()
            offset = int((await admin.list_consumer_group_offsets(group, partitions=[tp]))[tp].offset)
        except KafkaError as error:
            raise LogUnavailable(f"Kafka at {self._settings.kafka} (CHAT_KAFKA): {error!r}") from error
        finally:
            await admin.close()
        return offset if offset >= 0 else None


def _show(trail: Trail, found: Verdict, rules: Rules, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(tracing.as_json(trail, found, utc), ensure_ascii=False))
        return
    out = console()
    name = trail.name
    table = Table(title=f"message {name.id} from {name.sender} to {name.to}")
    for column, right in (("time (UTC)", False), ("since accepted", True), ("since last", True)):
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("detail", overflow="fold")
    start = before = trail.first.accepted_at
    for hop in trail.ordered():
        table.add_row(utc(hop.at), duration(hop.at - start), duration(hop.at - before), hop.what, escape(hop.detail))
        before = hop.at
    for what, detail in _now(trail, rules):
        table.add_row("now", "", "", what, escape(detail))
    out.print(table)
    _print(out, found)


def _print(out: Console, found: Verdict) -> None:
    out.print(f"{found.fate}: {found.text}", markup=False, soft_wrap=True)


def _now(trail: Trail, rules: Rules) -> list[tuple[str, str]]:
    inbox, copy = trail.inbox, trail.applied
    rows = []
    if copy is not None:
        place = f"there, {inbox.before} before it" if inbox.stored and inbox.gap is None else "not there"
        cursors = ", ".join(f"{device} {cursor}" for device, cursor in sorted(inbox.cursors.items())) or "none"
        rows.append(("inbox", f"{place}; top {inbox.top}, floor {inbox.floor}, cursors of devices: {cursors}"))
        if copy.accepted_at < rules.sent_from:
            rows.append(("deliveries", f"those before {utc(rules.sent_from)} are no longer known"))
    history = {True: "there", False: "not there", None: "unknown: the database does not answer"}[trail.in_history]
    if trail.in_history is False and (following := trail.next_offsets["history"]) is not None:
        history += f"; the history service is at offset {following}"
    rows.append(("history", history))
    return rows
