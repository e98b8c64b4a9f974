"""The writer to Kafka, with a broker that is slow, silent, paused, gone, or refuses: what fails, what is written."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    ProducerClosed,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from chat_streams.kafka.producer import KafkaProducer, ProducerRecord
from tests.unit.kafka.fake_broker import (
    NOT_AUTHORIZED,
    NOT_ENOUGH_REPLICAS,
    TOO_LARGE,
    TOPIC,
    FakeBroker,
    fake_broker,
)

LIMIT_S = 30.0
"""Limit of a write that is not to time out."""
SHORT_S = 1.0


@contextlib.asynccontextmanager
async def producer(
    broker: FakeBroker, timeout_s: float = LIMIT_S, batch_bytes: int = 64_000
) -> AsyncIterator[KafkaProducer]:
    made = KafkaProducer({"bootstrap_servers": broker.address, "retry_backoff_ms": 10}, timeout_s, batch_bytes)
    await made.start()
    try:
        yield made
    finally:
        await made.stop(0.0)


def records(*values: bytes) -> list[ProducerRecord]:
    return [ProducerRecord(None, value) for value in values]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_batch_is_written_whole_and_its_offset_returned() -> None:
    async with fake_broker() as broker, producer(broker) as writer:
        assert writer.connected
        assert (await writer.write(TOPIC, 1, records(b"a", b"b"))).offset == 0
        assert (await writer.write(TOPIC, 1, records(b"c"))).offset == 2
        assert broker.requests == [{(TOPIC, 1): [b"a", b"b"]}, {(TOPIC, 1): [b"c"]}]
        assert await writer.partitions_of_topic(TOPIC) == {0, 1, 2, 3}


async def test_writes_of_one_turn_leave_in_one_request() -> None:
    async with fake_broker() as broker, producer(broker) as writer:
        await writer.write(TOPIC, 0, records(b"first"))
        await asyncio.gather(*(writer.write(TOPIC, partition, records(b"x")) for partition in range(4)))
        assert [len(request) for request in broker.requests] == [1, 4]


async def test_a_write_that_takes_too_long_is_not_written_later_and_takes_the_others_along() -> None:
    async with fake_broker() as broker, producer(broker, SHORT_S) as writer:
        await writer.write(TOPIC, 0, records(b"before"))
        broker.refuse = lambda topic, partition, values: NOT_ENOUGH_REPLICAS
        slow = asyncio.create_task(writer.write(TOPIC, 0, records(b"slow")))
        await until(lambda: len(broker.requests) > 1)
        await asyncio.sleep(SHORT_S / 2)
        other = asyncio.create_task(writer.write(TOPIC, 1, records(b"other")))
        with pytest.raises(KafkaTimeoutError):
            await slow
        assert not writer.connected
        broker.refuse = lambda topic, partition, values: 0
        with pytest.raises(KafkaConnectionError):
            await other
        await until(lambda: broker.producers == 2)
        await writer.write(TOPIC, 0, records(b"after"))
        await writer.write(TOPIC, 1, records(b"after"))
        # aiokafka would have tried again by now, and its client has ended.
        await until(lambda: len(writer._clients) == 1)
        assert broker.log == {(TOPIC, 0): [b"before", b"after"], (TOPIC, 1): [b"after"]}
        assert writer.connected


async def test_what_a_paused_broker_has_not_read_is_not_written_when_it_goes_on() -> None:
    async with fake_broker() as broker, producer(broker, SHORT_S, 16_000_000) as writer:
        await writer.write(TOPIC, 0, records(b"before"))
        broker.reads.clear()
        with pytest.raises(KafkaTimeoutError):
            await writer.write(TOPIC, 0, records(b"x" * 12_000_000))
        broker.reads.set()
        await until(lambda: writer.connected)
        await writer.write(TOPIC, 0, records(b"after"))
        # Also those connections that aiokafka itself closed, after a request without an answer, are read to their end.
        await until(lambda: len(writer._clients) == broker.connections == 1)
        assert broker.log[TOPIC, 0] == [b"before", b"after"]
        assert max(broker.received) < 12_000_000


async def test_a_cancelled_write_is_not_written_later() -> None:
    async with fake_broker() as broker, producer(broker) as writer:
        await writer.write(TOPIC, 0, records(b"before"))
        broker.refuse = lambda topic, partition, values: NOT_ENOUGH_REPLICAS
        write = asyncio.create_task(writer.write(TOPIC, 0, records(b"cancelled")))
        await until(lambda: len(broker.requests) > 1)
        write.cancel()
        with pytest.raises(asyncio.CancelledError):
            await write
        broker.refuse = lambda topic, partition, values: 0
        assert (await writer.write(TOPIC, 0, records(b"after"))).offset == 1
        await until(lambda: len(writer._clients) == 1)
        assert broker.log[TOPIC, 0] == [b"before", b"after"]


@pytest.mark.parametrize(
    ("code", "error"), [(TOO_LARGE, MessageSizeTooLargeError), (NOT_AUTHORIZED, TopicAuthorizationFailedError)]
)
async def test_a_refused_batch_concerns_no_other_partition(code: int, error: type[KafkaError]) -> None:
    async with fake_broker() as broker, producer(broker) as writer:
        for partition in range(3):
            await writer.write(TOPIC, partition, records(b"before"))
        broker.refuse = lambda topic, partition, values: code if values == [b"bad"] else 0
        broker.appends.clear()
        under_way = asyncio.create_task(writer.write(TOPIC, 1, records(b"under way")))
        bad = asyncio.create_task(writer.write(TOPIC, 0, records(b"bad")))
        await asyncio.sleep(0)
        behind = asyncio.create_task(writer.write(TOPIC, 2, records(b"behind")))
        await asyncio.sleep(0.02)
        broker.appends.set()
        with pytest.raises(error):
            await bad
        assert writer.connected
        # The same partition and others, on a client whose sequences have no gap.
        assert (await writer.write(TOPIC, 0, records(b"good"))).offset == 1
        assert [(await under_way).offset, (await behind).offset] == [1, 1]
        assert writer.connected
        await until(lambda: len(writer._clients) == 1)


async def test_a_batch_that_is_too_large_is_not_sent_and_breaks_nothing() -> None:
    async with fake_broker() as broker, producer(broker, batch_bytes=1_000) as writer:
        for values in ([b"x" * 1_000], [b"x" * 600, b"x" * 600]):
            with pytest.raises(MessageSizeTooLargeError):
                await writer.write(TOPIC, 0, records(*values))
        await writer.write(TOPIC, 0, records(b"x" * 900))
        assert (len(broker.requests), broker.producers) == (1, 1)


async def test_a_topic_or_partition_that_does_not_exist_fails_alone() -> None:
    async with fake_broker() as broker, producer(broker, SHORT_S) as writer:
        with pytest.raises(UnknownTopicOrPartitionError):
            await writer.write(TOPIC, 99, records(b"x"))
        with pytest.raises(UnknownTopicOrPartitionError):
            await writer.write("unknown", 0, records(b"x"))
        assert broker.producers == 1
        assert writer.connected


async def test_a_broker_that_went_away_and_came_back_is_written_to_by_the_same_client() -> None:
    async with fake_broker() as broker, producer(broker) as writer:
        await writer.write(TOPIC, 0, records(b"before"))
        await broker.go_away()
        write = asyncio.create_task(writer.write(TOPIC, 0, records(b"meanwhile")))
        await asyncio.sleep(0.05)
        await broker.come_back()
        assert (await write).offset == 1
        assert (broker.log[TOPIC, 0], broker.producers) == ([b"before", b"meanwhile"], 1)


async def test_an_answer_that_was_lost_doubles_nothing() -> None:
    async with fake_broker() as broker, producer(broker) as writer:
        await writer.write(TOPIC, 0, records(b"before"))
        broker.answers = False
        write = asyncio.create_task(writer.write(TOPIC, 0, records(b"once")))
        await until(lambda: len(broker.requests) == 2)
        broker.answers = True
        await broker.go_away()
        await broker.come_back()
        await write
        assert broker.log[TOPIC, 0] == [b"before", b"once"]


async def test_without_kafka_a_write_fails_after_its_time_and_the_next_connects() -> None:
    async with fake_broker() as broker, producer(broker, SHORT_S) as writer:
        await broker.go_away()
        with pytest.raises((KafkaError, TimeoutError)):
            await writer.write(TOPIC, 0, records(b"1"))
        await until(lambda: not writer.connected)
        with pytest.raises(TimeoutError):
            await writer.write(TOPIC, 0, records(b"2"))
        await broker.come_back()
        await until(lambda: writer.connected)
        await writer.write(TOPIC, 0, records(b"3"))
        assert broker.log[TOPIC, 0] == [b"3"]


async def test_a_write_that_the_client_cancels_is_an_error_and_the_next_connects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def give_up(*_: object, **__: object) -> asyncio.Future[object]:
        written: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        written.cancel()
        return written

    async with fake_broker() as broker, producer(broker) as writer:
        assert writer._client is not None
        monkeypatch.setattr(writer._client.producer, "send_batch", give_up)
        with pytest.raises(KafkaConnectionError, match="ended during the write"):
            await writer.write(TOPIC, 0, records(b"1"))
        await writer.write(TOPIC, 0, records(b"2"))
        assert broker.log[TOPIC, 0] == [b"2"]


async def test_a_client_that_is_cancelled_while_it_connects_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake_broker() as broker, producer(broker, SHORT_S) as writer:
        connect, failures = writer._connect, 2

        async def cancelled_at_first() -> object:
            nonlocal failures
            if failures:
                failures -= 1
                raise asyncio.CancelledError
            return await connect()

        monkeypatch.setattr(writer, "_connect", cancelled_at_first)
        broker.refuse = lambda topic, partition, values: NOT_AUTHORIZED
        with pytest.raises(KafkaError):
            await writer.write(TOPIC, 0, records(b"1"))
        broker.refuse = lambda topic, partition, values: 0
        await until(lambda: writer._client is not None)
        assert not failures
        await writer.write(TOPIC, 0, records(b"2"))


async def test_start_fails_without_kafka() -> None:
    async with fake_broker() as broker:
        await broker.go_away()
        with pytest.raises(KafkaConnectionError):
            await KafkaProducer({"bootstrap_servers": broker.address}, SHORT_S, 1_000).start()


async def test_start_fails_at_a_kafka_that_does_not_answer() -> None:
    async with fake_broker() as broker:
        broker.reads.clear()
        with pytest.raises(KafkaError):
            await KafkaProducer({"bootstrap_servers": broker.address}, SHORT_S, 1_000).start()


async def test_stop_waits_for_what_is_under_way() -> None:
    async with fake_broker() as broker, producer(broker) as writer:
        await writer.write(TOPIC, 0, records(b"before"))
        broker.appends.clear()
        write = asyncio.create_task(writer.write(TOPIC, 0, records(b"last")))
        await asyncio.sleep(0.02)
        stopping = asyncio.create_task(writer.stop(LIMIT_S))
        await asyncio.sleep(0.02)
        assert not stopping.done()
        broker.appends.set()
        await stopping
        assert (await write).offset == 1
        with pytest.raises(ProducerClosed):
            await writer.write(TOPIC, 0, records(b"after"))


@pytest.mark.parametrize("how", ["silent", "paused", "gone"])
async def test_stop_ends_though_kafka_is_away(how: str) -> None:
    async with fake_broker() as broker, producer(broker) as writer:
        await writer.write(TOPIC, 0, records(b"before"))
        if how == "silent":
            broker.answers = False
            broker.refuse = lambda topic, partition, values: NOT_ENOUGH_REPLICAS
        elif how == "paused":
            broker.reads.clear()
        else:
            await broker.go_away()
        write = asyncio.create_task(writer.write(TOPIC, 0, records(b"last")))
        await asyncio.sleep(0.02)
        async with asyncio.timeout(LIMIT_S / 2):
            await writer.stop(0.05)
        with pytest.raises(KafkaError):
            await write
        if how == "gone":
            await broker.come_back()
        broker.reads.set()
        await until(lambda: broker.connections == 0)
        assert broker.log[TOPIC, 0] == [b"before"]


async def test_stop_ends_while_a_client_connects() -> None:
    async with fake_broker() as broker, producer(broker, SHORT_S) as writer:
        await broker.go_away()
        with pytest.raises((KafkaError, TimeoutError)):
            await writer.write(TOPIC, 0, records(b"1"))
        waiting = asyncio.create_task(writer.write(TOPIC, 0, records(b"2")))
        await asyncio.sleep(0)
        async with asyncio.timeout(LIMIT_S / 2):
            await writer.stop(LIMIT_S)
        with pytest.raises(ProducerClosed):
            await waiting
