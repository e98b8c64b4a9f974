"""The generations of the log: each time it is made anew or repartitioned, positions begin above all earlier ones."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import aiokafka
import msgspec
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from chat_streams.kafka.client import REQUEST_SECONDS, Admin, client_options
from chat_streams.kafka.metadata import topics_of
from chat_streams.kafka.names import GENERATIONS, VERSION, Names
from chat_streams.model.errors import TopicsError
from chat_streams.runtime.settings import Settings


class Log(NamedTuple):
    """The log the messages are addressed in."""

    generation: int
    partitions: int


class Generation(msgspec.Struct, frozen=True):
    """A record of ``log_generations``: which generation the topic with this id is, and which version of its name."""

    generation: int
    topic_id: str
    partitions: int
    version: int = 1


async def generations(settings: Settings) -> list[Generation]:
    """All generations of the log there were; raises ``TopicsError``."""
    consumer = aiokafka.AIOKafkaConsumer(**client_options(settings), enable_auto_commit=False)
    tp = TopicPartition(GENERATIONS, 0)
    found: list[Generation] = []
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            await consumer.start()
            consumer.assign([tp])
            await consumer.seek_to_beginning(tp)
            end = (await consumer.end_offsets([tp]))[tp]
            while await consumer.position(tp) < end:
                batch = await consumer.getmany(tp, timeout_ms=500)
                found += [msgspec.json.decode(r.value, type=Generation) for r in batch.get(tp, [])]
    except (KafkaError, TimeoutError) as error:
        raise TopicsError(f"topic {GENERATIONS} cannot be read from {settings.kafka}: {error!r}") from error
    finally:
        await consumer.stop()
    return found


async def previous(settings: Settings) -> list[Generation]:
    """The generations of earlier versions whose topics Kafka still has, the oldest first.

    Raises ``TopicsError``, also where we may not see them, and ``KafkaError``.
    """
    if VERSION == 1:
        return []
    known = [g for g in await generations(settings) if g.version < VERSION]
    names = {g: Names.of(g.version) for g in known}
    async with Admin(settings) as admin:
        there, hidden = await topics_of(admin, sorted({name for of in names.values() for name in of.logs}))
    if hidden:
        raise TopicsError(f"may not see topic {', '.join(sorted(hidden))}, which may hold what waits in inboxes")
    return sorted(
        (
            g
            for g, of in names.items()
            if all(name in there for name in of.logs) and there[of.incoming_messages].id == g.topic_id
        ),
        key=lambda g: g.generation,
    )


async def note_generation(settings: Settings, topic_id: str, partitions: int, version: int) -> int:
    """Make the log with this id the next generation, unless it is one; returns which. Raises ``TopicsError``."""
    known = await generations(settings)
    if (mine := next((g for g in known if g.topic_id == topic_id), None)) is not None:
        return mine.generation
    generation = Generation(max((g.generation for g in known), default=0) + 1, topic_id, partitions, version)
    producer = aiokafka.AIOKafkaProducer(**client_options(settings), acks="all", enable_idempotence=True)
    await producer.start()
    try:
        await producer.send_and_wait(GENERATIONS, msgspec.json.encode(generation), key=topic_id.encode())
    finally:
        await producer.stop()
    return generation.generation
