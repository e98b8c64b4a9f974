"""The audit: reads the log, the acknowledgements, the inboxes and the history, and judges each message by the rules.

The log is read from its start to the end it had when the audit began, one partition after the other, twice: once to
find out which messages may be retries, once to judge them, some thousand at a time. The services run meanwhile. So a
message that seems to have a problem is judged again, with newer acknowledgements, before it is reported: if an inbox is
read first and the log after it, the log holds the acknowledgement of every message that was gone from the inbox. The
rules are in ``audit_rules.py``.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from chat_streams.kafka import losses, names, topics
from chat_streams.kafka.client import client_options, explain_failure
from chat_streams.kafka.log_reader import LogReader, LogRecord, Progress, Span
from chat_streams.kafka.names import HISTORY, INBOX_REQUESTS, INCOMING_MESSAGES, MESSAGING, SESSION_EVENTS, partition_of
from chat_streams.model.errors import KafkaUnavailable, UndecodableRecord
from chat_streams.model.losses import Loss, Losses, unnoted
from chat_streams.model.position import Position
from chat_streams.model.records import INCOMING, REQUESTS, SESSIONS, Acknowledge, DeadLetter, UserConnected
from chat_streams.model.redrive import address_for, first_offset
from chat_streams.operations import dead_letters
from chat_streams.operations.audit_rules import (
    INDEX_BITS,
    Fate,
    Finding,
    Head,
    Item,
    Logged,
    Look,
    Partition,
    Problem,
    Repeats,
    Report,
    Rules,
    View,
    check_head,
    judge,
    pack,
    unpack,
)
from chat_streams.runtime.settings import Settings
from tables.chat_history import ChatHistory, Entry
from tables.inbox_index import PAGE, InboxIndex, Sight, Stored
from tables.redis_cluster import Cluster

NOTIFICATION: Final = "notification"
CHUNK: Final = 4_000
"""The number of messages that are judged at a time."""
LOOK_AGAIN_AT: Final = 4_000
"""The number of suspicious messages after which they are judged again."""
MOST_OPEN: Final = 1_000
"""The largest number of messages that are judged again and again for ``SETTLE_SECONDS``; any others only twice."""
SETTLE_SECONDS: Final = 3.0
"""Seconds within which a device's connection, and the acknowledgements that removed entries, must be in the log."""
LOOK_SECONDS: Final = 0.2
GROUP_SECONDS: Final = 30.0
USERS_AT_ONCE: Final = 1_000


class Options(NamedTuple):
    """The scope of an audit: partitions (``None`` for all), one user of those (``None`` for all), and ``history``.

    ``wait_s`` is how many seconds to wait for the services to catch up with the log.
    """

    partitions: Sequence[int] | None
    user: str | None
    history: bool
    wait_s: float


class _Letters:
    """The offsets of the records that an app could not apply, 8 bytes each."""

    def __init__(self) -> None:
        self._offsets: defaultdict[tuple[str, str, int], array[int]] = defaultdict(lambda: array("Q"))

    def add(self, letter: DeadLetter) -> None:
        self._offsets[letter.app, letter.topic, letter.partition].append(letter.offset)

    def sort(self) -> None:
        for key, offsets in self._offsets.items():
            self._offsets[key] = array("Q", sorted(offsets))

    def has(self, app: str, topic: str, partition: int, offset: int) -> bool:
        offsets = self._offsets.get((app, topic, partition))
        if offsets is None:
            return False
        index = bisect_left(offsets, offset)
        return index < len(offsets) and offsets[index] == offset


