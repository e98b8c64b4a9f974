"""The writer of batches with a real Kafka: batches are written whole, and one that is refused concerns no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import MessageSizeTooLargeError

from chat_streams.kafka.client import client_options
from chat_streams.kafka.log_reader import LogReader
from chat_streams.kafka.names import MAX_RECORD
from chat_streams.kafka.producer import KafkaProducer, ProducerRecord, Written
from docker.local.probes import WITHIN_S, user
from docker.local.temporary_stack import Stack

PARTITIONS = 3


class Topic:
    """A topic of its own."""

    def __init__(self, stack: Stack, name: str, admin: AIOKafkaAdminClient) -> None:
        self.name = name
        self._stack = stack
        self._admin = admin

    async def set(self, **config: str) -> None:
        """Change its configuration (underscores for dots), and nothing else of it."""
        values = {key.replace("_", "."): value for key, value in config.items()}
        await self._admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, self.name, values)])

    async def log(self, partition: int) -> list[bytes]:
        async with LogReader(self._stack.settings) as reader:
            spans = await reader.spans(self.name, [partition])
            return [record.value or b"" async for record in reader.read(spans)]


@pytest_asyncio.fixture
async def topic(stack: Stack) -> AsyncIterator[Topic]:
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.settings.kafka)
    await admin.start()
    try:
        name = user("topic").replace("@", "-")
        await admin.create_topics([NewTopic(name, PARTITIONS, 1)])
        yield Topic(stack, name, admin)
        await admin.delete_topics([name])
    finally:
        await admin.close()


async def started(stack: Stack, timeout_s: float = WITHIN_S) -> KafkaProducer:
    producer = KafkaProducer(client_options(stack.settings), timeout_s, MAX_RECORD)
    await producer.start()
    return producer


def records(*values: bytes) -> list[ProducerRecord]:
    return [ProducerRecord(b"key", value, [("name", b"text")]) for value in values]


async def test_a_batch_is_written_whole_in_order(stack: Stack, topic: Topic) -> None:
    producer = await started(stack)
    assert await producer.partitions_of_topic(topic.name) == set(range(PARTITIONS))
    for n in range(20):
        values = [b"%d %d" % (n, index) for index in range(50)]
        writes = (producer.write(topic.name, partition, records(*values)) for partition in range(PARTITIONS))
        assert [written.offset for written in await asyncio.gather(*writes)] == [n * 50] * PARTITIONS
    await producer.stop(WITHIN_S)
    for partition in range(PARTITIONS):
        assert await topic.log(partition) == [b"%d %d" % (n, index) for n in range(20) for index in range(50)]


async def test_a_batch_that_kafka_refuses_concerns_no_other(stack: Stack, topic: Topic) -> None:
    producer = await started(stack)
    await topic.set(max_message_bytes="2000")
    large, small = records(b"x" * 10_000), records(b"small")

    refused: Written | BaseException | None = None
    async with asyncio.timeout(WITHIN_S):
        # Brokers learn a configuration after its change is answered.
        while not isinstance(refused, MessageSizeTooLargeError):
            (refused,) = await asyncio.gather(producer.write(topic.name, 0, large), return_exceptions=True)
    before = len(await topic.log(0))
    for _ in range(20):
        refused, taken, other = await asyncio.gather(
            producer.write(topic.name, 0, large),
            producer.write(topic.name, 1, small),
            producer.write(topic.name, 2, small),
            return_exceptions=True,
        )
        assert isinstance(refused, MessageSizeTooLargeError)
        assert isinstance(taken, Written)
        assert isinstance(other, Written)
        assert producer.connected
        # The partition itself takes what comes next.
        assert isinstance(await producer.write(topic.name, 0, small), Written)
    await producer.stop(WITHIN_S)
    assert (await topic.log(0))[before:] == [b"small"] * 20
    assert await topic.log(1) == await topic.log(2) == [b"small"] * 20
