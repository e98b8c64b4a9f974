"""The batches of one partition: when a record leaves, with what, and what happens to the rest when it fails."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from chat_streams.model.position import ORIGIN
from chat_streams.model.records import MAX_MESSAGES, REQUESTS, Acknowledge, Message
from gateway.batcher import Part
from gateway.publisher import Accepted
from tests.unit.gateway.fake_kafka import INTERVAL, Kafka, in_jumping_time, settle, stand_still, until


@in_jumping_time
async def test_the_first_record_leaves_at_once() -> None:
    kafka = Kafka()
    kafka.send("1")
    await settle()
    assert kafka.ids == [["1"]]
    assert kafka.confirmed == []
    await kafka.answer()
    assert kafka.confirmed == ["1"]
    await until(1.0)
    kafka.send("2")
    await settle()
    assert (kafka.ids[-1], kafka.records[-1].at) == (["2"], 1.0)


@in_jumping_time
async def test_then_at_most_one_record_in_an_interval_and_none_later() -> None:
    kafka = Kafka()
    kafka.answers_at_once = True
    sent_at = {}
    for i in range(500):
        sent_at[str(i)] = asyncio.get_running_loop().time()
        kafka.send(str(i))
        await until(i / 1000)
    await until(1.0)
    times = [record.at for record in kafka.records]
    assert min(b - a for a, b in itertools.pairwise(times)) >= INTERVAL - 1e-9
    assert len(times) <= 500 / 10 + 2
    assert max(record.at - sent_at[id_] for record in kafka.records for id_ in record.ids) <= INTERVAL + 1e-9
    assert kafka.confirmed == [id_ for ids in kafka.ids for id_ in ids] == [str(i) for i in range(500)]


@in_jumping_time
async def test_what_lingers_waits_for_others() -> None:
    kafka = Kafka()
    kafka.answers_at_once = True
    for offset in range(10):
        await until(offset / 100)
        kafka.acknowledge(offset, linger=0.1)
    assert kafka.records == []
    await until(1.0)
    assert [(record.at, len(REQUESTS.decode(record.value))) for record in kafka.records] == [(0.1, 10)]


@in_jumping_time
async def test_what_does_not_linger_takes_along_what_does() -> None:
    kafka = Kafka()
    kafka.answers_at_once = True
    kafka.acknowledge(1, linger=0.1)
    await until(0.02)
    kafka.acknowledge(2, linger=0.0)
    await until(0.05)
    kafka.acknowledge(3, linger=0.1)
    await until(0.06)
    kafka.acknowledge(4, linger=0.1, flush=True)
    await until(1.0)
    assert [(record.at, len(REQUESTS.decode(record.value))) for record in kafka.records] == [(0.02, 2), (0.06, 2)]


@in_jumping_time
async def test_a_full_record_does_not_wait_for_the_interval() -> None:
    kafka = Kafka()
    kafka.answers_at_once = True
    kafka.send("first")
    await settle()
    kafka.send(*(str(i) for i in range(MAX_MESSAGES - 1)))
    await settle()
    assert kafka.ids == [["first"]]
    kafka.send("last", "more")
    await settle()
    assert asyncio.get_running_loop().time() == 0.0
    assert [len(ids) for ids in kafka.ids] == [1, MAX_MESSAGES]
    await until(INTERVAL)
    assert kafka.ids[2:] == [["more"]]


@in_jumping_time
async def test_a_record_is_full_by_its_bytes_too() -> None:
    kafka = Kafka(record_bytes=1_024)
    kafka.answers_at_once = True
    kafka.send("first")
    await settle()
    kafka.send(*"abcdefg", size=400)
    await settle()
    assert kafka.ids == [["first"], ["a", "b"], ["c", "d"], ["e", "f"]]
    assert all(len(record.value) <= 1_024 for record in kafka.records)
    await until(INTERVAL)
    assert kafka.ids[4:] == [["g"]]


@in_jumping_time
async def test_a_message_larger_than_a_record_should_be_goes_alone() -> None:
    kafka = Kafka(record_bytes=1_024)
    kafka.answers_at_once = True
    kafka.send("first", "small")
    kafka.send("large", size=5_000)
    kafka.send("after")
    await until(1.0)
    assert kafka.ids == [["first"], ["small"], ["large"], ["after"]]


@in_jumping_time
async def test_one_record_at_a_time_is_under_way_to_a_partition() -> None:
    kafka = Kafka(record_bytes=1_024)
    kafka.send("1")
    await settle()
    kafka.send("2")
    kafka.send("3", "4", size=800)
    await until(1.0)
    assert kafka.ids == [["1"]]
    await kafka.answer()
    assert kafka.ids[1:] == [["2", "3"]]
    await until(2.0)
    assert len(kafka.ids) == 2
    await kafka.answer()
    assert kafka.ids[2:] == [["4"]]


@in_jumping_time
async def test_what_waits_behind_a_record_that_fails_fails_with_it() -> None:
    kafka = Kafka()
    kafka.send("1")
    await settle()
    kafka.send("2", "3")
    await kafka.answer(ok=False)
    assert kafka.failed == ["1", "2", "3"]
    await until(1.0)
    assert kafka.ids == [["1"]]
    kafka.send("1", "2", "3")
    await settle()
    await kafka.answer()
    await until(2.0)
    await kafka.answer()
    assert kafka.confirmed == ["1", "2", "3"]
    assert kafka.is_empty


@in_jumping_time
async def test_a_flush_does_not_wait_for_the_interval() -> None:
    kafka = Kafka()
    kafka.answers_at_once = True
    ack = Acknowledge("bob", "phone", ORIGIN)
    kafka.publisher.publish_acknowledgement(ack)
    await settle()
    kafka.publisher.publish_acknowledgement(ack)
    await settle()
    assert len(kafka.records) == 1
    kafka.publisher.publish_acknowledgement(ack, flush=True)
    await settle()
    assert asyncio.get_running_loop().time() == 0.0
    assert [len(REQUESTS.decode(r.value)) for r in kafka.records] == [1, 2]
    await until(1.0)
    assert len(kafka.records) == 2


@in_jumping_time
async def test_a_flush_still_keeps_to_one_record_at_a_time() -> None:
    kafka = Kafka()
    ack = Acknowledge("bob", "phone", ORIGIN)
    kafka.publisher.publish_acknowledgement(ack)
    await settle()
    kafka.publisher.publish_acknowledgement(ack, flush=True)
    await settle()
    assert len(kafka.records) == 1
    await kafka.answer()
    assert asyncio.get_running_loop().time() == 0.0
    assert len(kafka.records) == 2


@in_jumping_time
async def test_an_error_while_writing_refuses_what_waits_and_leaves_the_partition_usable() -> None:
    kafka = Kafka()
    write, kafka.publisher.write = kafka.publisher.write, fail  # type: ignore[method-assign]
    kafka.send("1")
    kafka.send("2", "3")
    await settle()
    assert kafka.failed == ["1", "2", "3"]
    assert kafka.is_empty
    kafka.publisher.write = write  # type: ignore[method-assign]
    kafka.send("1")
    await until(1.0)
    await kafka.answer()
    assert kafka.confirmed == ["1"]


@in_jumping_time
async def test_an_error_while_telling_leaves_the_partition_usable() -> None:
    kafka = Kafka()
    tell, kafka.publisher.on_written = kafka.publisher.on_written, fail_at_once  # type: ignore[method-assign]
    kafka.send("1")
    await settle()
    kafka.send("2")
    await kafka.answer()
    kafka.publisher.on_written = tell  # type: ignore[method-assign]
    await until(1.0)
    await kafka.answer()
    assert kafka.confirmed == ["2"]
    assert kafka.is_empty


@in_jumping_time
async def test_a_connection_that_cannot_be_told_keeps_nothing_from_others() -> None:
    kafka = Kafka()
    kafka.publisher.send(Accepted(Message("bob", "carol", "0", 1, b""), Unreachable()))
    kafka.send("1")
    await settle()
    await kafka.answer()
    await until(1.0)
    await kafka.answer()
    assert kafka.confirmed == ["1"]


class Unreachable:
    """A connection with a fault."""

    def on_confirmed(self, accepted: list[Accepted], at: int | None) -> None:
        raise RuntimeError("a fault")

    def on_too_large(self, accepted: list[Accepted]) -> None:
        raise RuntimeError("a fault")


async def fail(topic: str, partition: int, items: list[Any]) -> list[Part]:
    raise TypeError("not to be encoded")


def fail_at_once(topic: str, items: list[Any], at: int | None) -> None:
    raise RuntimeError("a fault")


@in_jumping_time
async def test_what_waited_for_too_long_fails_and_is_not_written_late() -> None:
    """A process that stood still must not write what its clients have sent elsewhere since."""
    kafka = Kafka(produce_timeout=10.0)
    kafka.send("1")
    await settle()
    kafka.send("2")
    kafka.acknowledge(1, linger=0.1)
    await settle()
    stand_still(3600.0)
    kafka.send("3")
    await kafka.answer()
    await until(3700.0)
    assert kafka.ids == [["1"]]
    assert (kafka.confirmed, kafka.failed) == (["1"], ["2", "3"])
    assert kafka.is_empty
    kafka.answers_at_once = True
    kafka.send("2", "3")
    await until(3800.0)
    assert kafka.confirmed == ["1", "2", "3"]
