"""New records of a topic, read once for all viewers that follow it, and within a budget of bytes.

While there are few new records, all are read. If there are more than the budget allows, the newest of each partition
are read, and the others are counted by their offsets. Each follower has offsets of its own, so that a viewer who
reconnects goes on where they were.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Final

import structlog

from chat_streams.inspector.decoding import things_of
from chat_streams.kafka.log_reader import LogReader, LogRecord, Span
from chat_streams.model.errors import UndecodableRecord, UnknownVersion
from chat_streams.operations.lag_sampling import count_of
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.tasks import spawn

log = structlog.get_logger()

TICK_S: Final = 0.5
"""Seconds between two reads."""
BYTES_PER_S: Final = 256 * 1024
"""The budget of all topics and followers together, so that the inspector takes little from the path of messages."""
BURST_BYTES: Final = 4 * 1024 * 1024
"""The largest unused budget that is kept, so that a burst can be read whole."""
RECORD_COST: Final = 512
"""The fixed cost of reading a record, in bytes, in addition to its size."""


class Budget:
    """A budget of bytes to read: ``per_s`` more each second, ``most`` at once. A larger read leaves it negative."""

    def __init__(self, per_s: float = BYTES_PER_S, most: float = BURST_BYTES) -> None:
        self._per_s, self._most = per_s, most
        self._left, self._at = most, time.monotonic()

    def left(self, now: float) -> float:
        """Return the bytes that may be read at a time (s, monotonic)."""
        self._left = min(self._most, self._left + (now - self._at) * self._per_s)
        self._at = now
        return self._left

    def spend(self, cost: float) -> None:
        """Subtract the cost of a read."""
        self._left -= cost


def plan(behind: Mapping[int, tuple[int, int]], most: int) -> dict[int, tuple[int, int]]:
    """Choose the offsets to read from the ``[first, end)`` of each partition: the newest, ``most`` in all.

    If there are more partitions than ``most``, a random choice of them is read, and the others at a later call.
    """
    waiting = {p: end - first for p, (first, end) in behind.items() if first < end}
    chosen = sorted(random.sample(sorted(waiting), max(0, min(most, len(waiting)))), key=waiting.__getitem__)
    found = {}
    for number, partition in enumerate(chosen):
        count = min(waiting[partition], most // (len(chosen) - number))
        most -= count
        found[partition] = (behind[partition][1] - count, behind[partition][1])
    return found


class Read:
    """A record that was read; it is decoded on first use, once for all followers."""

    def __init__(self, record: LogRecord) -> None:
        self.record = record
        self.count = count_of(record.topic, record.value)

    @cached_property
    def things(self) -> list[Any] | str:
        """The items in the record, or a text that says why it can't be decoded."""
        try:
            return things_of(self.record.topic, self.record.value)
        except (UndecodableRecord, UnknownVersion) as error:
            return str(error)


@dataclass(eq=False)
class Follower:
    """A viewer of a topic: ``take`` is called with each record from the offsets ``at`` on, which then advance."""

    at: dict[int, int | None]
    """The next offset of each partition; ``None`` before the first look, which starts at the end of the partition."""
    take: Callable[[Read], None]
    skipped: int = 0
    """The number of records that were not read."""
    skipped_things: float = 0.0
    """An estimate of the number of items in the skipped records, by the average of those that were read."""

    @property
    def placed(self) -> bool:
        """True if the next offset of every partition is known."""
        return None not in self.at.values()

    @property
    def place(self) -> str:
        """The next offset of each partition, as text: ``0:17,3:2``."""
        return ",".join(f"{p}:{offset}" for p, offset in self.at.items() if offset is not None)


@dataclass
class Feed:
    """The reading of one topic, for as long as it has followers."""

    settings: Settings
    topic: str
    budget: Budget
    followers: set[Follower] = field(default_factory=set)
    present: tuple[Follower, ...] = ()
    """The followers whose offsets decided what is being read now."""
    task: asyncio.Task[None] | None = None
    cost: float = RECORD_COST
    """The average cost of the latest records, in bytes."""
    things: float | None = None
    """The average number of items in the latest records; ``None`` before the first."""

    async def run(self, share: Callable[[], float]) -> None:
        """Read a ``share`` (0 to 1) of the budget every ``TICK_S``; raises ``KafkaUnavailable``."""
        async with LogReader(self.settings) as reader:
            while True:
                await self.look(reader, int(self.budget.left(time.monotonic()) * share() / self.cost))
                await asyncio.sleep(TICK_S)

    async def look(self, reader: LogReader, most: int) -> None:
        """Read the new records for the followers, ``most`` at most."""
        spans = plan(await self._behind(reader), most)
        async for record in reader.read([Span(self.topic, p, *span) for p, span in spans.items()]):
            self._take(Read(record))
        self._move_on(spans)

    async def _behind(self, reader: LogReader) -> dict[int, tuple[int, int]]:
        """Return for each partition the offsets ``[first, end)`` that some follower has not been given."""
        ends = await reader.ends(self.topic, sorted({p for f in self.followers for p in f.at}))
        self.present = tuple(self.followers)
        firsts = dict(ends)
        for follower in self.present:
            for p, at in follower.at.items():
                end = ends.get(p, at)
                follower.at[p] = offset = end if at is None or end is None else min(at, end)
                if offset is not None and p in firsts:
                    firsts[p] = min(firsts[p], offset)
        return {p: (firsts[p], end) for p, end in ends.items()}

    def _take(self, read: Read) -> None:
        record = read.record
        cost = len(record.value or b"") + RECORD_COST
        self.budget.spend(cost)
        self.cost += (cost - self.cost) / 8
        self.things = read.count if self.things is None else self.things + (read.count - self.things) / 8
        for follower in self.present:
            at = follower.at.get(record.partition)
            if at is not None and record.offset >= at:
                follower.skipped += record.offset - at
                follower.skipped_things += (record.offset - at) * self.things
                follower.at[record.partition] = record.offset + 1
                follower.take(read)

    def _move_on(self, spans: Mapping[int, tuple[int, int]]) -> None:
        # Offsets advance also past records that are gone from the log.
        for follower in self.present:
            for p, (_, end) in spans.items():
                if (at := follower.at.get(p)) is not None:
                    follower.at[p] = max(at, end)


class Feeds:
    """The feeds of all topics that have followers; they share one budget."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._budget = Budget()
        self._feeds: dict[str, Feed] = {}

    @contextlib.contextmanager
    def follow(self, topic: str, follower: Follower) -> Iterator[Callable[[], str]]:
        """Give ``follower`` the new records of a topic; yields a function that returns why reading ended, or ``""``."""
        feed = self._feeds.get(topic)
        if feed is None or feed.task is None:
            feed = self._feeds[topic] = Feed(self._settings, topic, self._budget)
            feed.task = spawn(f"tail of {topic}", self._run(feed), partial(_log_end, topic))
        feed.followers.add(follower)
        task = feed.task
        try:
            yield lambda: "reading it has ended" if task.done() else ""
        finally:
            feed.followers.discard(follower)
            if not feed.followers:
                task.cancel()
                self._forget(feed)

    async def _run(self, feed: Feed) -> None:
        try:
            await feed.run(lambda: 1 / max(1, len(self._feeds)))
        finally:
            self._forget(feed)

    def _forget(self, feed: Feed) -> None:
        if self._feeds.get(feed.topic) is feed:
            del self._feeds[feed.topic]


def _log_end(topic: str, error: BaseException) -> None:
    """Note that reading has ended: its followers reconnect, and start it again."""
    log.warning("a tail has ended", topic=topic, error=repr(error))
