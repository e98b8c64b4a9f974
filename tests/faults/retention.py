"""Retention that passes what was never applied: Kafka deletes records while the workers of a service are away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from functools import partial
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from chat_streams.kafka.client import client_options
from chat_streams.kafka.generations import generations
from chat_streams.kafka.log_reader import LogReader, Span
from chat_streams.kafka.names import INCOMING_MESSAGES, MESSAGING
from chat_streams.model.position import Position
from chat_streams.model.records import INCOMING
from chat_streams.operations.lag_reader import GROUPS
from docker.local.probes import eventually
from docker.local.temporary_stack import Stack
from tests.faults.crowd import Crowd
from tests.faults.trial import Fault

UNAPPLIED_MESSAGES: Final = 300


async def unapplied(stack: Stack, group: str, topics: Iterable[str] = ()) -> list[Span]:
    """Return the records that a group has not applied yet, by partition, of some topics or all that it reads."""
    async with LogReader(stack.settings) as reader:
        ends = [span for topic in topics or GROUPS[group] for span in await reader.spans(topic)]
    admin = AIOKafkaAdminClient(**client_options(stack.settings))
    try:
        await admin.start()
        tps = {TopicPartition(span.topic, span.partition): span for span in ends}
        committed = await admin.list_consumer_group_offsets(group, partitions=list(tps))
        return [span._replace(first=max(0, committed[tp].offset)) for tp, span in tps.items()]
    finally:
        await admin.close()


async def lag(stack: Stack, group: str) -> int:
    """Return the number of records that a group has not applied and committed."""
    return sum(span.end - span.first for span in await unapplied(stack, group))


async def delete_records(stack: Stack, spans: Iterable[Span]) -> None:
    """Delete all records of some partitions up to the end of their spans, as retention does."""
    admin = AIOKafkaAdminClient(**client_options(stack.settings))
    try:
        await admin.start()
        await admin.delete_records({TopicPartition(s.topic, s.partition): RecordsToDelete(s.end) for s in spans})
    finally:
        await admin.close()


async def note_gone(stack: Stack, crowd: Crowd, spans: Iterable[Span]) -> None:
    """Note in a crowd which of its messages are in some records."""
    generation = max(each.generation for each in await generations(stack.settings))
    async with LogReader(stack.settings) as reader:
        async for record in reader.read(spans):
            for index, message in enumerate(INCOMING.decode(record.value).messages):
                if message.to in crowd.confirmed_to:
                    _, number = json.loads(b"{" + message.json[1:])["body"]
                    position = Position.of(generation, record.offset, index)
                    crowd.gone.setdefault(message.to, {})[message.sender, number] = position


def workers(stack: Stack, service: str) -> list[str]:
    """Return the names of all workers of a service."""
    return [name for name in stack.running if name.partition("-")[0] == service]


class RetentionPasses(Fault):
    """The deletion of all that Kafka has, while all workers of a service are away, which has not applied some of it.

    Of all topics, as retention does: an acknowledgement is never gone before what it acknowledges.
    """

    loses_records = True

    def __init__(self, stack: Stack, service: str) -> None:
        super().__init__(stack)
        self.victim = service

    async def happen(self, crowd: Crowd) -> None:
        """Stop the workers, delete all there is, start them; returns once they are not behind."""
        stack, service = self.stack, self.victim
        names = workers(stack, service)
        self.away.update(names)
        await asyncio.gather(*(asyncio.to_thread(stack.running[name].stop) for name in names))
        await crowd.until_confirmed(crowd.confirmed + UNAPPLIED_MESSAGES)
        await eventually(partial(lag, stack, service), f"{service} is behind")
        await crowd.pause()
        for other in GROUPS:
            # What is not away is to lose nothing of the messages.
            if other != service and INCOMING_MESSAGES in GROUPS[other]:
                await eventually(partial(_has, stack, other), f"{other} has all messages")
        if service == MESSAGING:
            await note_gone(stack, crowd, await unapplied(stack, service, [INCOMING_MESSAGES]))
        await delete_records(stack, [span for group in GROUPS for span in await unapplied(stack, group)])
        await asyncio.gather(*(stack.start(stack.running[name].part) for name in names))
        self.away.difference_update(names)
        # No message comes, and yet all is applied.
        await eventually(partial(_has, stack, service), f"{service} is not behind")
        crowd.resume()


async def _has(stack: Stack, group: str) -> bool:
    """Return whether a group has applied all messages, or all requests where it reads no messages."""
    topics = [topic for topic in GROUPS[group] if topic == INCOMING_MESSAGES]
    spans = await unapplied(stack, group, topics)
    return all(span.first >= span.end for span in spans) or not topics
