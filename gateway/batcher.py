"""Batches of one partition: small items are collected into few Kafka records, in order, one written at a time."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Coroutine
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from chat_streams.model.records import MAX_MESSAGES
from gateway.state.flush_schedule import FlushSchedule

T = TypeVar("T")


class Part(NamedTuple):
    """The fate of some items in a row: when they were appended (ms since the epoch), ``None`` if not for sure.

    Those that are too large were not: Kafka refuses them for good.
    """

    items: int
    at: int | None = None
    is_too_large: bool = False


class RecordWriter(Protocol):
    """The taker of a batcher's records."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the writing of a record, for which the end of the process waits."""

    async def write(self, topic: str, partition: int, items: list[Any]) -> list[Part]:
        """Write items, in one record if that can be; returns their fates, in their order."""

    def release(self, size: int) -> None:
        """Free the room of items that no longer wait."""

    def on_written(self, topic: str, items: list[Any], at: int | None) -> None:
        """Note when items were appended to the log (ms since the epoch), or with ``None`` that they have failed."""

    def on_too_large(self, topic: str, items: list[Any]) -> None:
        """Note that items were refused for good, since each is too large for its topic."""


class _Waiting(NamedTuple, Generic[T]):
    item: T
    size: int
    since: float


class PartitionBatcher(Generic[T]):
    """The items for one partition of one topic: one record under way at a time, so what fails fails in order.

    The first record leaves at once, then they keep the ``schedule`` of their topic while they are not full (by number,
    or by ``record_bytes``): a lone record costs the whole system milliseconds, a batched one a fraction
    (``docs/architecture.md``, "A record carries a batch"). An item with a ``linger`` waits that long, in s, for others
    to travel with. One that has not left after ``patience_s`` fails: that is how long a record may be under way.
    """

    def __init__(
        self,
        writer: RecordWriter,
        topic: str,
        partition: int,
        schedule: FlushSchedule,
        record_bytes: int,
        patience_s: float,
    ) -> None:
        self._writer = writer
        self._topic = topic
        self._partition = partition
        self._schedule = schedule
        self._record_bytes = record_bytes
        self._patience_s = patience_s
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Waiting[T]] = []
        self._bytes = 0
        self._under_way = False
        self._left_at = -math.inf
        self._flushing = False
        self._due_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def add(self, item: T, size: int, linger: float) -> None:
        """Take an item of ``size`` bytes in, which may wait up to ``linger`` s for others."""
        now = self._loop.time()
        self._waiting.append(_Waiting(item, size, now))
        self._bytes += size
        self._due_at = min(self._due_at, self._schedule.linger(now, linger) if linger else 0.0)
        if not self._under_way:
            self._send_when_due()

    @property
    def is_idle(self) -> bool:
        """True while no item waits or is under way."""
        return not (self._waiting or self._under_way)

    def flush(self) -> None:
        """Send what waits as soon as nothing is under way."""
        if not self._waiting:
            return
        self._flushing = True
        if not self._under_way:
            self._send_when_due()

    def _is_full(self) -> bool:
        return len(self._waiting) >= MAX_MESSAGES or self._bytes >= self._record_bytes

    def _send_when_due(self) -> None:
        if not self._waiting:
            return
        now = self._loop.time()
        if now - self._waiting[0].since > self._patience_s:
            # This process stood still. Whoever sent it has sent it elsewhere by now, and what is written so late may
            # be behind the retry window. All behind it fails, too, so that the order stays.
            self._set_timer(math.inf)
            self._end([], [Part(0)])
            return
        leaves_at = max(self._schedule.next_flush(now, self._left_at), self._due_at)
        if now >= leaves_at or self._flushing or self._is_full():
            if now >= leaves_at:
                # Those which are full or flushed must not hold up the others.
                self._schedule.on_flush(now)
            self._left_at = now
            self._flushing = False
            self._set_timer(math.inf)
            self._under_way = True
            self._writer.spawn(self._send(self._take()))
        elif leaves_at < self._timer_at:
            self._set_timer(leaves_at)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if at == math.inf else self._loop.call_at(at, self._on_timer)
        self._timer_at = at

    def _on_timer(self) -> None:
        self._set_timer(math.inf)
        if not self._under_way:
            self._send_when_due()

    def _take(self) -> list[_Waiting[T]]:
        size = count = 0
        for each in self._waiting[:MAX_MESSAGES]:
            if count and size + each.size > self._record_bytes:
                break
            size += each.size
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        self._bytes -= size
        # What stays behind was waiting for room, not for others.
        self._due_at = 0.0 if self._waiting else math.inf
        return taken

    async def _send(self, taken: list[_Waiting[T]]) -> None:
        parts = [Part(len(taken))]
        try:
            parts = await self._writer.write(self._topic, self._partition, [each.item for each in taken])
        finally:
            try:
                self._end(taken, parts)
            finally:
                # Also after an error: else nothing of this partition would ever leave again.
                self._under_way = False
                self._send_when_due()

    def _end(self, taken: list[_Waiting[T]], parts: list[Part]) -> None:
        if any(part.at is None and not part.is_too_large for part in parts):
            # What follows a record that failed fails with it: sent again, all of it comes in the old order.
            parts = [*parts, Part(len(self._waiting))]
            taken, self._waiting, self._bytes, self._due_at = taken + self._waiting, [], 0, math.inf
        self._writer.release(sum(each.size for each in taken))
        left = iter(taken)
        for (at, is_too_large), of_fate in itertools.groupby(parts, key=lambda part: part[1:]):
            items = [each.item for part in of_fate for each in itertools.islice(left, part.items)]
            if is_too_large:
                self._writer.on_too_large(self._topic, items)
            else:
                self._writer.on_written(self._topic, items, at)
