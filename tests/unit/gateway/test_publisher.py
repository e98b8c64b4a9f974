"""The lanes of the publisher, in a loop whose clock jumps to the next timer instead of waiting for it."""

from __future__ import annotations

import asyncio
import itertools
import selectors
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from chat_streams.kafka.names import INBOX_REQUESTS, INCOMING_MESSAGES, SESSION_EVENTS, partition_of
from chat_streams.model.position import ORIGIN, Position
from chat_streams.model.records import (
    INCOMING,
    MAX_MESSAGES,
    REQUESTS,
    SESSIONS,
    Acknowledge,
    Message,
    UserDisconnected,
)
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.statistics import Statistics
from gateway.publisher import ITEM_BYTES, Accepted, Publisher

INTERVAL = 0.010
EMPTY = len("bobalice") + ITEM_BYTES
"""What a message with no id and no JSON counts."""


class _Jumping(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise AssertionError("it waits for what never comes")
            self.now += max(0.0, timeout)
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = _Jumping()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now


class Record:
    """A record given to Kafka, which has not answered yet."""

    def __init__(self, topic: str, partition: int, value: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.topic, self.partition, self.value, self.at = topic, partition, value, loop.time()
        self.answer: asyncio.Future[bool] = loop.create_future()

    @property
    def ids(self) -> list[str]:
        return [m.id for m in INCOMING.decode(self.value).messages]


class Kafka:
    """The publisher under test, between connections that send and a Kafka that answers when it is told to."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(partitions=1, record_interval=INTERVAL, **settings)
        self.publisher = Publisher(self.settings, self._confirm, Statistics("gateway"))
        self.publisher.produce = self._produce  # type: ignore[method-assign]
        self.records: list[Record] = []
        self.answers_at_once: bool | None = None
        self.confirmed: list[str] = []
        self.failed: list[str] = []

    async def _produce(
        self, topic: str, partition: int, value: bytes, headers: list[tuple[str, bytes]] | None = None
    ) -> bool:
        record = Record(topic, partition, value)
        self.records.append(record)
        return await record.answer if self.answers_at_once is None else self.answers_at_once

    def _confirm(self, things: Sequence[Accepted], ok: bool) -> None:
        (self.confirmed if ok else self.failed).extend(thing.message.id for thing in things)

    def acknowledge(self, offset: int, patience: float, hurry: bool = False, user: str = "bob") -> None:
        self.publisher.ask(Acknowledge(user, "phone", Position.of(1, offset, 0)), hurry, patience)

    def send(self, *ids: str, to: str = "bob", size: int = 0) -> None:
        for id_ in ids:
            self.publisher.send(Accepted(Message(to, "alice", id_, 1, b"x" * size), "t", self))

    async def answer(self, ok: bool = True) -> None:
        """Answer the latest record and let that have its effect."""
        self.records[-1].answer.set_result(ok)
        await settle()

    @property
    def ids(self) -> list[list[str]]:
        return [record.ids for record in self.records]

    @property
    def is_empty(self) -> bool:
        return self.publisher._room == self.settings.produce_buffer


async def settle() -> None:
    """Let everything run that needs no time to pass."""
    loop = asyncio.get_running_loop()
    before = loop.time()
    for _ in range(20):
        await asyncio.sleep(0)
    assert loop.time() == before


async def until(now: float) -> None:
    """Let the clock go on to a time."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(now - loop.time())
    await settle()


def one_on_each(partitions: int) -> list[str]:
    """A user on each partition."""
    return [next(u for u in map(str, range(100)) if partition_of(u, partitions) == n) for n in range(partitions)]


Scenario = Callable[[], Coroutine[Any, Any, None]]


def run(scenario: Scenario) -> None:
    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(scenario())


def in_jumping_time(scenario: Scenario) -> Callable[[], None]:
    def test() -> None:
        run(scenario)

    test.__name__ = scenario.__name__
    return test


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
async def test_what_has_patience_waits_for_others() -> None:
    kafka = Kafka()
    kafka.answers_at_once = True
    for offset in range(10):
        await until(offset / 100)
        kafka.acknowledge(offset, patience=0.1)
    assert kafka.records == []
    await until(1.0)
    assert [(record.at, len(REQUESTS.decode(record.value))) for record in kafka.records] == [(0.1, 10)]


@in_jumping_time
async def test_what_has_no_patience_takes_along_what_has() -> None:
    kafka = Kafka()
    kafka.answers_at_once = True
    kafka.acknowledge(1, patience=0.1)
    await until(0.02)
    kafka.acknowledge(2, patience=0.0)
    await until(0.05)
    kafka.acknowledge(3, patience=0.1)
    await until(0.06)
    kafka.acknowledge(4, patience=0.1, hurry=True)
    await until(1.0)
    assert [(record.at, len(REQUESTS.decode(record.value))) for record in kafka.records] == [(0.02, 2), (0.06, 2)]


@in_jumping_time
async def test_who_leaves_takes_his_acknowledgements_along() -> None:
    kafka = Kafka()
    kafka.answers_at_once = True
    kafka.acknowledge(1, patience=0.1)
    await until(0.02)
    kafka.publisher.hurry("bob")
    await until(0.05)
    # With nothing waiting, it is no record more and the interval stays.
    kafka.publisher.hurry("bob")
    await until(1.0)
    assert [(record.at, len(REQUESTS.decode(record.value))) for record in kafka.records] == [(0.02, 1)]


@in_jumping_time
async def test_stopping_does_not_wait_for_patience() -> None:
    kafka = Kafka()
    kafka.answers_at_once = True
    kafka.acknowledge(1, patience=3600.0)
    await kafka.publisher.stop()
    assert [record.at for record in kafka.records] == [0.0]
    assert kafka.is_empty


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
async def test_partitions_and_topics_do_not_wait_for_each_other() -> None:
    kafka = Kafka()
    kafka.settings.partitions = 8
    other = next(u for u in map(str, range(100)) if partition_of(u, 8) != partition_of("bob", 8))
    kafka.send("1")
    kafka.send("2", to=other)
    kafka.publisher.tell(UserDisconnected("bob", b"c", 7))
    kafka.publisher.ask(Acknowledge("bob", "phone", ORIGIN))
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
async def test_a_failure_concerns_its_own_partition_only() -> None:
    kafka = Kafka()
    kafka.settings.partitions = 8
    other = next(u for u in map(str, range(100)) if partition_of(u, 8) != partition_of("bob", 8))
    kafka.send("1")
    kafka.send("a", to=other)
    await settle()
    kafka.send("2")
    kafka.send("b", to=other)
    kafka.records[0].answer.set_result(False)
    kafka.records[1].answer.set_result(True)
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
        kafka.publisher.tell(UserDisconnected("bob", b"c", i))
        kafka.publisher.ask(Acknowledge("bob", "phone", ORIGIN), hurry=i % 5 == 0)
        await until(i / 500)
    await until(2.0)
    assert kafka.is_empty
    assert sorted(kafka.confirmed + kafka.failed, key=int) == [str(i) for i in range(200)]


@in_jumping_time
async def test_in_a_hurry_it_does_not_wait_for_the_interval() -> None:
    kafka = Kafka()
    kafka.answers_at_once = True
    ack = Acknowledge("bob", "phone", ORIGIN)
    kafka.publisher.ask(ack)
    await settle()
    kafka.publisher.ask(ack)
    await settle()
    assert len(kafka.records) == 1
    kafka.publisher.ask(ack, hurry=True)
    await settle()
    assert asyncio.get_running_loop().time() == 0.0
    assert [len(REQUESTS.decode(r.value)) for r in kafka.records] == [1, 2]
    await until(1.0)
    assert len(kafka.records) == 2


@in_jumping_time
async def test_in_a_hurry_it_still_keeps_to_one_record_at_a_time() -> None:
    kafka = Kafka()
    ack = Acknowledge("bob", "phone", ORIGIN)
    kafka.publisher.ask(ack)
    await settle()
    kafka.publisher.ask(ack, hurry=True)
    await settle()
    assert len(kafka.records) == 1
    await kafka.answer()
    assert asyncio.get_running_loop().time() == 0.0
    assert len(kafka.records) == 2


@in_jumping_time
async def test_stop_waits_for_what_is_under_way() -> None:
    kafka = Kafka()
    kafka.send("1")
    stopping = asyncio.create_task(kafka.publisher.stop())
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
    await kafka.publisher.stop()
    assert kafka.confirmed == ["1", "2"]
    assert kafka.is_empty


@in_jumping_time
async def test_stop_waits_for_what_waits_behind_what_is_under_way() -> None:
    kafka = Kafka()
    kafka.send("1")
    await settle()
    kafka.send("2")
    stopping = asyncio.create_task(kafka.publisher.stop())
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
async def test_what_has_patience_on_several_partitions_leaves_together() -> None:
    kafka = Kafka()
    kafka.answers_at_once = True
    kafka.settings.partitions = 8
    for turn, user in enumerate(one_on_each(8) * 4):
        await until(turn * 0.012)
        kafka.acknowledge(turn, patience=0.1, user=user)
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
