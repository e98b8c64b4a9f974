"""A record that nobody can decode goes to ``dead_letters``, whole, and blocks nothing."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition

from chat_streams.kafka import names
from chat_streams.kafka.names import INBOX_REQUESTS, INCOMING_MESSAGES, SESSION_EVENTS, partition_of
from chat_streams.model.records import DEAD_LETTERS, MAGIC, VERSION, DeadLetter
from clients.python.client import all_sent
from docker.local.probes import Received, eventually, user
from docker.local.temporary_stack import Stack

READERS = {
    INCOMING_MESSAGES: {"messaging", "history"},
    SESSION_EVENTS: {"messaging", "notification"},
    INBOX_REQUESTS: {"notification"},
}
HEADER = MAGIC + bytes([VERSION])


class Letters:
    """A reader of all dead letters from the moment the test began."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self.found: list[DeadLetter] = []
        self._consumer = consumer

    async def of(self, topic: str, partition: int, offset: int) -> list[DeadLetter]:
        """Wait until each reader of the topic has written one for a record."""

        async def all_there() -> list[DeadLetter]:
            for records in (await self._consumer.getmany(timeout_ms=100)).values():
                decoded = [DEAD_LETTERS.decode(record.value) for record in records]
                self.found += [letter for letter in decoded if isinstance(letter, DeadLetter)]
            those = [
                letter
                for letter in self.found
                if (letter.topic, letter.partition, letter.offset) == (topic, partition, offset)
            ]
            return those if {letter.app for letter in those} == READERS[topic] else []

        found: list[DeadLetter] = await eventually(all_there, what=f"dead letters of {topic}-{partition}@{offset}")
        return found


@pytest_asyncio.fixture
async def letters(stack: Stack) -> AsyncIterator[Letters]:
    consumer = AIOKafkaConsumer(bootstrap_servers=stack.settings.kafka, enable_auto_commit=False)
    await consumer.start()
    tp = TopicPartition(names.DEAD_LETTERS, 0)
    consumer.assign([tp])
    await consumer.seek_to_end(tp)
    await consumer.position(tp)
    yield Letters(consumer)
    await consumer.stop()


async def produce(stack: Stack, topic: str, partition: int, value: bytes | None) -> int:
    producer = AIOKafkaProducer(bootstrap_servers=stack.settings.kafka)
    await producer.start()
    try:
        return int((await producer.send_and_wait(topic, value, key=b"key", partition=partition)).offset)
    finally:
        await producer.stop()


GARBAGE = [
    pytest.param(b"garbage", id="no record at all"),
    pytest.param(b"", id="empty"),
    pytest.param(None, id="tombstone"),
    pytest.param(HEADER, id="only a header"),
    pytest.param(HEADER + b"\xc1", id="no msgpack"),
    pytest.param(HEADER + b"\x93\x01\x02\x03", id="other fields"),
    pytest.param(HEADER + b"\x92\xa8messages\x91\x95\xa1\xff\xa1s\xa1i\x01\xc4\x00", id="no UTF-8"),
]


@pytest.mark.parametrize("topic", [INCOMING_MESSAGES, SESSION_EVENTS, INBOX_REQUESTS])
@pytest.mark.parametrize("value", GARBAGE)
async def test_garbage_becomes_a_dead_letter_and_the_next_message_is_delivered(
    stack: Stack, letters: Letters, topic: str, value: bytes | None
) -> None:
    alice, bob, received = user("alice"), user("bob"), Received()
    partition = partition_of(bob, stack.settings.partitions)
    offset = await produce(stack, topic, partition, value)
    async with stack.connect(bob, received) as client:
        # Registered and drained (session_events), delivered (incoming_messages), acknowledged (inbox_requests).
        await client.wait_caught_up()
        await stack.send(alice, bob, ["next"])
        await received.wait(1)
        await stack.wait_stored(bob, 0)
    for letter in await letters.of(topic, partition, offset):
        assert (letter.key, letter.value) == (b"key", value)
        assert letter.reason
        assert letter.first_at <= letter.last_at


async def test_garbage_between_messages_loses_none_of_them(stack: Stack, letters: Letters) -> None:
    alice, bob, received = user("alice"), user("bob"), Received()
    partition = partition_of(bob, stack.settings.partitions)
    offsets: list[int] = []
    async with stack.connect(alice) as sender, stack.connect(bob, received):

        async def write() -> None:
            for start in range(0, 500, 10):
                all_sent(await sender.send_many((bob, n) for n in range(start, start + 10)))

        async def disturb() -> None:
            offsets.extend(
                [await produce(stack, INCOMING_MESSAGES, partition, secrets.token_bytes(20)) for _ in range(5)]
            )

        await asyncio.gather(write(), disturb())
        await received.wait(500)
    assert received.bodies() == list(range(500))
    for offset in offsets:
        await letters.of(INCOMING_MESSAGES, partition, offset)