class _Groups:
    """The progress of the services' consumer groups; raises ``KafkaUnavailable``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._admin = AIOKafkaAdminClient(**client_options(settings))

    async def __aenter__(self) -> _Groups:
        try:
            await self._admin.start()
        except KafkaError as error:
            await self._admin.close()
            raise KafkaUnavailable(await explain_failure(self._settings, error)) from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._admin.close()

    async def reached(self, group: str, spans: Iterable[Span]) -> dict[int, int]:
        """Return by partition the offset below which the group has applied everything, at most the end of the span."""
        spans = list(spans)
        committed = await self._committed(group, spans)
        return {s.partition: min(max(committed[s], s.first), s.end) for s in spans}

    async def lost(self, group: str, spans: Iterable[Span], generation: int) -> list[Loss]:
        """Return the records below the spans that are gone and that the group has not applied: it was away since."""
        spans = list(spans)
        committed = await self._committed(group, spans)
        return unnoted(
            group,
            generation,
            {(s.topic, s.partition): offset for s, offset in committed.items()},
            {(s.topic, s.partition): s.first for s in spans},
        )

    async def _committed(self, group: str, spans: Sequence[Span]) -> dict[Span, int]:
        tps = {TopicPartition(span.topic, span.partition): span for span in spans}
        try:
            async with asyncio.timeout(GROUP_SECONDS):
                found = await self._admin.list_consumer_group_offsets(group, partitions=list(tps))
        except (KafkaError, TimeoutError) as error:
            raise KafkaUnavailable(
                f"Kafka at {self._settings.kafka} does not say how far {group} is: {error!r}"
            ) from error
        return {span: max(0, found[tp].offset) if tp in found else 0 for tp, span in tps.items()}

    async def wait(self, group: str, spans: Sequence[Span], until: float) -> dict[int, int]:
        """Wait until the group has ``reached`` the ends of all spans, or until a time of the monotonic clock.

        Returns what it has reached then.
        """
        while True:
            reached = await self.reached(group, spans)
            if all(reached[span.partition] >= span.end for span in spans) or time.monotonic() >= until:
                return reached
            await asyncio.sleep(LOOK_SECONDS)


async def audit(settings: Settings, options: Options, progress: Progress) -> Report:
    """Audit a running system; ``progress`` is called with the offsets read and to be read.

    Raises ``TopicsError``, ``KafkaUnavailable``, ``RedisUnavailable``, ``HistoryUnavailable`` and ``UnknownVersion``.
    """
    log = await topics.check(settings)
    history, cluster = ChatHistory(settings), Cluster(settings)
    try:
        # Two readers, because acknowledgements are read while messages are being read.
        async with LogReader(settings) as messages, LogReader(settings) as acks, _Groups(settings) as groups:
            auditor = _Auditor(settings, options, progress, log.generation, messages, acks, groups, cluster, history)
            return await auditor.run()
    finally:
        await cluster.close()
        await history.close()


class _Acks:
    """The devices of one partition's users by the log, and the offsets up to which that was read."""

    def __init__(self, number: int, user: str | None) -> None:
        self.number = number
        self.logged = Logged()
        self.ends = {SESSION_EVENTS: 0, INBOX_REQUESTS: 0}
        self._user = user

    def take(self, record: LogRecord) -> None:
        try:
            items: Any = (SESSIONS if record.topic == SESSION_EVENTS else REQUESTS).decode(record.value)
        except UndecodableRecord:
            return
        for item in items:
            if self._user not in (None, item.user):
                continue
            if isinstance(item, UserConnected):
                self.logged.connected(item, record.at)
            elif isinstance(item, Acknowledge):
                self.logged.acknowledged(item, record.at)


