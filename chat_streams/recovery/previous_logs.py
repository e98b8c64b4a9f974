"""The logs that a repartition ended: Kafka keeps them for the retention, and they may hold what waits in inboxes.

A Redis that lost everything is given them before the log of today, since an inbox takes nothing below its top.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from chat_streams.kafka.generations import Generation
from chat_streams.kafka.log_reader import LogReader
from chat_streams.kafka.names import MESSAGING, Names, partition_of
from chat_streams.model.errors import UndecodableRecord, UnknownVersion
from chat_streams.model.records import INCOMING, Messages, Record
from chat_streams.model.redrive import offset_for
from chat_streams.processing.grouping import by_recipient
from chat_streams.runtime.settings import Settings
from tables.inbox import Inbox

AT_ONCE: Final = 200
AT_ONCE_BYTES: Final = 2 * 1024 * 1024
"""Records, and their bytes, that are appended together."""


async def is_applied(settings: Settings, inbox: Inbox, former: Generation) -> bool:
    """Whether every Redis primary still has the mark that all of a former log was applied to it.

    Raises ``KafkaUnavailable`` and ``RedisUnavailable``.
    """
    async with LogReader(settings) as reader:
        spans = await reader.spans(Names.of(former.version).incoming_messages)
    return all([await inbox.applied(s.partition, former.version) >= s.end for s in spans if s.first < s.end])


async def apply(settings: Settings, inbox: Inbox, former: Generation, tokens: Mapping[int, str]) -> None:
    """Append what a former log has for the users who are now on some partitions, of which ``tokens`` has each one's.

    Where nothing was lost, nothing changes. Raises ``KafkaUnavailable``, ``FencingTokenStale``, and ``ResponseError``.
    """
    records: list[Record[Messages]] = []
    size = 0
    async with LogReader(settings) as reader:
        async for found in reader.read(await reader.spans(Names.of(former.version).incoming_messages)):
            at = offset_for(MESSAGING, found.offset, found.headers)
            if at is None:
                continue
            try:
                value = INCOMING.decode(found.value)
            except (UndecodableRecord, UnknownVersion):
                continue  # It was a dead letter then; and of an ended log there is no newer version.
            records.append(Record(found.partition, at, value))
            size += len(found.value or b"")
            if len(records) >= AT_ONCE or size >= AT_ONCE_BYTES:
                await _append(settings, inbox, former.generation, records, tokens)
                records, size = [], 0
        await _append(settings, inbox, former.generation, records, tokens)


async def _append(
    settings: Settings, inbox: Inbox, generation: int, records: list[Record[Messages]], tokens: Mapping[int, str]
) -> None:
    # Of its users, some are on partitions of other workers now.
    batches = [
        batch._replace(partition=partition)
        for batch in by_recipient(records, generation, settings.retry_window)
        if (partition := partition_of(batch.user, settings.partitions)) in tokens
    ]
    if batches:
        await inbox.append(batches, tokens)
