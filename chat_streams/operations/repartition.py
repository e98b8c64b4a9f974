"""Repartitioning: more partitions for the topics keyed by user, while all services run and without losing a message.

A topic is never grown in place: its users would change partitions, and a user's messages on the old partition could be
applied after newer ones on the new partition. Instead the log is closed, read to its end, and continued in topics of
the next version and generation:

1. The old ``incoming_messages`` is closed: Kafka accepts no more records for it (``max.message.bytes``). From here on
   gateways answer a send with an error that may be retried, and clients send again under the same id.
2. Messaging and history apply all that it holds. Nothing newer may come before: an inbox takes nothing below its top.
3. The new topics are created and registered in ``log_generations``. Services started with the new settings use them;
   a service with the old settings can no longer write a message, and is refused when it starts.

Until step 3 begins everything can be undone, and is undone if step 2 takes too long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, NamedTuple

import aiokafka
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.structs import TopicPartition

from chat_streams.kafka import generations, names, topics
from chat_streams.kafka.client import Admin, client_options
from chat_streams.kafka.topics import Topic
from chat_streams.model.errors import TopicsError
from chat_streams.model.records import INCOMING, Messages
from chat_streams.runtime.settings import Settings

READERS: Final = ("messaging", "history")
"""The consumer groups that must have applied all of the old log."""
LOOK_SECONDS: Final = 0.2
"""Seconds between two looks at offsets, or between two attempts to write to a partition that is being closed."""
CLOSE_SECONDS: Final = 10.0
CLOSED: Final = {"max.message.bytes": "1"}
"""The configuration that closes a topic: a limit that is smaller than any record."""

Say = Callable[[str], None]


class Plan(NamedTuple):
    """A repartition to be done: the topic to close, the topics to create, and their version and generation."""

    old: Topic
    new: list[Topic]
    version: int
    generation: int

    @property
    def settings(self) -> str:
        """The settings to start all services with afterwards."""
        return f"CHAT_TOPICS_VERSION={self.version} CHAT_PARTITIONS={self.new[0].partitions}"


async def plan(settings: Settings, partitions: int) -> Plan:
    """Return what a repartition would do; raises ``TopicsError`` when it can't be done."""
    log = await topics.check(settings)
    if partitions <= log.partitions:
        raise TopicsError(f"the log has {log.partitions} partitions: more are wanted, not {partitions}")
    version = names.VERSION + 1
    new = topics.of_users(settings, version, partitions)
    async with Admin(settings) as admin:
        for topic, found in zip(new, await admin.describe_topics([t.name for t in new]), strict=True):
            # A repartition that was interrupted may have created some of them.
            count = len(found["partitions"])
            if count not in (0, topic.partitions):
                raise TopicsError(
                    f"topic {topic.name} has {count} partitions already: repartition to so many, or delete it"
                )
    (old, *_) = topics.of_users(settings, names.VERSION, log.partitions)
    return Plan(old, new, version, log.generation + 1)


async def repartition(settings: Settings, plan: Plan, wait_s: float, say: Say) -> None:
    """Carry out a plan; ``say`` is called with a line for each step.

    If messaging or history have not applied the whole log within ``wait_s`` seconds, the old log is opened again, so
    that nothing has changed, and ``TopicsError`` is raised.
    """
    began = time.monotonic()
    async with Admin(settings) as admin:
        try:
            await _close(settings, admin, plan.old)
            say(f"{plan.old.name} is closed: sends are refused, to be sent again")
            await _wait_read(settings, admin, plan.old, time.monotonic() + wait_s)
            say(f"{' and '.join(READERS)} have applied all of it, {time.monotonic() - began:.1f} s later")
        except BaseException:
            await _configure(admin, plan.old, {})
            say(f"{plan.old.name} is open again, nothing has changed")
            raise
        _, ids = await topics.create_missing(admin, settings, plan.new)
        generation = await generations.note_generation(
            settings, ids[plan.new[0].name], plan.new[0].partitions, plan.version
        )
    say(f"the log is generation {generation} with {plan.new[0].partitions} partitions")


async def _close(settings: Settings, admin: AIOKafkaAdminClient, topic: Topic) -> None:
    await _configure(admin, topic, CLOSED)
    producer = aiokafka.AIOKafkaProducer(**client_options(settings), acks="all")
    nothing = INCOMING.encode(Messages(()))
    await producer.start()
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            for partition in range(topic.partitions):
                # The partition's leader may not have the new limit yet. A record without messages does no harm.
                while await _takes(producer, topic.name, partition, nothing):
                    await asyncio.sleep(LOOK_SECONDS)
    except (KafkaError, TimeoutError) as error:
        raise TopicsError(f"topic {topic.name} cannot be closed: {error!r}") from error
    finally:
        await producer.stop()


async def _takes(producer: aiokafka.AIOKafkaProducer, topic: str, partition: int, value: bytes) -> bool:
    try:
        await producer.send_and_wait(topic, value, partition=partition)
    except MessageSizeTooLargeError:
        return False
    return True


async def _configure(admin: AIOKafkaAdminClient, topic: Topic, changes: dict[str, str]) -> None:
    # AlterConfigs replaces all of a topic's own configuration: what is left out goes back to its default.
    await topics.configure(admin, topic.name, topic.config | changes)


async def _wait_read(settings: Settings, admin: AIOKafkaAdminClient, topic: Topic, deadline: float) -> None:
    tps = [TopicPartition(topic.name, partition) for partition in range(topic.partitions)]
    consumer = aiokafka.AIOKafkaConsumer(**client_options(settings), enable_auto_commit=False)
    before: dict[TopicPartition, int] = {}
    try:
        await consumer.start()
        while True:
            ends = await consumer.end_offsets(tps)
            behind = [name for name in READERS if await _is_behind(admin, name, ends)]
            # A record that was on its way into the log when it was closed is there at the second look: so the ends must
            # be the same twice.
            if not behind and ends == before:
                return
            if time.monotonic() > deadline:
                raise TopicsError(
                    f"{' and '.join(behind)} did not read {topic.name} to its end in time: is it running?"
                )
            before = ends
            await asyncio.sleep(LOOK_SECONDS)
    except KafkaError as error:
        raise TopicsError(f"how far {topic.name} is read cannot be found out: {error!r}") from error
    finally:
        await consumer.stop()


async def _is_behind(admin: AIOKafkaAdminClient, group: str, ends: dict[TopicPartition, int]) -> bool:
    found = await admin.list_consumer_group_offsets(group, partitions=list(ends))
    return any(end and (tp not in found or found[tp].offset < end) for tp, end in ends.items())