class _Auditor:
    """One audit; the parts that are I/O."""

    def __init__(
        self,
        settings: Settings,
        options: Options,
        progress: Progress,
        generation: int,
        messages: LogReader,
        acks: LogReader,
        groups: _Groups,
        cluster: Cluster,
        history: ChatHistory,
    ) -> None:
        self._settings = settings
        self._options = options
        self._progress = progress
        self._generation = generation
        self._messages = messages
        self._acks_log = acks
        self._groups = groups
        self._cluster = cluster
        self._index = InboxIndex(cluster)
        self._history = history
        self._report = Report()
        self._letters = _Letters()
        self._known_users: set[str] = set()
        self._acks_caught_up = True
        self._done = self._total = 0
        self._began_at, self._began = 0, 0.0

    @property
    def _rules(self) -> Rules:
        s = self._settings
        now = self._began_at + int(1000 * (time.monotonic() - self._began))
        return Rules(now, s.inbox_ttl, s.retry_window, s.max_devices, s.retention)

    async def run(self) -> Report:
        # By the clock of Redis inboxes expire: the one of this machine says nothing.
        self._began_at, self._began = 1000 * await self._cluster.time(), time.monotonic()
        self._report.at = await self._messages.now_ms()
        # An engine that is away is reported now, not after the wait for the services.
        await self._index.look([("", Position(0, 0), 1)])
        if self._options.history:
            await self._history.page("a", "b", None, 1)
        until = time.monotonic() + self._options.wait_s
        partitions = self._options.partitions
        spans = await self._messages.spans(INCOMING_MESSAGES, partitions)
        requests = await self._messages.spans(INBOX_REQUESTS, partitions)
        events = await self._messages.spans(SESSION_EVENTS, partitions)
        self._total = sum(s.end - s.first for s in (*spans, *spans, *requests, *events))
        applied = await self._groups.wait(MESSAGING, spans, until)
        requests_applied = await self._groups.wait(NOTIFICATION, requests, until)
        stored = await self._groups.wait(HISTORY, spans, until) if self._options.history else {}
        self._report.acks_in_flight = sum(s.end - requests_applied[s.partition] for s in requests)
        self._acks_caught_up = not self._report.acks_in_flight
        self._report.losses = Losses.of(
            [
                *await losses.read(self._messages),
                *await self._groups.lost(MESSAGING, [*spans, *events], self._generation),
                *await self._groups.lost(NOTIFICATION, [*requests, *events], self._generation),
                *(await self._groups.lost(HISTORY, spans, self._generation) if self._options.history else ()),
            ],
            partitions,
        )
        letters = await self._messages.spans(names.DEAD_LETTERS)
        async for _, letter in dead_letters.read(self._messages, letters):
            if isinstance(letter, DeadLetter):
                self._letters.add(letter)
        self._letters.sort()
        for span in spans:
            await self._audit(span, applied[span.partition], stored.get(span.partition, 0))
        end = {span.partition: self._position(applied[span.partition]) - 1 for span in spans}
        start = {span.partition: self._position(span.first) - 1 for span in spans}
        if self._options.user is None:
            await self._check_strange_users(start, end)
        return self._report

    def _position(self, offset: int) -> int:
        return pack(Position.of(self._generation, offset, 0))

    # One partition

    async def _audit(self, span: Span, applied: int, stored: int) -> None:
        number = span.partition
        acks = _Acks(number, self._options.user)
        await self._read_acks(acks, count=True)
        repeats = Repeats()
        async for record in self._read(span):
            for _, _, message in self._decode(record, judged=applied, quiet=True):
                repeats.mark(message)
        start = self._position(span.first) - 1
        part = Partition(number, start, acks.logged, self._report)
        items: list[Item] = []
        suspicious: list[Item] = []
        open_: list[Item] = []
        async for record in self._read(span):
            dead = self._letters.has(MESSAGING, INCOMING_MESSAGES, number, record.offset)
            moved = first_offset(record.offset, record.headers) - record.offset
            for position, at, message in self._decode(record, judged=applied, quiet=False):
                message.json = b""
                age = None if dead else repeats.age(message, at)
                items.append(Item(position, at, message, age, dead, position + (moved << INDEX_BITS) if moved else 0))
            if len(items) >= CHUNK:
                suspicious += await self._judge(part, items, stored)
                items = []
            if len(suspicious) >= LOOK_AGAIN_AT:
                await self._triage(acks, suspicious, open_)
                suspicious = []
        suspicious += await self._judge(part, items, stored)
        await self._triage(acks, suspicious, open_)
        await self._settle(acks, open_)
        await self._check_users(acks, part, self._position(applied) - 1)
        self._known_users.update(part.users, acks.logged)

    def _decode(self, record: LogRecord, judged: int, quiet: bool) -> list[tuple[int, int, Any]]:
        """Return the messages of a record that are to be judged, with their packed positions and their time.

        Unless ``quiet``, messages and records that can't be judged go into the report.
        """
        address = address_for(MESSAGING, record.offset, record.at, record.headers)
        if address is None:
            return []
        user, report = self._options.user, self._report
        try:
            messages = INCOMING.decode(record.value).messages
        except UndecodableRecord as error:
            if not quiet and user is None:
                if record.offset >= judged:
                    report.fates[Fate.IN_FLIGHT] += 1
                elif self._letters.has(MESSAGING, INCOMING_MESSAGES, record.partition, record.offset):
                    report.fates[Fate.DEAD_LETTERED] += 1
                else:
                    text = f"the record at offset {record.offset} cannot be read and is no dead letter: {error}"
                    report.other(Finding(record.partition, "", text))
            return []
        mine = [(index, message) for index, message in enumerate(messages) if user in (None, message.to)]
        if record.offset >= judged:
            if not quiet:
                report.fates[Fate.IN_FLIGHT] += len(mine)
            return []
        first = self._position(record.offset)
        return [(first + index, address.at, message) for index, message in mine]

    async def _judge(self, part: Partition, items: Sequence[Item], stored: int) -> list[Item]:
        if not items:
            return []
        views, missing = await asyncio.gather(self._views(part.looks(items)), self._missing(part.number, items, stored))
        for item in missing:
            self._report.missing(part.number, item)
        return part.judge(items, views, self._rules, self._acks_caught_up)

    async def _missing(self, number: int, items: Sequence[Item], stored: int) -> list[Item]:
        if not self._options.history:
            return []
        reached = [item for item in items if unpack(item.position).offset < stored]
        self._report.history_behind += len(items) - len(reached)
        wanted = [
            item
            for item in reached
            if not self._letters.has(HISTORY, INCOMING_MESSAGES, number, unpack(item.position).offset)
        ]
        self._report.history_checked += len(wanted)
        entries = [Entry(unpack(i.position), i.at, i.message, unpack(i.first or i.position)) for i in wanted]
        return [wanted[index] for index in await self._history.missing(entries)]

    # Inboxes

    async def _views(self, looks: Sequence[Look]) -> dict[str, View]:
        """Read ranges of inboxes, each with the entry that follows, which may be the end of a gap."""
        views: dict[str, View] = {}
        waiting = [(look, look.after + 1) for look in looks]
        while waiting:
            wanted = [(look.user, unpack(at), min(PAGE, look.messages + 1)) for look, at in waiting]
            sights = await self._index.look(wanted)
            further = []
            for (look, _), (_, _, count), sight in zip(waiting, wanted, sights, strict=True):
                view = views.get(look.user)
                if view is None:
                    view = views[look.user] = View(_head(sight), {}, [])
                _enter(view, sight.entries)
                if len(sight.entries) == count and (last := pack(sight.entries[-1].position)) < look.until:
                    further.append((look, last + 1))
            waiting = further
        return views

    async def _triage(self, acks: _Acks, suspicious: Sequence[Item], open_: list[Item]) -> None:
        """Judge suspicious messages again; the rest goes to ``open_`` or, if that is full, into the report."""
        for start in range(0, len(suspicious), LOOK_AGAIN_AT):
            for item, problem in await self._look_again(acks, suspicious[start : start + LOOK_AGAIN_AT]):
                if len(open_) < MOST_OPEN:
                    open_.append(item)
                else:
                    self._report.wrong(acks.number, item, problem)

    async def _settle(self, acks: _Acks, items: Sequence[Item]) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while items:
            late = time.monotonic() > deadline
            found = await self._look_again(acks, items)
            if late:
                for item, problem in found:
                    self._report.wrong(acks.number, item, problem)
                return
            items = [item for item, _ in found]
            await asyncio.sleep(LOOK_SECONDS)

    async def _look_again(self, acks: _Acks, items: Sequence[Item]) -> list[tuple[Item, Problem]]:
        """Judge again: first by the acknowledgements that were applied before the inboxes are read, then by all."""
        if not items:
            return []
        acks_applied = await self._acks_are_applied(acks)
        sights = await self._index.look([(item.message.to, unpack(item.position), 1) for item in items])
        views = []
        before = []
        for item, sight in zip(items, sights, strict=True):
            view = View(_head(sight), {}, [])
            _enter(view, sight.entries)
            views.append(view)
            before.append(judge(item, view, acks.logged.of(item.message.to), self._rules, acks_applied))
        await self._read_acks(acks)
        found = []
        for item, view, first in zip(items, views, before, strict=True):
            outcome = judge(item, view, acks.logged.of(item.message.to), self._rules, acks_applied=False)
            if isinstance(first, Problem) and first.twice:
                outcome = first
            if isinstance(outcome, Problem):
                found.append((item, outcome))
            else:
                self._report.fates[outcome] += 1
        return found

    async def _check_users(self, acks: _Acks, part: Partition, until: int) -> None:
        """Check once the inbox of each user in the log: its cursors, and any entries after the user's last message."""
        users = sorted({*part.users, *acks.logged, *([] if self._options.user is None else [self._options.user])})
        for start in range(0, len(users), USERS_AT_ONCE):
            some = users[start : start + USERS_AT_ONCE]
            views = await self._views([Look(user, part.judged_to(user), until, 1) for user in some])
            for user, view in views.items():
                part.strangers(user, view, until, set())
            await self._check_heads(acks, {user: view.head for user, view in views.items()})

    async def _check_heads(self, acks: _Acks, heads: Mapping[str, Head]) -> None:
        """Report what is wrong with the state of some inboxes and stays so for ``SETTLE_SECONDS``."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            late = time.monotonic() > deadline
            (newest,) = await self._acks_log.spans(INCOMING_MESSAGES, [acks.number])
            # What is gone from the log was acknowledged by records that may be gone as well.
            log_start, log_end = self._position(newest.first) - 1, self._position(newest.end)
            problems = {
                user: found
                for user, head in heads.items()
                if (found := check_head(head, acks.logged.of(user), self._rules, log_start, log_end))
            }
            if not problems:
                return
            if late:
                for user, texts in problems.items():
                    for text in texts:
                        self._report.other(Finding(acks.number, user, text))
                return
            await asyncio.sleep(LOOK_SECONDS)
            users = list(problems)
            sights = await self._index.look([(user, Position(0, 0), 1) for user in users])
            heads = {user: _head(sight) for user, sight in zip(users, sights, strict=True)}
            await self._read_acks(acks)

    async def _check_strange_users(self, start: Mapping[int, int], end: Mapping[int, int]) -> None:
        """Check the inboxes of users who are not in the log at all."""
        batch: list[str] = []
        async for users in self._index.users("inbox"):
            for user in users:
                if user not in self._known_users and partition_of(user, self._settings.partitions) in end:
                    self._known_users.add(user)
                    batch.append(user)
            if len(batch) >= USERS_AT_ONCE:
                await self._check_strangers(batch, start, end)
                batch = []
        await self._check_strangers(batch, start, end)

    async def _check_strangers(self, users: Sequence[str], start: Mapping[int, int], end: Mapping[int, int]) -> None:
        numbers = {user: partition_of(user, self._settings.partitions) for user in users}
        views = await self._views([Look(user, start[numbers[user]], end[numbers[user]], 1) for user in users])
        heads: defaultdict[int, dict[str, Head]] = defaultdict(dict)
        for user, view in views.items():
            number = numbers[user]
            Partition(number, start[number], Logged(), self._report).strangers(user, view, end[number], set())
            heads[number][user] = view.head
        # Together, since what is wrong has some seconds to settle.
        for number, of_partition in heads.items():
            await self._check_heads(_Acks(number, None), of_partition)

    # The log

    async def _read(self, span: Span) -> AsyncIterator[LogRecord]:
        base = self._done
        async for record in self._messages.read([span], lambda done, _: self._progress(base + done, self._total)):
            yield record
        self._done = base + span.end - span.first

    async def _read_acks(self, acks: _Acks, count: bool = False) -> None:
        """Read the acknowledgements up to the present end of their topics; ``count`` them for the progress bar."""
        for topic, read_to in acks.ends.items():
            (span,) = await self._acks_log.spans(topic, [acks.number])
            span = span._replace(first=max(span.first, read_to))
            async for record in self._acks_log.read([span]):
                # An acknowledgement that could not be applied removed nothing from an inbox.
                if (
                    not self._letters.has(NOTIFICATION, topic, record.partition, record.offset)
                    or topic == SESSION_EVENTS
                ):
                    acks.take(record)
            acks.ends[topic] = span.end
            if count:
                self._done += span.end - span.first
                self._total = max(self._total, self._done)
                self._progress(self._done, self._total)

    async def _acks_are_applied(self, acks: _Acks) -> bool:
        span = Span(INBOX_REQUESTS, acks.number, 0, acks.ends[INBOX_REQUESTS])
        if not self._acks_caught_up:
            return False
        reached = await self._groups.wait(NOTIFICATION, [span], time.monotonic() + SETTLE_SECONDS)
        return reached[acks.number] >= span.end


def _head(sight: Sight) -> Head:
    first = None
    if sight.first is not None:
        stored = sight.first
        first = pack(stored.position) if stored.gap is None else pack(stored.gap) + 1
    return Head(
        top=pack(sight.fields.get("top", Position(0, 0))),
        floor=pack(sight.fields.get("floor", Position(0, 0))),
        first=first,
        last=0 if sight.last is None else pack(sight.last.position),
        devices={name: pack(cursor.position) for name, cursor in sight.devices.items()},
        seen={name: cursor.seen for name, cursor in sight.devices.items()},
    )


def _enter(view: View, entries: Iterable[Stored]) -> None:
    for entry in entries:
        if entry.gap is None:
            view.messages[pack(entry.position)] = entry.at
        else:
            view.gaps.append((pack(entry.gap), pack(entry.position)))
