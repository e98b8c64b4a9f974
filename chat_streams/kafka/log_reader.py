"""A reader of a part of a topic, between offsets that are fixed at the start: for commands that inspect the log.

    async with LogReader(settings) as reader:
        spans = await reader.spans(INCOMING_MESSAGES, [3], since_ms=yesterday)
        async for record in reader.read(spans, progress):
            ...

It joins no consumer group, commits nothing, and holds a few fetches at most, however long the topic.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, Self, TypeVar

import aiokafka
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.structs import TopicPartition

from chat_streams.compat.aiokafka import fetch_metadata
from chat_streams.kafka.client import client_options, explain_failure
from chat_streams.kafka.names import SERVICE_STATS
from chat_streams.model.errors import KafkaUnavailable, NoSuchPartition
from chat_streams.model.times import now_ms
from chat_streams.runtime.settings import Settings

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""A callback that gets the number of offsets read so far and the total, over all partitions."""

PATIENCE_S: Final = 30.0
"""Seconds without an answer from Kafka after which reading ends with ``KafkaUnavailable``."""
POLL_S: Final = 1.0
POLL_RECORDS: Final = 500
PARTITION_FETCH_BYTES: Final = 1024 * 1024
FETCH_BYTES: Final = 8 * 1024 * 1024
"""The largest number of bytes in one answer; a single larger record is returned all the same."""


class Span(NamedTuple):
    """A range of offsets, ``[first, end)``, of one partition; empty when both are the same."""

    topic: str
    partition: int
    first: int
    end: int


