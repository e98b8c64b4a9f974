"""The publisher over all partitions: its bound of memory, stopping, partitions together or alone, failures of Kafka."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from chat_streams.kafka.names import INBOX_REQUESTS, INCOMING_MESSAGES, SERVICE_STATS, SESSION_EVENTS, partition_of
from chat_streams.kafka.topics import CLOSED_BYTES
from chat_streams.model.position import ORIGIN
from chat_streams.model.records import INCOMING, REQUESTS, SESSIONS, Acknowledge, Message, UserDisconnected
from chat_streams.runtime.settings import Settings
from gateway.publisher import Accepted, Publisher
from tests.unit.gateway.fake_kafka import (
    AT,
    EMPTY,
    INTERVAL,
    Kafka,
    in_jumping_time,
    one_on_each,
    run,
    settle,
    stand_still,
    until,
)
from tests.unit.kafka.fake_broker import (
    NOT_AUTHORIZED,
    NOT_ENOUGH_REPLICAS,
    PARTITIONS,
    TOO_LARGE,
    FakeBroker,
    fake_broker,
)


@in_jumping_time
async def test_who_leaves_takes_his_acknowledgements_along() -> None:
    kafka = Kafka()
    kafka.answers_at_once = True
    kafka.acknowledge(1, linger=0.1)
    await until(0.02)
    kafka.publisher.flush("bob")
    await until(0.05)
    # With nothing waiting, it is no record more and the interval stays.
    kafka.publisher.flush("bob")
    await until(1.0)
    assert [(record.at, len(REQUESTS.decode(record.value))) for record in kafka.records] == [(0.02, 1)]


@in_jumping_time
async def test_stop_does_not_wait_for_what_lingers() -> None:
    kafka = Kafka()
    kafka.answers_at_once = True
    kafka.acknowledge(1, linger=3600.0)
    await kafka.publisher.stop(30.0)
    assert [record.at for record in kafka.records] == [0.0]
    assert kafka.is_empty


@in_jumping_time
async def test_partitions_and_topics_do_not_wait_for_each_other() -> None:
    kafka = Kafka()
    kafka.settings.partitions = 8
    other = next(u for u in map(str, range(100)) if partition_of(u, 8) != partition_of("bob", 8))
    kafka.send("1")
    kafka.send("2", to=other)
    kafka.publisher.publish_event(UserDisconnected("bob", b"c", 7))
    kafka.publisher.publish_acknowledgement(Acknowledge("bob", "phone", ORIGIN))
    await settle()
    bob = partition_of("bob", 8)
    assert [(r.topic, r.partition) for r in kafka.records] == [
        (INCOMING_MESSAGES, bob),
        (INCOMING_MESSAGES, partition_of(other, 8)),
        (SESSION_EVENTS, bob),
        (INBOX_REQUESTS, bob),
    ]
    assert SESSIONS.decode(kafka.records[2].value) == (UserDisconnected("bob", b"c", 7),)
    assert REQUESTS.decode(kafka.records[3].value) == (Acknowledge("bob", "phone", ORIGIN),)


@in_jumping_time
async def test_a_failure_concerns_its_own_partition_only() -> None:
    kafka = Kafka()
    kafka.settings.partitions = 8
    other = next(u for u in map(str, range(100)) if partition_of(u, 8) != partition_of("bob", 8))
    kafka.send("1")
    kafka.send("a", to=other)
    await settle()
    kafka.send("2")
    kafka.send("b", to=other)
    kafka.records[0].answer.set_result(None)
    kafka.records[1].answer.set_result(AT)
    await until(1.0)
    await kafka.answer()
    assert (kafka.failed, kafka.confirmed) == (["1", "2"], ["a", "b"])
    assert kafka.is_empty


@pytest.mark.parametrize("ok", [True, False])
def test_a_full_buffer_holds_the_senders_back_until_kafka_has_answered(ok: bool) -> None:
    async def scenario() -> None:
        size = 1024 * 1024
        kafka = Kafka(produce_buffer=size, record_bytes=900_000)
        kafka.send("", size=size - EMPTY - 1)
        await asyncio.wait_for(kafka.publisher.wait_for_room(), 1.0)
        kafka.send("2")
        waiting = asyncio.create_task(kafka.publisher.wait_for_room())
        await until(5.0)
        assert not waiting.done()
        await kafka.answer(ok)
        assert waiting.done()
        if ok:
            assert not kafka.is_empty
            await kafka.answer()
        assert kafka.is_empty
        assert sorted(kafka.confirmed + kafka.failed) == ["", "2"]

    run(scenario)


@in_jumping_time
async def test_all_room_comes_back() -> None:
    kafka = Kafka(record_bytes=1_024)
    kafka.answers_at_once = True
    for i in range(200):
        kafka.answers_at_once = i % 7 != 0
        kafka.send(str(i), size=i * 37 % 2_000)
        kafka.publisher.publish_event(UserDisconnected("bob", b"c", i))
        kafka.publisher.publish_acknowledgement(Acknowledge("bob", "phone", ORIGIN), flush=i % 5 == 0)
        await until(i / 500)
    await until(2.0)
    assert kafka.is_empty
    assert sorted(kafka.confirmed + kafka.failed, key=int) == [str(i) for i in range(200)]


@in_jumping_time
async def test_stop_waits_for_what_is_under_way() -> None:
    kafka = Kafka()
    kafka.send("1")
    stopping = asyncio.create_task(kafka.publisher.stop(30.0))
    await until(5.0)
    assert not stopping.done()
    await kafka.answer()
    assert stopping.done()
    assert kafka.confirmed == ["1"]


@in_jumping_time
async def test_stop_waits_for_what_waits_for_the_interval() -> None:
    kafka = Kafka()
    kafka.answers_at_once = True
    kafka.send("1")
    await settle()
    kafka.send("2")
    await kafka.publisher.stop(30.0)
    assert kafka.confirmed == ["1", "2"]
    assert kafka.is_empty


@in_jumping_time
async def test_a_stop_after_a_standstill_refuses_what_waited_for_too_long() -> None:
    kafka = Kafka(produce_timeout=10.0)
    kafka.answers_at_once = True
    kafka.send("0")
    await settle()
    kafka.send("1")
    stand_still(3600.0)
    await kafka.publisher.finish_messages(3.0)
    assert (kafka.confirmed, kafka.failed) == (["0"], ["1"])


@in_jumping_time
async def test_stop_waits_for_what_waits_behind_what_is_under_way() -> None:
    kafka = Kafka()
    kafka.send("1")
    await settle()
    kafka.send("2")
    stopping = asyncio.create_task(kafka.publisher.stop(30.0))
    await settle()
    await kafka.answer()
    await until(1.0)
    assert not stopping.done()
    await kafka.answer()
    assert stopping.done()
    assert kafka.confirmed == ["1", "2"]


def test_without_a_connection_to_kafka_nothing_is_confirmed() -> None:
    async def scenario() -> None:
        kafka = Kafka()
        del kafka.publisher.produce
        kafka.send("1")
        await settle()
        assert (kafka.confirmed, kafka.failed) == ([], ["1"])

    run(scenario)


@in_jumping_time
async def test_the_partitions_of_a_topic_leave_together() -> None:
    kafka = Kafka()
    kafka.answers_at_once = True
    kafka.settings.partitions = 8
    users = one_on_each(8)
    for user in users:
        kafka.send("first", to=user)
    await settle()
    for n, user in enumerate(users):
        await until((n + 1) * INTERVAL / 10)
        kafka.send("second", to=user)
    await until(1.0)
    assert [record.at for record in kafka.records] == [0.0] * 8 + [pytest.approx(INTERVAL)] * 8
    assert kafka.is_empty


@in_jumping_time
async def test_what_lingers_on_several_partitions_leaves_together() -> None:
    kafka = Kafka()
    kafka.answers_at_once = True
    kafka.settings.partitions = 8
    for turn, user in enumerate(one_on_each(8) * 4):
        await until(turn * 0.012)
        kafka.acknowledge(turn, linger=0.1, user=user)
    await until(1.0)
    # The first one after each time begins the next wait, for all partitions.
    assert sorted({round(record.at, 3) for record in kafka.records}) == [0.1, 0.208, 0.316, 0.424]
    assert sum(len(REQUESTS.decode(record.value)) for record in kafka.records) == 32


@in_jumping_time
async def test_full_records_do_not_hold_up_another_partition() -> None:
    kafka = Kafka(record_bytes=1_024)
    kafka.answers_at_once = True
    kafka.settings.partitions = 8
    other = next(u for u in map(str, range(100)) if partition_of(u, 8) != partition_of("bob", 8))
    kafka.send("0")
    await until(INTERVAL / 4)
    kafka.send("behind", to=other)
    for i in range(1, 20):
        kafka.send(str(i), size=2_000)
        await until((i + 1) * INTERVAL / 4)
    record = next(r for r in kafka.records if r.partition == partition_of(other, 8))
    assert record.at == pytest.approx(INTERVAL)


class Gateway:
    """A publisher on a broker, and a connection that is told of its messages."""

    def __init__(self, broker: FakeBroker, timeout: float) -> None:
        settings = Settings(kafka=broker.address, partitions=PARTITIONS, produce_timeout=timeout)
        self.publisher = Publisher(settings)
        self.confirmed: list[str] = []
        self.failed: list[str] = []
        self.too_large: list[str] = []

    def on_confirmed(self, accepted: list[Accepted], at: int | None) -> None:
        (self.failed if at is None else self.confirmed).extend(each.message.id for each in accepted)

    def on_too_large(self, accepted: list[Accepted]) -> None:
        self.too_large += [each.message.id for each in accepted]

    def send(self, id_: str, to: str = "bob", size: int = 2) -> None:
        self.publisher.send(Accepted(Message(to, "alice", id_, 1, b"x" * size), self))


@contextlib.asynccontextmanager
async def gateway(timeout: float = 30.0) -> AsyncIterator[tuple[Gateway, FakeBroker]]:
    async with fake_broker() as broker:
        made = Gateway(broker, timeout)
        await made.publisher.start()
        try:
            yield made, broker
        finally:
            await made.publisher.stop(timeout)


async def come(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def written(broker: FakeBroker) -> list[str]:
    """The ids of the messages in the log."""
    records = [record for (topic, _), log in broker.log.items() if topic == INCOMING_MESSAGES for record in log]
    return [message.id for record in records for message in INCOMING.decode(record).messages]


async def test_nothing_is_written_while_the_log_is_closed_by_a_repartition() -> None:
    async with gateway() as (sender, broker):
        sender.publisher.set_closed("a repartition")
        sender.send("1")
        sender.publisher.publish_event(UserDisconnected("bob", b"c", 7))
        sender.publisher.publish_acknowledgement(Acknowledge("bob", "phone", ORIGIN))
        await come(lambda: sender.failed == ["1"])
        await sender.publisher.publish_statistics(b"key", b"0")
        assert {topic for topic, _ in broker.log} == {SERVICE_STATS}
        sender.publisher.set_closed("")
        sender.send("1")
        await come(lambda: sender.confirmed == ["1"])
        assert sender.publisher.healthy


def lower_the_limit(sender: Gateway, broker: FakeBroker, largest: int, said: int | None = None) -> None:
    """Have Kafka take no messages in records above a size, and say so."""

    async def limit_of(topic: str) -> int:
        assert topic == INCOMING_MESSAGES
        return largest if said is None else said

    def refuse(topic: str, partition: int, values: list[bytes]) -> int:
        return TOO_LARGE if topic == INCOMING_MESSAGES and sum(map(len, values)) > largest else 0

    sender.publisher.limit_of = limit_of
    broker.refuse = refuse


async def test_a_message_that_is_too_large_fails_alone_and_for_good() -> None:
    async with gateway() as (sender, broker):
        lower_the_limit(sender, broker, 1_000)
        sender.send("0")
        await come(lambda: sender.confirmed == ["0"])
        # All of them in one record, which is too large already.
        ids = [str(n) for n in range(1, 41)]
        with capture_logs() as lines:
            for id_ in ids:
                sender.send(id_, size=2_000 if id_ in ("7", "8", "40") else 50)
            sender.send("elsewhere", to="carol")
            sender.publisher.publish_event(UserDisconnected("bob", b"c", 7))
            await come(lambda: len(sender.confirmed) == 1 + len(ids) - 3 + 1)
        assert sender.too_large == ["7", "8", "40"]
        assert sender.failed == []
        to_bob = [id_ for id_ in written(broker) if id_ != "elsewhere"]
        assert to_bob == ["0", *(id_ for id_ in ids if id_ not in sender.too_large)]
        assert SESSION_EVENTS in {topic for topic, _ in broker.log}
        named = [line for line in lines if line["event"] == "a record is too large"]
        assert {line["setting"] for line in named} == {"max.message.bytes=1000"}
        assert sender.publisher.healthy
        assert sender.publisher._room == sender.publisher.settings.produce_buffer


@pytest.mark.parametrize("said", [CLOSED_BYTES, None])
async def test_a_log_that_is_closed_before_the_gateway_hears_of_it_has_its_messages_sent_again(
    said: int | None,
) -> None:
    async with gateway() as (sender, broker):
        lower_the_limit(sender, broker, 0, said)
        if said is None:
            sender.publisher.limit_of = Gateway(broker, 1.0).publisher.limit_of
        sender.send("1")
        sender.send("2")
        await come(lambda: sender.failed == ["1", "2"])
        assert sender.too_large == []
        assert len(broker.requests) <= 2


async def test_a_topic_without_the_right_to_write_stops_no_other() -> None:
    async with gateway() as (sender, broker):
        broker.refuse = lambda topic, partition, values: NOT_AUTHORIZED if topic == INCOMING_MESSAGES else 0
        with capture_logs() as lines:
            for n in range(3):
                sender.send(str(n))
                await come(lambda: sender.failed == [str(m) for m in range(n + 1)])  # noqa: B023
                sender.publisher.publish_event(UserDisconnected("bob", b"c", n))
                await come(lambda: len(broker.log[SESSION_EVENTS, partition_of("bob", PARTITIONS)]) == n + 1)  # noqa: B023
        settings = [line.get("setting") for line in lines if line["event"] == "kafka did not take a record"]
        assert settings == [f"Write on topic {INCOMING_MESSAGES} (docs/security.md)"] * 3
        broker.refuse = lambda topic, partition, values: 0
        sender.send("0")
        await come(lambda: sender.confirmed == ["0"])


async def test_a_record_in_a_log_that_was_made_anew_is_not_confirmed_and_nothing_is_written_after_it() -> None:
    async with gateway() as (sender, broker):
        reasons: list[str] = []
        partition = partition_of("bob", PARTITIONS)
        sender.publisher.watch_ends({partition: 0}, reasons.append)
        for id_ in ("1", "2", "3"):
            sender.send(id_)
            await come(lambda: len(sender.confirmed) == int(id_))  # noqa: B023
        broker.log.clear()
        sender.send("4")
        await come(lambda: sender.failed == ["4"])
        assert reasons == [
            f"partition {partition} of topic {INCOMING_MESSAGES} ended at offset 2, and took a record at 0: records"
            " were lost from it"
        ]
        assert not sender.publisher.healthy
        sender.send("5")
        await come(lambda: sender.failed == ["4", "5"])
        assert written(broker) == ["4"]


async def test_a_record_below_the_end_of_before_the_start_is_not_confirmed() -> None:
    async with gateway() as (sender, _):
        reasons: list[str] = []
        sender.publisher.watch_ends({partition_of("bob", PARTITIONS): 100}, reasons.append)
        sender.send("1")
        await come(lambda: sender.failed == ["1"])
        assert len(reasons) == 1


async def test_what_was_under_way_when_a_topic_was_made_anew_is_not_confirmed() -> None:
    async with gateway() as (sender, broker):
        broker.appends.clear()
        sender.send("1")
        await come(lambda: len(broker.received) and sender.publisher._kafka.connected)
        sender.publisher.refuse()
        broker.appends.set()
        await come(lambda: sender.failed == ["1"])
        assert not sender.publisher.healthy


async def test_what_was_refused_is_not_written_later() -> None:
    async with gateway(0.3) as (sender, broker):
        sender.send("0")
        await come(lambda: sender.confirmed)
        broker.refuse = lambda topic, partition, values: NOT_ENOUGH_REPLICAS
        sender.send("1")
        await come(lambda: sender.failed == ["1"])
        assert not sender.publisher.healthy
        broker.refuse = lambda topic, partition, values: 0
        await come(lambda: broker.producers == 2)
        await come(lambda: sender.publisher._kafka.connected)
        sender.send("2")
        await come(lambda: sender.confirmed == ["0", "2"])
        await come(lambda: len(sender.publisher._kafka._clients) == 1)
        assert written(broker) == ["0", "2"]
        assert sender.publisher.healthy


async def test_statistics_that_take_too_long_end_no_other_write() -> None:
    async with gateway() as (sender, broker):
        await sender.publisher.publish_statistics(b"key", b"0")
        broker.appends.clear()
        sender.send("1")
        await asyncio.sleep(0.02)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await sender.publisher.publish_statistics(b"key", b"1")
        with pytest.raises(TimeoutError, match="before"):
            await sender.publisher.publish_statistics(b"key", b"2")
        broker.appends.set()
        await come(lambda: sender.confirmed == ["1"])
        assert broker.producers == 1


async def test_a_stop_confirms_what_was_taken_and_takes_no_more_messages() -> None:
    async with gateway() as (sender, broker):
        broker.appends.clear()
        sender.send("1")
        sender.send("2")
        finishing = asyncio.create_task(sender.publisher.finish_messages(10.0))
        await asyncio.sleep(0.02)
        sender.send("3")
        assert sender.failed == ["3"]
        assert not finishing.done()
        broker.appends.set()
        await finishing
        assert (sender.confirmed, sender.failed) == (["1", "2"], ["3"])
        # What clients cause by going is still written.
        sender.publisher.publish_event(UserDisconnected("bob", b"c", 7))
        await come(lambda: SESSION_EVENTS in {topic for topic, _ in broker.log})
        assert written(broker) == ["1", "2"]


async def test_a_stop_refuses_what_kafka_does_not_confirm_in_time_and_writes_nothing_more() -> None:
    async with gateway() as (sender, broker):
        sender.send("0")
        await come(lambda: sender.confirmed)
        broker.refuse = lambda topic, partition, values: NOT_ENOUGH_REPLICAS
        sender.send("1")
        sender.send("2")
        async with asyncio.timeout(10):
            await sender.publisher.finish_messages(0.1)
        assert sender.failed == ["1", "2"]
        broker.refuse = lambda topic, partition, values: 0
        sender.publisher.publish_event(UserDisconnected("bob", b"c", 7))
        async with asyncio.timeout(10):
            await sender.publisher.stop(10.0)
        await come(lambda: broker.connections == 0)
        assert written(broker) == ["0"]
        assert {topic for topic, _ in broker.log} == {INCOMING_MESSAGES}


async def test_stop_ends_with_kafka_away_and_refuses_what_it_did_not_take() -> None:
    async with gateway(0.3) as (sender, broker):
        sender.send("0")
        await come(lambda: sender.confirmed)
        broker.refuse = lambda topic, partition, values: NOT_ENOUGH_REPLICAS
        sender.send("1")
        sender.send("2")
        sender.publisher.publish_event(UserDisconnected("bob", b"c", 7))
        async with asyncio.timeout(10):
            await sender.publisher.stop(0.3)
        assert sender.failed == ["1", "2"]
        broker.refuse = lambda topic, partition, values: 0
        await come(lambda: broker.connections == 0)
        assert written(broker) == ["0"]
        sender.send("3")
        await come(lambda: sender.failed == ["1", "2", "3"])
