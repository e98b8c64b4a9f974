"""A Faust app whose agents apply the records of a partition in contiguous order and commit only what is done.

A record that fails again and again becomes a dead letter.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, TypeVar

import faust
import structlog
from faust.types import TP

from chat_streams.model.records import DEAD_LETTERS, Codec, DeadLetter
from chat_streams.model.redrive import Redrive
from chat_streams.model.times import now_ms
from chat_streams.processing.away import is_away
from chat_streams.processing.consumer import log_at
from chat_streams.processing.offsets import LostRange, Progress
from chat_streams.processing.processor import Apply, Processor
from chat_streams.processing.transport import Transport
from chat_streams.processing.worker_metrics import (
    AGENT_BATCH_SECONDS,
    AGENT_ERRORS,
    AGENT_RECORDS,
    DEAD_LETTERS_WRITTEN,
    PARTITIONS,
    REBALANCES,
    REBALANCING,
    RECOVERING,
    WORKER,
)
from chat_streams.runtime.metrics import REGISTRY
from chat_streams.runtime.statistics import Statistics

log = structlog.get_logger()

T = TypeVar("T")

BATCH_RECORDS: Final = 200
BATCH_BYTES: Final = 2 * 1024 * 1024
WATCH_SECONDS: Final = 5.0
STALLED_SECONDS: Final = 10.0
MAX_TRACEBACK: Final = 8_000


class OrderedApp(faust.App):
    """A Faust app with contiguous partitions; its agents hand their stream to ``process``.

    Args:
        args: As for ``faust.App``.
        client_options: Addresses, TLS and login of Kafka, as ``kafka.client.client_options`` returns them.
        loss_window: Seconds of writes that a failover of Redis may lose.
        dead_letters: Topic for records that cannot be applied.
        kwargs: As for ``faust.App``.
    """

    def __init__(
        self, *args: Any, client_options: Mapping[str, Any], loss_window: float, dead_letters: str, **kwargs: Any
    ) -> None:
        self.client_options = client_options
        self.progress: Progress[TP] = Progress(loss_window)
        self.topic_ids: Mapping[str, str] = {}
        """Kafka's ids of the topics at the start of the process, by name; what is committed says of which it is."""
        self._dead_letters = dead_letters
        self.statistics = Statistics(args[0], REGISTRY, WORKER)
        # Since when the agent of each topic has nothing to do; None while it works.
        self._idle_since: dict[str, float | None] = {}
        super().__init__(*args, **kwargs)
        self.transport = Transport([], self)
        REBALANCING.set_function(lambda: self.rebalancing)
        RECOVERING.set_function(lambda: self.in_recovery)

    def on_rebalance_start(self) -> None:
        """Count it."""
        REBALANCES.inc()
        super().on_rebalance_start()

    async def check_topics(self) -> None:
        """Raise where a topic is another one than at the start; called before partitions begin."""

    def partitions(self) -> dict[str, list[int]]:
        """The partitions whose records this worker applies, by topic."""
        found: dict[str, list[int]] = {}
        for tp in sorted(self.consumer.assignment()):
            if tp in self.progress:
                found.setdefault(tp.topic, []).append(tp.partition)
        return found

    async def process(self, stream: Any, codec: Codec[T], apply: Apply[T], most_records: int = BATCH_RECORDS) -> None:
        """Apply all records of a stream, in the order of each partition, as many at once as are waiting.

        An exception that no record explains ends the worker, and nothing is committed that was not done.
        """
        try:
            processor = Processor(self.conf.id, codec, apply, self.progress, self, is_away)
            await processor.run(self._batches(stream, most_records))
        except Exception as error:
            log.critical("stopping", error=repr(error))
            await self.crash(error)
            raise

    async def rewind(self, offsets: Mapping[TP, int]) -> None:
        """Apply partitions again from an offset; ``apply`` raises ``Rewound`` after it.

        What the log no longer has of them is ``lost``.
        """
        earliest = await self.consumer.earliest_offsets(*offsets)
        for tp, offset in offsets.items():
            if tp in self.progress:
                self.consumer.rewind(tp, offset, earliest[tp])

    async def first_unapplied(self, tp: TP) -> int:
        """Return the first offset that may not be applied, where the group has committed none."""
        return 0

    async def lost(self, tp: TP, lost: LostRange) -> None:
        """Carry out what follows from records that are gone, before anything behind them is applied."""

    def produce(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: Callable[[], bytes],
        headers: list[tuple[str, bytes]] | None = None,
    ) -> asyncio.Future[int]:
        """Write a record; returns the future of Kafka's answer, for as long as it is away, or of ``LaneDropped``.

        To a partition, records leave in the order of the calls, also where one has to be repeated (``kafka/lanes.py``).
        Its ``value`` is asked for when it is its turn, anew for each try: what waits for a slow Kafka has no bytes of
        its own yet.
        """
        written: asyncio.Future[int] = self.producer.write(topic, partition, key, value, headers)
        return written

    async def watch(self) -> None:
        """Seek where a partition stands still though the log goes on; for as long as the app runs."""
        while not self.should_stop:
            await self.sleep(WATCH_SECONDS)
            if self.should_stop or self.rebalancing or not self.flow_control.is_active():
                continue
            now = time.monotonic()
            for tp in [tp for tp in self.consumer.assignment() if tp in self.progress]:
                idle_since = self._idle_since.get(tp.topic)
                if idle_since is None or now - idle_since < STALLED_SECONDS:
                    continue
                end = self.consumer.highwater(tp)
                if end is not None and self.progress.stalled(tp, end, now, STALLED_SECONDS):
                    self.fill_hole(tp, "no progress")

    async def _batches(self, stream: Any, most: int) -> AsyncIterator[list[Any]]:
        """Yield what waits in a stream, bounded in records and bytes.

        One by one it is taken from the stream itself, which tells a table of the event that is being processed. That
        costs two turns of the loop for each record.
        """
        queue = stream.channel.queue
        topic = stream.channel.topics[0]
        PARTITIONS.labels(topic).set_function(lambda: len(self.partitions().get(topic, ())))
        for metric in (AGENT_RECORDS, AGENT_ERRORS, AGENT_BATCH_SECONDS, DEAD_LETTERS_WRITTEN):
            metric.labels(topic)
        self._idle_since[topic] = time.monotonic()
        async for event in stream.events() if most == 1 else _queued(queue):
            self._idle_since[topic] = None
            messages = [event.message]
            size = len(event.message.value or b"")
            with contextlib.suppress(StopAsyncIteration):
                while len(messages) < most and size < BATCH_BYTES and not queue.empty():
                    messages.append(queue.get_nowait().message)
                    size += len(messages[-1].value or b"")
            self.consumer.took(topic, len(messages), size)
            yield messages
            self._idle_since[topic] = time.monotonic()

    # What a processor asks for

    def fill_hole(self, tp: TP, why: str) -> None:
        """Have the records of a partition come again from the one that is expected."""
        self.consumer.fill_hole(tp, why)

    def go_on(self, tp: TP) -> None:
        """Begin another run through a partition at the first record that is not done."""
        self.consumer.go_on(tp)

    async def bury(self, message: Any, error: BaseException) -> None:
        """Write a record to the dead letters, and wait until Kafka has it."""
        log_at(message.tp, message.offset).error("dead letter", error=repr(error))
        self._count_failure(message.topic, error)
        DEAD_LETTERS_WRITTEN.labels(message.topic).inc()
        now = now_ms()
        redrive = Redrive.of(message.headers) or Redrive(frozenset())
        letter = DeadLetter(
            app=self.conf.id,
            topic=message.topic,
            partition=message.partition,
            offset=message.offset if redrive.offset is None else redrive.offset,
            key=message.key,
            value=message.value,
            reason=f"{type(error).__name__}: {error}"[:1000],
            traceback="".join(traceback.format_exception(error))[-MAX_TRACEBACK:],
            first_at=now if redrive.first_at is None else redrive.first_at,
            last_at=now,
            logged_at=round(1000 * message.timestamp) if redrive.logged_at is None else redrive.logged_at,
            first_offset=redrive.first_offset,
        )
        partition = await self.producer.partition_of(self._dead_letters, message.key)
        await self.produce(self._dead_letters, partition, message.key, lambda: DEAD_LETTERS.encode(letter))

    def note_failure(self, message: Any, attempt: int, error: BaseException) -> None:
        """Note that a record could not be applied, and will be tried again."""
        self._count_failure(message.topic, error)
        log_at(message.tp, message.offset).warning(
            "applying a record failed, trying again", attempt=attempt, error=repr(error)
        )

    def note_done(self, topic: str, count: int, seconds: float) -> None:
        """Note that a batch is done."""
        AGENT_RECORDS.labels(topic).inc(count)
        AGENT_BATCH_SECONDS.labels(topic).observe(seconds)

    def end(self, error: BaseException) -> None:
        """End the process by an error that no record explains."""
        log.critical("stopping", error=repr(error))
        self.add_future(self.crash(error))

    def _count_failure(self, topic: str, error: BaseException) -> None:
        AGENT_ERRORS.labels(topic).inc()
        self.statistics.failed(topic, error)


async def _queued(queue: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    # Faust ends a stream by throwing this into its queue.
    with contextlib.suppress(StopAsyncIteration):
        while True:
            yield await queue.get()
