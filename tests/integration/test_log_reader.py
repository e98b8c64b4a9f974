"""Reads of the log by commands: exactly the records that existed when they began, in order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.structs import TopicPartition

from chat_streams.kafka.log_reader import LogReader, Span
from chat_streams.model.errors import NoSuchPartition
from docker.local.probes import user
from docker.local.temporary_stack import Stack

PARTITIONS, RECORDS = 3, 1_200
"""More than one fetch of each partition."""
START_MS = 1_000_000


class Topic:
    """A topic of its own, with ``RECORDS`` in each partition; the time of a record is its offset in ms."""

    def __init__(self, name: str, producer: AIOKafkaProducer, admin: AIOKafkaAdminClient) -> None:
        self.name = name
        self._producer = producer
        self._admin = admin

    async def write(self, first: int, end: int) -> None:
        """Write records with offsets ``[first, end)`` to each partition."""
        for n in range(first, end):
            for partition in range(PARTITIONS):
                await self._producer.send(
                    self.name, b"%d" % n, b"key", partition, START_MS + n, headers=[("n", b"%d" % n)]
                )
        await self._producer.flush()

    async def remove(self, before: int) -> None:
        """Delete the records of partition 0 below an offset, as retention does."""
        await self._admin.delete_records({TopicPartition(self.name, 0): RecordsToDelete(before_offset=before)})


@pytest_asyncio.fixture
async def topic(stack: Stack) -> AsyncIterator[Topic]:
    kafka = stack.settings.kafka
    async with AIOKafkaProducer(bootstrap_servers=kafka, linger_ms=5) as producer:
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
        await admin.start()
        try:
            name = user("topic").replace("@", "-")
            config = {"retention.ms": "-1", "message.timestamp.before.max.ms": str((1 << 63) - 1)}
            await admin.create_topics([NewTopic(name, PARTITIONS, 1, topic_configs=config)])
            found = Topic(name, producer, admin)
            await found.write(0, RECORDS)
            yield found
            await admin.delete_topics([name])
        finally:
            await admin.close()


async def test_the_end_is_fixed_at_the_start(stack: Stack, topic: Topic) -> None:
    found: defaultdict[int, list[int]] = defaultdict(list)
    steps: list[tuple[int, int]] = []
    async with LogReader(stack.settings) as reader:
        spans = await reader.spans(topic.name)
        assert spans == [Span(topic.name, p, 0, RECORDS) for p in range(PARTITIONS)]
        await topic.write(RECORDS, RECORDS + 10)
        async for record in reader.read(spans, lambda done, total: steps.append((done, total))):
            assert record.value == b"%d" % record.offset
            assert (record.key, record.headers, record.at) == (
                b"key",
                (("n", record.value),),
                START_MS + record.offset,
            )
            found[record.partition].append(record.offset)
        assert found == {p: list(range(RECORDS)) for p in range(PARTITIONS)}
        assert steps[0] == (0, PARTITIONS * RECORDS)
        assert steps[-1] == (PARTITIONS * RECORDS, PARTITIONS * RECORDS)
        assert steps == sorted(steps)

        # A part of the log, by partition, time and offset; a read that was abandoned leaves nothing behind for the
        # next.
        (span,) = await reader.spans(topic.name, [2], since_ms=START_MS + 7, until_ms=START_MS + 9)
        assert span == Span(topic.name, 2, 7, 9)
        async for record in reader.read([Span(topic.name, 1, 3, 600)]):
            assert record.offset == 3
            break
        assert [r.offset async for r in reader.read([span])] == [7, 8]
        (span,) = await reader.spans(topic.name, [1], since_ms=START_MS + 10 * RECORDS)
        assert [r async for r in reader.read([span])] == []


async def test_what_the_log_forgets_meanwhile_is_left_out_and_nothing_else(stack: Stack, topic: Topic) -> None:
    steps: list[int] = []
    async with LogReader(stack.settings) as reader:
        spans = await reader.spans(topic.name, [0, 1])
        await topic.remove(before=1_000)
        found = [(r.partition, r.offset) async for r in reader.read(spans, lambda done, _: steps.append(done))]
        wanted = [(0, n) for n in range(1_000, RECORDS)] + [(1, n) for n in range(RECORDS)]
        assert sorted(found) == wanted
        assert steps[-1] == 2 * RECORDS
        # All records of a span may be gone.
        await topic.remove(before=RECORDS)
        assert [r async for r in reader.read([Span(topic.name, 0, 1_000, RECORDS)])] == []


@pytest.mark.parametrize(("name", "partitions"), [("no-such-topic", None), ("dead_letters", [0, 7])])
async def test_what_is_not_there_is_said_at_once(stack: Stack, name: str, partitions: list[int] | None) -> None:
    async with LogReader(stack.settings) as reader:
        with pytest.raises(NoSuchPartition, match=f"topic {name}"):
            await reader.spans(name, partitions)
