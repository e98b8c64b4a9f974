"""The generations of the log: when it is recreated or repartitioned, new positions are above all earlier ones."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
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
    """The current log: its generation, the number of partitions of ``incoming_messages``, all topics' ids by name."""

    generation: int
    partitions: int
    topics: Mapping[str, str]


class Generation(msgspec.Struct, frozen=True):
    """A record of ``log_generations``: the generation of the topic with this id, and the version of its name."""

    generation: int
    topic_id: str
    partitions: int
    version: int = 1


async def generations(settings: Settings) -> list[Generation]:
    """Return all generations of the log there have been, the oldest first; raises ``TopicsError``."""
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
    """Return the generations of earlier versions whose topics still exist in Kafka, the oldest first.

    Raises ``TopicsError``, also when the Kafka user may not describe those topics, and ``KafkaError``.
    """
    if VERSION == 1:
        return []
    known = [g for g in await generations(settings) if g.version < VERSION]
    names = {g: Names.of(g.version) for g in known}
    async with Admin(settings) as admin:
        existing, hidden = await topics_of(admin, sorted({name for of_log in names.values() for name in of_log.logs}))
    if hidden:
        raise TopicsError(f"may not see topic {', '.join(sorted(hidden))}, which may hold what waits in inboxes")
    return sorted(
        (
            g
            for g, of_log in names.items()
            if all(name in existing for name in of_log.logs) and existing[of_log.incoming_messages].id == g.topic_id
        ),
        key=lambda g: g.generation,
    )


async def note_generation(settings: Settings, topic_id: str, partitions: int, version: int) -> int:
    """Record a topic as the next generation of the log, unless it is a generation already; returns its generation.

    Raises ``TopicsError`` and ``KafkaError``.

    Args:
        settings: Settings of the process.
        topic_id: Kafka's id of the topic ``incoming_messages``, in hexadecimal.
        partitions: Number of partitions of that topic.
        version: Version of its name (``Names.of``).
    """
    known = await generations(settings)
    if (recorded := next((g for g in known if g.topic_id == topic_id), None)) is not None:
        return recorded.generation
    generation = Generation(max((g.generation for g in known), default=0) + 1, topic_id, partitions, version)
    producer = aiokafka.AIOKafkaProducer(**client_options(settings), acks="all", enable_idempotence=True)
    await producer.start()
    try:
        await producer.send_and_wait(GENERATIONS, msgspec.json.encode(generation), key=topic_id.encode())
    finally:
        await producer.stop()
    return generation.generation
