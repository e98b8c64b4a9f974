"""Strict lanes over a writer that is slow, fails, or fails after it wrote: order, repeats, and what a drop ends."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, MessageSizeTooLargeError, TopicAuthorizationFailedError
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_streams.kafka.lanes import RECORD_BYTES, Lanes, Waiting, can_heal, next_batch
from chat_streams.kafka.names import partition_for
from chat_streams.kafka.producer import ProducerRecord, Written
from chat_streams.model.errors import LaneDropped
from tests.unit.gateway.fake_kafka import in_jumping_time, run, settle, until

TOPIC = "incoming_messages"


class Write:
    """A batch given to the writer, which has not answered yet."""

    def __init__(self, partition: int, values: list[bytes], answer: asyncio.Future[int]) -> None:
        self.partition, self.values, self.answer = partition, values, answer
        self.at = asyncio.get_running_loop().time()


class FakeWriter:
    """A writer whose log is what was answered, or written before an error; it checks that one batch is under way."""

    def __init__(self) -> None:
        self.log: defaultdict[int, list[bytes]] = defaultdict(list)
        self.writes: list[Write] = []
        self.under_way: dict[int, Write] = {}
        self.ends_slowly = 0.0
        self.lanes = Lanes(self, batch_bytes=10 * (RECORD_BYTES + 10), most_waiting=50)

    async def write(self, topic: str, partition: int, records: Sequence[ProducerRecord]) -> Written:
        assert partition not in self.under_way
        write = Write(
            partition, [record.value or b"" for record in records], asyncio.get_running_loop().create_future()
        )
        self.under_way[partition] = write
        self.writes.append(write)
        try:
            return Written(await write.answer, 0)
        finally:
            if self.ends_slowly and write.answer.cancelled():
                await asyncio.sleep(self.ends_slowly)
            del self.under_way[partition]

    def put(self, *values: bytes, partition: int = 0) -> list[asyncio.Future[int]]:
        return [self.lanes.write(TOPIC, partition, None, lambda value=value: value) for value in values]  # type: ignore[misc]

    def take(self, partition: int = 0) -> None:
        """Answer that a batch is in the log."""
        write = self.under_way[partition]
        write.answer.set_result(len(self.log[partition]))
        self.log[partition] += write.values

    def fail(self, partition: int = 0, error: Exception | None = None, *, written: bool = False) -> None:
        write = self.under_way[partition]
        if written:
            self.log[partition] += write.values
        write.answer.set_exception(error or KafkaConnectionError("away"))

    @property
    def batches(self) -> list[list[bytes]]:
        return [write.values for write in self.writes]


@in_jumping_time
async def test_the_first_leave_at_once_and_what_waits_meanwhile_goes_together() -> None:
    writer = FakeWriter()
    first = writer.put(b"1", b"2")
    await settle()
    behind = writer.put(b"3", b"4")
    await settle()
    assert writer.batches == [[b"1", b"2"]]
    writer.take()
    await settle()
    assert [each.result() for each in first] == [0, 1]
    assert writer.batches == [[b"1", b"2"], [b"3", b"4"]]
    writer.take()
    await settle()
    assert [each.result() for each in behind] == [2, 3]


@in_jumping_time
async def test_partitions_do_not_wait_for_each_other() -> None:
    writer = FakeWriter()
    writer.put(b"a", partition=0)
    writer.put(b"b", partition=1)
    await settle()
    assert set(writer.under_way) == {0, 1}
    writer.fail(0)
    writer.take(1)
    writer.put(b"c", partition=1)
    await settle()
    assert set(writer.under_way) == {1}
    await until(0.1)
    assert set(writer.under_way) == {0, 1}


@in_jumping_time
async def test_a_batch_that_failed_is_made_again_before_anything_behind_it() -> None:
    writer = FakeWriter()
    calls = 0

    def value() -> bytes:
        nonlocal calls
        calls += 1
        return str(calls).encode()

    written = writer.lanes.write(TOPIC, 0, b"key", value, [("name", b"text")])
    for at in (0.0, 0.1, 0.3, 0.7, 1.5, 3.1, 5.1, 7.1):
        await until(at)
        writer.put(b"behind")
        writer.fail()
        await settle()
    await until(9.1)
    writer.take()
    # In the same turn: the lane has not come to its end.
    writer.put(b"next")
    await settle()
    assert [write.at for write in writer.writes[:-1]] == pytest.approx([0.0, 0.1, 0.3, 0.7, 1.5, 3.1, 5.1, 7.1, 9.1])
    assert [write.values[0] for write in writer.writes[:-1]] == [str(n).encode() for n in range(1, 10)]
    assert (written.result(), calls) == (0, 9)
    # The next one that fails begins with the shortest delay again.
    writer.fail()
    await until(9.2)
    assert writer.writes[-1].at == pytest.approx(9.2)


@in_jumping_time
async def test_batches_are_bounded_by_bytes_and_have_one_record_at_least() -> None:
    writer = FakeWriter()
    writer.put(*(b"x" * 10 for _ in range(12)), b"y" * 5_000, b"z")
    for _ in range(4):
        await settle()
        writer.take()
    await settle()
    assert [len(batch) for batch in writer.batches] == [10, 2, 1, 1]


@in_jumping_time
async def test_a_dropped_lane_fails_as_a_whole_and_nothing_of_it_is_written_later() -> None:
    writer = FakeWriter()
    dropped = writer.put(b"1")
    await settle()
    dropped += writer.put(b"2", b"3")
    cause = RuntimeError("revoked")
    writer.lanes.drop(TOPIC, 0, cause)
    for each in dropped:
        error = each.exception()
        assert isinstance(error, LaneDropped)
        assert error.__cause__ is cause
    await settle()
    assert writer.under_way == {}
    again = writer.put(b"1", b"2")
    await settle()
    assert writer.batches == [[b"1"], [b"1", b"2"]]
    writer.take()
    await settle()
    assert [each.result() for each in again] == [0, 1]
    assert await writer.lanes.flush(0.0)


@in_jumping_time
async def test_what_follows_a_drop_waits_until_the_batch_under_way_has_ended() -> None:
    writer = FakeWriter()
    writer.ends_slowly = 1.0
    writer.put(b"1")
    await settle()
    for _ in range(2):
        writer.lanes.drop(TOPIC, 0, RuntimeError("revoked"))
        writer.put(b"again")
        await settle()
    await until(0.9)
    assert writer.batches == [[b"1"]]
    await until(1.0)
    assert writer.batches == [[b"1"], [b"again"]]


@in_jumping_time
async def test_a_drop_ends_the_wait_for_the_next_try() -> None:
    writer = FakeWriter()
    writer.put(b"1")
    await settle()
    writer.fail()
    await settle()
    writer.lanes.drop(TOPIC, 0, RuntimeError("rewound"))
    writer.lanes.drop(TOPIC, 7, RuntimeError("never written to"))
    await settle()
    assert await writer.lanes.flush(0.0)
    await until(60.0)
    assert writer.batches == [[b"1"]]


@in_jumping_time
async def test_a_record_too_large_drops_its_lane_alone() -> None:
    writer = FakeWriter()
    first, second = writer.put(b"1", b"2")
    other = writer.put(b"3", partition=1)[0]
    await settle()
    writer.fail(0, MessageSizeTooLargeError())
    await settle()
    for each in (first, second):
        assert isinstance(each.exception(), LaneDropped)
    writer.take(1)
    again = writer.put(b"4")[0]
    await settle()
    writer.take()
    await settle()
    assert (other.result(), again.result()) == (0, 0)


@in_jumping_time
async def test_a_value_that_raises_drops_what_is_not_written_by_then() -> None:
    writer = FakeWriter()
    before = writer.put(b"1")[0]

    def value() -> bytes:
        raise OSError("no such thing")

    bad = writer.lanes.write(TOPIC, 0, None, value)
    behind = writer.put(b"2")[0]
    await settle()
    assert writer.batches == [[b"1"]]
    writer.take()
    await settle()
    assert before.result() == 0
    for each in (bad, behind):
        assert isinstance(each.exception(), LaneDropped)
    assert writer.batches == [[b"1"]]


@in_jumping_time
async def test_an_unknown_error_of_the_writer_drops_the_lane() -> None:
    writer = FakeWriter()
    bad = writer.put(b"1")[0]
    await settle()
    writer.fail(error=TypeError("a fault"))
    await settle()
    assert isinstance(bad.exception(), LaneDropped)
    writer.put(b"2")
    await settle()
    assert writer.batches == [[b"1"], [b"2"]]


@in_jumping_time
async def test_a_writer_that_is_cancelled_from_within_drops_the_lane() -> None:
    writer = FakeWriter()
    bad = writer.put(b"1")[0]
    await settle()
    writer.under_way[0].answer.cancel()
    await settle()
    assert isinstance(bad.exception(), LaneDropped)
    writer.put(b"2")
    await settle()
    assert writer.batches == [[b"1"], [b"2"]]


@in_jumping_time
async def test_a_full_lane_drops_as_a_whole() -> None:
    writer = FakeWriter()
    taken = writer.put(*(b"x" for _ in range(50)))
    await settle()
    assert not any(each.done() for each in taken)
    one_more = writer.put(b"y")
    assert all(isinstance(each.exception(), LaneDropped) for each in taken + one_more)


@in_jumping_time
async def test_a_caller_that_is_cancelled_takes_nothing_back() -> None:
    writer = FakeWriter()

    async def caller() -> None:
        await writer.put(b"1")[0]

    calling = asyncio.create_task(caller())
    await settle()
    waiting = writer.put(b"2", b"3")
    calling.cancel()
    waiting[0].cancel()
    writer.take()
    await settle()
    writer.take()
    await settle()
    assert writer.log[0] == [b"1", b"2", b"3"]
    assert waiting[1].result() == 2


@in_jumping_time
async def test_an_offset_that_kafka_does_not_tell_is_told_of_none() -> None:
    writer = FakeWriter()
    written = writer.put(b"1", b"2")
    await settle()
    writer.under_way[0].answer.set_result(-1)
    await settle()
    assert [each.result() for each in written] == [-1, -1]


@in_jumping_time
async def test_flush_waits_within_its_limit() -> None:
    writer = FakeWriter()
    assert await writer.lanes.flush(1.0)
    writer.put(b"1")
    assert not await writer.lanes.flush(1.0)
    flushing = asyncio.create_task(writer.lanes.flush(1.0))
    await settle()
    writer.put(b"2")
    writer.take()
    await settle()
    assert not flushing.done()
    writer.take()
    assert await flushing


@in_jumping_time
async def test_stop_drops_what_is_not_written_by_then() -> None:
    writer = FakeWriter()
    late = writer.put(b"1")[0]
    await writer.lanes.stop(1.0)
    assert asyncio.get_running_loop().time() == 1.0
    after = writer.put(b"2")[0]
    for each in (late, after):
        assert isinstance(each.exception(), LaneDropped)
    await until(60.0)
    assert writer.batches == [[b"1"]]


def test_a_partition_follows_from_the_key_as_with_kafkas_own_partitioner() -> None:
    kafkas = DefaultPartitioner()
    for key in (b"", b"alice", b"\xff\x00", "日本".encode()):
        assert partition_for(key, 64) == kafkas(key, list(range(64)), list(range(64)))


def test_what_an_operator_can_mend_heals() -> None:
    assert can_heal(TopicAuthorizationFailedError())
    assert can_heal(TimeoutError())
    assert not can_heal(MessageSizeTooLargeError())
    assert not can_heal(ValueError())


@given(st.lists(st.integers(0, 3_000), min_size=1), st.integers(1, 10_000))
def test_a_batch_is_the_longest_that_fits(sizes: list[int], most: int) -> None:
    waiting: Any = [Waiting(None, lambda size=size: b"x" * size, (), None) for size in sizes]  # type: ignore
    count = len(next_batch(waiting, most))
    total = [sum(RECORD_BYTES + size for size in sizes[:n]) for n in range(len(sizes) + 1)]
    assert count == 1 or total[count] <= most
    assert count == len(sizes) or total[count + 1] > most


Step = tuple[str, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "take", "take", "fail", "fail late", "large", "drop", "wait"]),
        st.integers(0, 1),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_nothing_passes_what_is_before_it_and_a_drop_is_final(steps: list[Step]) -> None:
    async def scenario() -> None:
        writer = FakeWriter()
        generation = [0, 0]
        count = [0, 0]
        futures: dict[bytes, asyncio.Future[int]] = {}

        def drop(partition: int) -> None:
            generation[partition] += 1
            count[partition] = 0

        async def step(what: str, partition: int) -> None:
            if what == "put":
                value = f"{partition} {generation[partition]} {count[partition]}".encode()
                count[partition] += 1
                futures[value] = writer.put(value, partition=partition)[0]
            elif what == "drop":
                writer.lanes.drop(TOPIC, partition, RuntimeError())
                drop(partition)
            elif what == "wait":
                await asyncio.sleep(0.05)
            elif partition in writer.under_way and not writer.under_way[partition].answer.done():
                if what == "take":
                    writer.take(partition)
                elif what == "large":
                    writer.fail(partition, MessageSizeTooLargeError())
                    await settle()
                    drop(partition)
                else:
                    writer.fail(partition, written=what == "fail late")
            await settle()

        for each in steps:
            length = {partition: len(log) for partition, log in writer.log.items()}
            before = list(generation)
            await step(*each)
            for partition, log in writer.log.items():
                new = [int(value.split()[1]) for value in log[length.get(partition, 0) :]]
                assert all(each == before[partition] for each in new)
        for _ in range(200):
            for partition in list(writer.under_way):
                if not writer.under_way[partition].answer.done():
                    writer.take(partition)
            await asyncio.sleep(0.1)
        assert await writer.lanes.flush(0.0)
        for log in writer.log.values():
            highest: defaultdict[int, int] = defaultdict(lambda: -1)
            for value in log:
                _, its_generation, index = map(int, value.split())
                assert index <= highest[its_generation] + 1
                highest[its_generation] = max(highest[its_generation], index)
        for value, future in futures.items():
            partition, its_generation, _ = map(int, value.split())
            assert future.done()
            if its_generation == generation[partition]:
                assert writer.log[partition][future.result()] == value

    run(scenario)