class LogRecord(NamedTuple):
    """A record as it is in the log, undecoded; ``at`` is Kafka's timestamp, in ms since the epoch."""

    topic: str
    partition: int
    offset: int
    at: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class LogReader:
    """A connection to Kafka for any number of reads of any topics, one read at a time.

    ``fetch_bytes`` is the number of bytes requested of a partition at once. Every method raises ``KafkaUnavailable``.
    """

    def __init__(self, settings: Settings, fetch_bytes: int = PARTITION_FETCH_BYTES) -> None:
        self._settings = settings
        self._fetch_bytes = fetch_bytes
        self._consumer: aiokafka.AIOKafkaConsumer

    async def __aenter__(self) -> Self:
        self._consumer = aiokafka.AIOKafkaConsumer(
            **client_options(self._settings),
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_partition_fetch_bytes=self._fetch_bytes,
            fetch_max_bytes=FETCH_BYTES,
        )
        try:
            await self._answer(self._consumer.start())
        except BaseException:
            await self._consumer.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        # aiokafka's stop() raises CancelledError while a task that it created has not started to run.
        await asyncio.sleep(0)
        await self._consumer.stop()

    async def spans(
        self,
        topic: str,
        partitions: Sequence[int] | None = None,
        *,
        since_ms: int | None = None,
        until_ms: int | None = None,
    ) -> list[Span]:
        """Return the ranges of offsets that a topic's partitions have now, in the order of ``partitions``.

        Raises ``KafkaUnavailable``, and ``NoSuchPartition`` when the topic or a partition does not exist.

        Args:
            topic: Name of the topic.
            partitions: Numbers of the partitions; ``None`` for all.
            since_ms: Start at the first record of this time or later (ms since the epoch).
            until_ms: End before the first record of this time or later (ms since the epoch).
        """
        cluster = await self._answer(fetch_metadata(self._consumer))
        existing = cluster.partitions_for_topic(topic)
        if not existing:
            raise NoSuchPartition(
                f"there is no topic {topic} at {self._settings.kafka}: 'faust -A chat_streams topics create'"
            )
        if partitions is None:
            partitions = sorted(existing)
        elif missing := set(partitions) - existing:
            raise NoSuchPartition(f"topic {topic} at {self._settings.kafka} has no partition {min(missing)}")
        tps = [TopicPartition(topic, partition) for partition in partitions]
        if not tps:
            return []
        firsts = await self._answer(self._consumer.beginning_offsets(tps))
        ends = await self._answer(self._consumer.end_offsets(tps))
        at_since = await self._offsets_at(tps, since_ms, firsts, ends)
        at_until = await self._offsets_at(tps, until_ms, ends, ends)
        return [Span(topic, tp.partition, min(at_since[tp], ends[tp]), max(at_until[tp], at_since[tp])) for tp in tps]

    async def now_ms(self) -> int:
        """Return the log's time, about, in ms since the epoch: when a service told its statistics last.

        All services do every 5 s; where none ever did, the time of this machine is returned.
        """
        (span,) = await self.spans(SERVICE_STATS)
        async for record in self.read([span._replace(first=max(span.first, span.end - 1))]):
            return record.at
        return now_ms()

    async def ends(self, topic: str, partitions: Sequence[int]) -> dict[int, int]:
        """Return the end offset of each partition now, with one request to Kafka where ``spans`` makes three."""
        found = await self._answer(self._consumer.end_offsets([TopicPartition(topic, p) for p in partitions]))
        return {tp.partition: end for tp, end in found.items()}

    async def read(self, spans: Iterable[Span], progress: Progress | None = None) -> AsyncGenerator[LogRecord, None]:
        """Yield the records of some spans, by offset within a partition, with the partitions interleaved.

        Records that retention removed meanwhile are left out. ``progress`` is called at the start and after each
        fetch. The caller may stop the iteration at any time.
        """
        left = {TopicPartition(s.topic, s.partition): s for s in spans if s.first < s.end}
        total, done = sum(s.end - s.first for s in left.values()), 0
        if progress is not None:
            progress(done, total)
        if not left:
            return
        at = {tp: span.first for tp, span in left.items()}
        self._consumer.assign(list(left))
        for tp, offset in at.items():
            self._consumer.seek(tp, offset)
        silent_s = 0.0
        while left:
            fetched: dict[TopicPartition, list[Any]] = {}
            try:
                fetched = await self._answer(
                    self._consumer.getmany(*left, timeout_ms=int(POLL_S * 1000), max_records=POLL_RECORDS)
                )
            except OffsetOutOfRangeError:
                await self._skip_what_is_gone(list(left))
            for tp, records in fetched.items():
                for record in records:
                    if record.offset >= left[tp].end:
                        break
                    yield LogRecord(
                        tp.topic,
                        tp.partition,
                        record.offset,
                        record.timestamp,
                        record.key,
                        record.value,
                        record.headers,
                    )
            silent_s = 0.0 if fetched else silent_s + POLL_S
            for tp in list(left):
                # The offset of the last record would not do: the end of the span may hold no record.
                position = min(await self._answer(self._consumer.position(tp)), left[tp].end)
                if position > at[tp]:
                    done, silent_s = done + position - at[tp], 0.0
                    at[tp] = position
                if position >= left[tp].end:
                    self._consumer.pause(tp)
                    del left[tp]
            if progress is not None:
                progress(done, total)
            if silent_s >= PATIENCE_S:
                waiting = ", ".join(f"{tp.topic}/{tp.partition} at offset {at[tp]}" for tp in left)
                raise KafkaUnavailable(
                    f"nothing came from Kafka at {self._settings.kafka} for {PATIENCE_S:g} s: {waiting}"
                )

    async def _skip_what_is_gone(self, tps: list[TopicPartition]) -> None:
        firsts = await self._answer(self._consumer.beginning_offsets(tps))
        for tp, first in firsts.items():
            if first > await self._answer(self._consumer.position(tp)):
                self._consumer.seek(tp, first)

    async def _offsets_at(
        self,
        tps: list[TopicPartition],
        time_ms: int | None,
        without: dict[TopicPartition, int],
        ends: dict[TopicPartition, int],
    ) -> dict[TopicPartition, int]:
        if time_ms is None:
            return without
        found = await self._answer(self._consumer.offsets_for_times(dict.fromkeys(tps, max(0, time_ms))))
        return {tp: min(found[tp].offset if found[tp] else ends[tp], ends[tp]) for tp in tps}

    async def _answer(self, question: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await question
        except OffsetOutOfRangeError:
            raise
        except TimeoutError as error:
            raise KafkaUnavailable(f"no answer from Kafka at {self._settings.kafka} within {PATIENCE_S:g} s") from error
        except KafkaError as error:
            raise KafkaUnavailable(await explain_failure(self._settings, error)) from error
