"""The generations of the log: when it is recreated or repartitioned, new positions are above all earlier ones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import aiokafka
import msgspec
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from chat_streams.kafka.client import REQUEST_SECONDS, Admin, client_options
from chat_streams.kafka.metadata import topics_of
from chat_streams.kafka.names import GENERATIONS, VERSION, Names
from chat_streams.kafka.producer import KafkaProducer, ProducerRecord, connected
from chat_streams.model.errors import TopicsError
from chat_streams.runtime.settings import Settings


class Generation(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record of ``log_generations``: the generation of the topic with this id, and the version of its name.

    Of each topic the newest record counts. ``closing`` names the repartition that closes the log; "" where none does.
    """

    generation: int
    topic_id: str
    partitions: int
    version: int = 1
    closing: str = ""


class Log(NamedTuple):
    """The current log, and all topics' ids by name."""

    current: Generation
    topics: Mapping[str, str]

    @property
    def generation(self) -> int:
        """The generation of the log."""
        return self.current.generation

    @property
    def partitions(self) -> int:
        """The number of partitions of ``incoming_messages``."""
        return self.current.partitions


def decode(value: bytes) -> Generation:
    """Return a record of ``log_generations``; raises ``msgspec.DecodeError``."""
    return msgspec.json.decode(value, type=Generation)


def newest(known: Iterable[Generation]) -> Generation | None:
    """Return the newest generation; ``None`` without any."""
    return max(known, key=lambda g: g.generation, default=None)


def why_closed(known: Iterable[Generation], topic_id: str) -> str:
    """Return why nothing may be written to the log whose topic has this id, and what to do; "" where it may.

    Args:
        known: The newest record of each topic.
        topic_id: Kafka's id of the topic.
    """
    known = list(known)
    last = newest(known)
    current = next((g for g in known if g.topic_id == topic_id), None)
    if last is not None and current is not None and last.generation > current.generation:
        return (
            f"the log is of generation {last.generation} by now: set CHAT_TOPICS_VERSION={last.version} and"
            f" CHAT_PARTITIONS={last.partitions}"
        )
    if current is not None and current.closing:
        return (
            "the log is closed by a repartition; if that was interrupted, run 'faust -A chat_streams topics"
            " repartition' again, which ends it or opens the log"
        )
    return ""


async def generations(settings: Settings) -> list[Generation]:
    """Return the newest record of each topic that has been the log, the oldest first; raises ``TopicsError``."""
    consumer = aiokafka.AIOKafkaConsumer(**client_options(settings), enable_auto_commit=False)
    tp = TopicPartition(GENERATIONS, 0)
    found: dict[str, Generation] = {}
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            await consumer.start()
            consumer.assign([tp])
            await consumer.seek_to_beginning(tp)
            end = (await consumer.end_offsets([tp]))[tp]
            while await consumer.position(tp) < end:
                batch = await consumer.getmany(tp, timeout_ms=500)
                found |= {g.topic_id: g for g in (decode(record.value) for record in batch.get(tp, []))}
    except (KafkaError, TimeoutError, msgspec.DecodeError) as error:
        raise TopicsError(f"topic {GENERATIONS} cannot be read from {settings.kafka}: {error!r}") from error
    finally:
        await consumer.stop()
    return sorted(found.values(), key=lambda g: g.generation)


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
    last = newest(known)
    generation = Generation(1 if last is None else last.generation + 1, topic_id, partitions, version)
    async with connected(settings) as producer:
        await note(producer, generation)
    return generation.generation


async def note(producer: KafkaProducer, generation: Generation) -> None:
    """Write a record of ``log_generations``; raises ``KafkaError`` and ``TimeoutError``."""
    record = ProducerRecord(generation.topic_id.encode(), msgspec.json.encode(generation))
    await producer.write(GENERATIONS, 0, [record])
