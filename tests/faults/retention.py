"""Retention that passes what was never applied: Kafka deletes records while the workers of a service are away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from chat_streams.kafka.client import client_options
from chat_streams.kafka.log_reader import LogReader, LogRecord, Span
from chat_streams.operations.lag_reader import GROUPS
from docker.local.temporary_stack import Stack


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


async def records(stack: Stack, spans: Iterable[Span]) -> AsyncIterator[LogRecord]:
    """Yield the records of some spans."""
    async with LogReader(stack.settings) as reader:
        async for record in reader.read(spans):
            yield record


async def stop_service(stack: Stack, name: str) -> list[str]:
    """Stop all workers of a service in order; returns their names."""
    names = [each for each in stack.running if each.partition("-")[0] == name]
    await asyncio.gather(*(asyncio.to_thread(stack.running[each].stop) for each in names))
    return names
