"""Writes to a Kafka that is paused: what was given up is not written when it goes on, and lanes keep their order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from aiokafka.errors import KafkaError, KafkaTimeoutError

from chat_streams.kafka.lanes import Lanes
from chat_streams.kafka.names import MAX_RECORD
from docker.local.probes import WITHIN_S, user
from docker.local.temporary_stack import Stack
from tests.integration.test_producer import PARTITIONS, Topic, records, started, topic

__all__ = ["topic"]

LIMIT_S = 2.0
LARGE = 1_000_000
"""Bytes of a record of which a paused Kafka's own buffer (100 KiB) takes only the beginning."""


@contextmanager
def paused(stack: Stack) -> Iterator[None]:
    kafka = stack.running["kafka"]
    kafka.pause()
    try:
        yield
    finally:
        kafka.resume()


@pytest.mark.long
async def test_what_was_given_up_is_not_written_when_kafka_goes_on(stack: Stack, topic: Topic) -> None:
    await topic.set(max_message_bytes=str(2 * MAX_RECORD))
    producer, stopping = await started(stack, LIMIT_S), await started(stack)
    for each in (producer, stopping):
        await asyncio.gather(*(each.write(topic.name, partition, records(b"before")) for partition in range(2)))
    with paused(stack):
        # SIGTERM comes to the second one.
        late = asyncio.create_task(stopping.write(topic.name, 1, records(b"x" * LARGE)))
        await asyncio.sleep(0)
        with pytest.raises(KafkaTimeoutError):
            await producer.write(topic.name, 0, records(b"x" * LARGE))
        await stopping.stop(0.0)
        with pytest.raises(KafkaError):
            await late
        assert not producer.connected
    async with asyncio.timeout(WITHIN_S):
        while not producer.connected:
            await asyncio.sleep(0.05)
    for partition in range(2):
        await producer.write(topic.name, partition, records(b"after"))
    # aiokafka would try again each 0.1 s.
    await asyncio.sleep(1.0)
    await producer.stop(WITHIN_S)
    for partition in range(2):
        assert await topic.log(partition) == [b"before", b"before", b"after"]


@pytest.mark.long
async def test_lanes_keep_their_order_over_a_pause(stack: Stack, topic: Topic) -> None:
    producer = await started(stack, LIMIT_S / 2)
    lanes = Lanes(producer, MAX_RECORD // 2)
    futures: list[asyncio.Future[int]] = []

    async def put(count: int) -> None:
        for _ in range(count):
            value = b"%d" % (len(futures) // PARTITIONS)
            futures.extend(
                lanes.write(topic.name, partition, b"key", lambda value=value: value)  # type: ignore[misc]
                for partition in range(PARTITIONS)
            )
            await asyncio.sleep(0.01)

    await put(100)
    with paused(stack):
        await put(300)
    await put(100)
    assert await lanes.flush(WITHIN_S)
    await lanes.stop(WITHIN_S)
    await producer.stop(WITHIN_S)
    offsets = [each.result() for each in futures]
    for partition in range(PARTITIONS):
        log = [int(value) for value in await topic.log(partition)]
        # Some may be there twice; what is new comes in order, without a hole.
        assert list(dict.fromkeys(log)) == list(range(500))
        assert [log[offset] for offset in offsets[partition::PARTITIONS]] == list(range(500))


@pytest.mark.long
async def test_a_gateway_that_is_terminated_does_not_wait_for_a_paused_kafka(stack: Stack) -> None:
    part = stack.service("gateway", produce_timeout=LIMIT_S)
    part.stop_seconds = int(WITHIN_S)
    gateway = await stack.start(part)
    alice, bob = user("alice"), user("bob")
    async with stack.raw(alice, url=part.url) as socket:
        await socket.send({"type": "send", "id": "before", "to": bob, "body": 1})
        await socket.next_of("sent")
        with paused(stack):
            await socket.send({"type": "send", "id": "late", "to": bob, "body": 1})
            await asyncio.to_thread(gateway.stop)
    stack.forget(gateway)
    # Not killed: it ended by itself.
    assert gateway.process.returncode == 0
