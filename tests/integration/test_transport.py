"""The transport with a real Kafka, in an app of the test's own: errors, rewinds and stops at chosen moments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import TopicPartition
from faust.types import TP

from chat_streams.kafka.client import client_options
from chat_streams.kafka.log_reader import LogReader
from chat_streams.kafka.names import DEAD_LETTERS as DEAD_LETTERS_TOPIC
from chat_streams.model.errors import Rewound, UnknownVersion
from chat_streams.model.records import DEAD_LETTERS, Codec, Record
from chat_streams.processing.ordered import OrderedApp
from docker.local.probes import WITHIN_S
from docker.local.temporary_stack import Stack
from tests.integration.test_producer import PARTITIONS, Topic, records, started, topic

__all__ = ["topic"]

Apply = Callable[[list[Record[bytes]]], Awaitable[Awaitable[Any] | None]]
RECORDS = 10


class Text:
    """A codec of bytes that are their own value; ``new`` is of a version to come."""

    def decode(self, value: bytes | None) -> bytes:
        if value == b"new":
            raise UnknownVersion("new")
        return value or b""


class App(OrderedApp):
    """An app with one agent, which applies what the test tells it to; a crash is kept, and ends only itself."""

    def __init__(self, stack: Stack, name: str, apply: Apply) -> None:
        super().__init__(
            f"test-{name}",
            broker=f"aiokafka://{stack.settings.kafka}",
            client_options=client_options(stack.settings),
            loss_window=60.0,
            dead_letters=DEAD_LETTERS_TOPIC,
            key_serializer="raw",
            value_serializer="raw",
            autodiscover=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            web_enabled=False,
            stream_wait_empty=False,
            broker_commit_interval=0.1,
        )
        self.errors: list[BaseException] = []
        codec: Codec[bytes] = Text()  # type: ignore[assignment]

        async def agent(stream: Any) -> None:
            await self.process(stream, codec, apply)

        self.agent(self.topic(name), name=f"agent-{name}")(agent)

    async def crash(self, reason: BaseException) -> None:
        """Keep the reason."""
        self.errors.append(reason)


@asynccontextmanager
async def running(stack: Stack, topic: Topic, apply: Apply) -> AsyncIterator[App]:
    app = App(stack, topic.name, apply)
    await app.start()
    try:
        yield app
    finally:
        async with asyncio.timeout(WITHIN_S):
            await app.stop()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.02)


async def write(stack: Stack, topic: Topic, *values: bytes) -> None:
    producer = await started(stack)
    for value in values:
        await producer.write(topic.name, 0, records(value))
    await producer.stop(WITHIN_S)


async def committed(stack: Stack, topic: Topic) -> int:
    admin = AIOKafkaAdminClient(**client_options(stack.settings))
    await admin.start()
    try:
        tp = TopicPartition(topic.name, 0)
        return int((await admin.list_consumer_group_offsets(f"test-{topic.name}", partitions=[tp]))[tp].offset)
    finally:
        await admin.close()


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


async def test_what_is_applied_is_committed_and_the_next_worker_begins_there(stack: Stack, topic: Topic) -> None:
    applied: list[bytes] = []

    async def apply(found: list[Record[bytes]]) -> None:
        applied.extend(record.value for record in found)

    await write(stack, topic, *numbers(RECORDS))
    async with running(stack, topic, apply) as app:
        await until(lambda: len(applied) == RECORDS)
        assert app.partitions() == {topic.name: list(range(PARTITIONS))}
    assert await committed(stack, topic) == RECORDS
    await write(stack, topic, b"later")
    async with running(stack, topic, apply):
        await until(lambda: len(applied) > RECORDS)
    assert applied == [*numbers(RECORDS), b"later"]


async def test_an_error_that_no_record_explains_commits_nothing_of_what_was_admitted(
    stack: Stack, topic: Topic
) -> None:
    applied: list[bytes] = []

    async def apply(found: list[Record[bytes]]) -> None:
        applied.extend(record.value for record in found)

    await write(stack, topic, b"0", b"1")
    async with running(stack, topic, apply) as app:
        await until(lambda: len(applied) == 2)
        await write(stack, topic, b"2", b"new", b"4")
        await until(lambda: app.errors)
        await write(stack, topic, b"5")
    assert isinstance(app.errors[0], UnknownVersion)
    assert await committed(stack, topic) <= 3, "the record of the newer version, or what is before it"
    assert b"4" not in applied
    assert b"5" not in applied


async def test_an_effect_that_fails_is_made_again_and_nothing_is_committed_before(stack: Stack, topic: Topic) -> None:
    done: list[bytes] = []
    failures: list[bytes] = []

    async def effect(values: list[bytes]) -> None:
        if b"3" in values and len(failures) < 2:
            failures.append(b"3")
            raise OSError("the engine broke off")
        done.extend(values)

    async def apply(found: list[Record[bytes]]) -> Awaitable[None]:
        return effect([record.value for record in found])

    await write(stack, topic, *numbers(RECORDS))
    async with running(stack, topic, apply) as app:
        await until(lambda: app.progress.committable(TP(topic.name, 0)) == RECORDS)
    assert [value for index, value in enumerate(done) if value not in done[:index]] == numbers(RECORDS)
    assert await committed(stack, topic) == RECORDS
    assert app.errors == []


async def test_a_record_that_cannot_be_applied_becomes_a_dead_letter_and_the_next_goes_on(
    stack: Stack, topic: Topic
) -> None:
    applied: list[bytes] = []

    async def apply(found: list[Record[bytes]]) -> None:
        if any(record.value == b"3" for record in found):
            raise ValueError("broken")
        applied.extend(record.value for record in found)

    await write(stack, topic, *numbers(RECORDS))
    async with running(stack, topic, apply):
        await until(lambda: len(applied) == RECORDS - 1)
    assert await committed(stack, topic) == RECORDS
    async with LogReader(stack.settings) as reader:
        spans = await reader.spans(DEAD_LETTERS_TOPIC)
        letters: list[Any] = [DEAD_LETTERS.decode(found.value) async for found in reader.read(spans)]
    ours = [letter for letter in letters if getattr(letter, "topic", "") == topic.name]
    assert [(letter.offset, letter.reason) for letter in ours] == [(3, "ValueError: broken")]


async def test_a_rewind_waits_for_a_kafka_that_is_paused(stack: Stack, topic: Topic) -> None:
    applied: list[bytes] = []
    rewinds: list[None] = []

    async def apply(found: list[Record[bytes]]) -> None:
        if found[-1].value == b"9" and not rewinds:
            rewinds.append(None)
            stack.running["kafka"].pause()
            asyncio.get_running_loop().call_later(1.0, stack.running["kafka"].resume)
            await app.rewind({TP(topic.name, 0): 4})
            raise Rewound
        applied.extend(record.value for record in found)

    await write(stack, topic, *numbers(RECORDS - 1))
    async with running(stack, topic, apply) as app:
        await until(lambda: len(applied) == RECORDS - 1)
        await write(stack, topic, b"9")
        await until(lambda: applied[-1] == b"9")
    assert applied == [*numbers(RECORDS - 1), *numbers(RECORDS)[4:]]
    assert await committed(stack, topic) == RECORDS
    assert app.errors == []


async def test_a_stop_does_not_wait_for_a_kafka_that_is_paused(stack: Stack, topic: Topic) -> None:
    applied: list[bytes] = []

    async def apply(found: list[Record[bytes]]) -> Awaitable[Any] | None:
        applied.extend(record.value for record in found)
        if len(applied) == RECORDS:
            stack.running["kafka"].pause()
            return app.produce(topic.name, 1, None, lambda: b"effect")
        return None

    await write(stack, topic, *numbers(RECORDS))
    try:
        async with running(stack, topic, apply) as app:
            await until(lambda: len(applied) == RECORDS)
    finally:
        stack.running["kafka"].resume()
    # What was not committed comes again.
    async with running(stack, topic, apply):
        await write(stack, topic, b"later")
        await until(lambda: applied[-1] == b"later")
    assert await committed(stack, topic) == RECORDS + 1
