"""What comes into a topic, read once for all who follow it, and never more than a budget allows.

As long as little comes, everything is read. Of more, the newest of each partition is: what is left out is counted by
its offsets. A follower's place is its own, so that one who was away goes on where they were.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import structlog

from chat_streams.inspector.reading import things_of
from chat_streams.kafka.log_reader import LogReader, LogRecord, Span
from chat_streams.model.errors import KafkaUnavailable, UndecodableRecord, UnknownVersion
from chat_streams.operations.lag_sampling import count_of
from chat_streams.runtime.settings import Settings

log = structlog.get_logger()

TICK_S: Final = 0.5
BYTES_PER_S: Final = 256 * 1024
"""Of all topics together, however many follow: what the inspector may cost the path."""
BURST_BYTES: Final = 4 * 1024 * 1024
"""What was not used is kept, so that a burst is read whole."""
RECORD_COST: Final = 512
"""Reading a record costs as much as so many bytes, whatever is in it."""


class Budget:
    """Bytes that may be read: ``per_s`` more each second, ``most`` at once. A read that was larger is a debt."""

    def __init__(self, per_s: float = BYTES_PER_S, most: float = BURST_BYTES) -> None:
        self._per_s, self._most = per_s, most
        self._left, self._at = most, time.monotonic()

    def left(self, now: float) -> float:
        """What there is at a time (s, monotonic)."""
        self._left = min(self._most, self._left + (now - self._at) * self._per_s)
        self._at = now
        return self._left

    def spend(self, cost: float) -> None:
        """Take off what was read."""
        self._left -= cost


def plan(behind: Mapping[int, tuple[int, int]], most: int) -> dict[int, tuple[int, int]]:
    """Of the offsets ``[first, end)`` of each partition those to read: the newest, ``most`` in all.

    Where there are more partitions than that, some by chance; the others are for the next time.
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
    """A record that was read, and what is in it, decoded when somebody asks, once for all."""

    def __init__(self, record: LogRecord) -> None:
        self.record = record
        self.count = count_of(record.topic, record.value)

    @cached_property
    def things(self) -> list[Any] | str:
        """What is in it, or why that can't be decoded."""
        try:
            return things_of(self.record.topic, self.record.value)
        except (UndecodableRecord, UnknownVersion) as error:
            return str(error)


@dataclass(eq=False)
class Follower:
    """Who follows: each record from their place on is given to ``take``, and the place moves on."""

    at: dict[int, int | None]
    """Per partition the offset to go on at; ``None`` before the first look, which begins at the end."""
    take: Callable[[Read], None]
    skipped: int = 0
    """Records that were not read."""
    skipped_things: float = 0.0
    """What was in them, by what those that were read held."""

    @property
    def placed(self) -> bool:
        """Whether it is known where it goes on."""
        return None not in self.at.values()

    @property
    def place(self) -> str:
        """Where it goes on, as text: ``0:17,3:2``."""
        return ",".join(f"{p}:{offset}" for p, offset in self.at.items() if offset is not None)


@dataclass
class Feed:
    """One topic, read for as long as it has followers."""

    settings: Settings
    topic: str
    budget: Budget
    followers: set[Follower] = field(default_factory=set)
    present: tuple[Follower, ...] = ()
    """Those whose places what is being read was chosen by."""
    task: asyncio.Task[None] | None = None
    cost: float = RECORD_COST
    """Of a record, on average of the latest."""
    things: float | None = None
    """In a record, likewise."""

    async def run(self, share: Callable[[], float]) -> None:
        """Read a ``share`` of the budget every ``TICK_S``; raises ``KafkaUnavailable``."""
        async with LogReader(self.settings) as reader:
            while True:
                await self.look(reader, int(self.budget.left(time.monotonic()) * share() / self.cost))
                await asyncio.sleep(TICK_S)

    async def look(self, reader: LogReader, most: int) -> None:
        """Read what there is for the followers, ``most`` records at most."""
        spans = plan(await self._behind(reader), most)
        async for record in reader.read([Span(self.topic, p, *span) for p, span in spans.items()]):
            self._take(Read(record))
        self._move_on(spans)

    async def _behind(self, reader: LogReader) -> dict[int, tuple[int, int]]:
        """From where the first of the followers is to the end, per partition."""
        ends = await reader.ends(self.topic, sorted({p for f in self.followers for p in f.at}))
        self.present = tuple(self.followers)
        firsts = dict(ends)
        for follower in self.present:
            for p, at in follower.at.items():
                end = ends.get(p, at)
                follower.at[p] = place = end if at is None or end is None else min(at, end)
                if place is not None and p in firsts:
                    firsts[p] = min(firsts[p], place)
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
        # Past what is gone from the log, too.
        for follower in self.present:
            for p, (_, end) in spans.items():
                if (at := follower.at.get(p)) is not None:
                    follower.at[p] = max(at, end)


class Feeds:
    """The topics that somebody follows."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._budget = Budget()
        self._feeds: dict[str, Feed] = {}

    @contextlib.contextmanager
    def follow(self, topic: str, follower: Follower) -> Iterator[Callable[[], str]]:
        """Have ``follower`` given what comes into a topic; what it yields says why nothing comes, or is empty."""
        feed = self._feeds.get(topic)
        if feed is None or feed.task is None:
            feed = self._feeds[topic] = Feed(self._settings, topic, self._budget)
            feed.task = asyncio.create_task(self._run(feed))
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
        except KafkaUnavailable as error:
            log.warning("a tail has ended", topic=feed.topic, error=str(error))
        except Exception as error:  # noqa: BLE001 - its followers begin anew
            log.warning("a tail has ended", topic=feed.topic, error=repr(error))
        finally:
            self._forget(feed)

    def _forget(self, feed: Feed) -> None:
        if self._feeds.get(feed.topic) is feed:
            del self._feeds[feed.topic]
