"""Strict lanes: writes to a partition leave in order, and none passes one that failed.

What is missing from the log is then missing together with all behind it, so a reader may take what is not above the
highest origin it saw for a repeat, and drop it (``tests/unit/kafka/test_lanes_model.py``).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol

import structlog

from chat_streams.kafka.client import KAFKA_AWAY, NEVER_TAKEN
from chat_streams.kafka.producer import ProducerRecord, Written
from chat_streams.model.errors import KafkaUnavailable, LaneDropped
from chat_streams.runtime.retry import ENGINE_RETRIES
from chat_streams.runtime.tasks import spawn

log = structlog.get_logger()

FIRST_DELAY_S: Final = 0.1
LONGEST_DELAY_S: Final = 2.0
CLOSE_SECONDS: Final = 1.0
STOPPED: Final = "the lanes are stopped"
RECORD_BYTES: Final = 96
"""Bytes that a record has at most beside its key, value and headers, the batch's own among them."""
HEADER_BYTES: Final = 10


class Writer(Protocol):
    """The taker of batches (``KafkaProducer``); what it was cancelled in, or raised for, it writes no more."""

    async def write(self, topic: str, partition: int, records: Sequence[ProducerRecord]) -> Written:
        """Write records as one batch and return where it is in the log."""


class Waiting(NamedTuple):
    """A record that waits in a lane, and whom to tell its offset."""

    key: bytes | None
    value: Callable[[], bytes | None]
    headers: Sequence[tuple[str, bytes]]
    written: asyncio.Future[int]


def can_heal(error: Exception) -> bool:
    """Return whether the same batch may be taken at another time."""
    return isinstance(error, KAFKA_AWAY) and not isinstance(error, NEVER_TAKEN)


def next_batch(waiting: Iterable[Waiting], most_bytes: int) -> list[ProducerRecord]:
    """Return the first records that fit into ``most_bytes``, and one in any case; raises what its value raises."""
    batch: list[ProducerRecord] = []
    size = 0
    for key, value, headers, _ in waiting:
        try:
            record = ProducerRecord(key, value(), headers)
        except Exception:
            if batch:
                # It fails when it is its turn: those before it are good.
                break
            raise
        size += RECORD_BYTES + len(key or b"") + len(record.value or b"")
        size += sum(HEADER_BYTES + len(name.encode()) + len(text) for name, text in headers)
        if batch and size > most_bytes:
            break
        batch.append(record)
    return batch


class _Lane:
    def __init__(self) -> None:
        self.waiting: deque[Waiting] = deque()
        self.task: asyncio.Task[None] | None = None
        self.turn = asyncio.Lock()
        """Held by a task until its last batch has ended, also when it is cancelled."""


class Lanes:
    """A lane for each partition: one batch under way, what waits meanwhile goes into the next.

    A batch that failed is made again, after 0.1 s to 2 s, before anything behind it, and without end: also where a
    right is missing, which an operator can give. What trying again cannot heal drops the lane: a record that is too
    large, a value that raises, more than ``most_waiting`` records. A lane is dropped as a whole: if one record were
    refused alone, those behind it would pass it.

    Args:
        writer: Taker of the batches.
        batch_bytes: Bytes up to which a batch takes further records; the writer takes as many and one more record.
        most_waiting: Records that wait in a lane, at most; they have no bytes of their own yet.
    """

    def __init__(self, writer: Writer, batch_bytes: int, most_waiting: int = 10_000) -> None:
        self._writer = writer
        self._batch_bytes = batch_bytes
        self._most_waiting = most_waiting
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def write(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: Callable[[], bytes | None],
        headers: Sequence[tuple[str, bytes]] | None = None,
    ) -> asyncio.Future[int]:
        """Put a record behind the others of its partition; returns at once, with the future of its offset (or -1).

        ``value`` is called when it is the record's turn, anew for each try. The future may fail with ``LaneDropped``;
        cancelling it takes nothing back.
        """
        lane = self._lanes.setdefault((topic, partition), _Lane())
        written: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        lane.waiting.append(Waiting(key, value, headers or (), written))
        if self._stopped:
            self.drop(topic, partition, KafkaUnavailable(STOPPED))
        elif len(lane.waiting) > self._most_waiting:
            self.drop(topic, partition, KafkaUnavailable(f"more than {self._most_waiting} records wait"))
        elif lane.task is None:
            # However it ends, nothing may wait for it for ever.
            lane.task = spawn(
                f"write to {topic}/{partition}",
                self._run(topic, partition, lane),
                partial(self._on_failed, topic, partition),
            )
            self._tasks.add(lane.task)
            lane.task.add_done_callback(self._tasks.discard)
        return written

    def drop(self, topic: str, partition: int, error: BaseException) -> None:
        """Give up all writes to a partition that are not confirmed: their futures fail, nothing of them is written.

        What is written to the partition from now on waits until the batch under way has ended.
        """
        if (lane := self._lanes.get((topic, partition))) is None or not lane.waiting:
            return
        dropped, lane.waiting = lane.waiting, deque()
        log.warning("a lane is dropped", topic=topic, partition=partition, count=len(dropped), error=repr(error))
        if lane.task is not None:
            lane.task.cancel()
            lane.task = None
        for each in dropped:
            if not each.written.done():
                failure = LaneDropped(f"{len(dropped)} writes to {topic}/{partition} were given up: {error!r}")
                failure.__cause__ = error
                each.written.set_exception(failure)
                # The log has said it: asyncio need not, where nobody looks.
                each.written.exception()

    def _on_failed(self, topic: str, partition: int, error: BaseException) -> None:
        self._lanes[topic, partition].task = None
        self.drop(topic, partition, error)

    async def flush(self, within_s: float) -> bool:
        """Return whether nothing waits any more, once that is so or after ``within_s``."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while self._tasks and (left := deadline - loop.time()) > 0:
            await asyncio.wait(self._tasks, timeout=left)
        return not self._tasks

    async def stop(self, within_s: float) -> None:
        """Wait for what waits, ``within_s`` at most, then drop all lanes; what is written later fails at once."""
        await self.flush(within_s)
        self._stopped = True
        for topic, partition in self._lanes:
            self.drop(topic, partition, KafkaUnavailable(STOPPED))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)

    async def _run(self, topic: str, partition: int, lane: _Lane) -> None:
        async with lane.turn:
            waiting, delay = lane.waiting, FIRST_DELAY_S
            while waiting:
                batch: list[ProducerRecord] = []
                try:
                    batch = next_batch(waiting, self._batch_bytes)
                    first = (await self._writer.write(topic, partition, batch)).offset
                except Exception as error:  # noqa: BLE001 - it is told to all who wait: nothing may stick in a lane
                    # Without a batch, a value has raised.
                    if not (batch and can_heal(error)):
                        lane.task = None
                        self.drop(topic, partition, error)
                        return
                    log.warning("kafka took no batch", topic=topic, partition=partition, error=repr(error))
                    ENGINE_RETRIES.labels(f"write to {topic}").inc()
                    await asyncio.sleep(delay)
                    delay = min(2 * delay, LONGEST_DELAY_S)
                    continue
                delay = FIRST_DELAY_S
                for index in range(len(batch)):
                    written = waiting.popleft().written
                    if not written.done():
                        written.set_result(first + index if first >= 0 else first)
            lane.task = None
