"""The previous logs, each ended by a repartition: Kafka keeps them for the retention; inboxes may hold their messages.

A Redis that lost everything gets their messages before those of the current log, since an inbox accepts no message
below its highest position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from chat_streams.kafka import generations
from chat_streams.kafka.generations import Generation
from chat_streams.kafka.log_reader import LogReader
from chat_streams.kafka.names import MESSAGING, VERSION, Names, partition_of
from chat_streams.model.errors import TopicsError, UndecodableRecord, UnknownVersion
from chat_streams.model.position import ORIGIN, Position
from chat_streams.model.records import INCOMING, Messages, Record
from chat_streams.model.redrive import address_for
from chat_streams.processing.grouping import by_recipient
from chat_streams.runtime.settings import Settings
from tables.inbox import Inbox

AT_ONCE: Final = 200
AT_ONCE_BYTES: Final = 2 * 1024 * 1024
"""The largest number of records, and of their bytes, that are appended together."""


class KeptLog(NamedTuple):
    """A log that Kafka still has: its generation, and the first offset of each partition that is left."""

    generation: int
    firsts: Sequence[int]


async def kept(settings: Settings) -> list[KeptLog]:
    """Return the current log and the previous ones that Kafka still has, the newest first.

    Raises ``KafkaUnavailable``, ``TopicsError`` and ``KafkaError``.
    """
    current = generations.newest(g for g in await generations.generations(settings) if g.version == VERSION)
    if current is None:
        raise TopicsError(f"no generation of version {VERSION} of the topics is known")
    logs = [*await generations.previous(settings), current]
    async with LogReader(settings) as reader:
        spans = [await reader.spans(Names.of(log.version).incoming_messages) for log in logs]
    return [
        KeptLog(log.generation, [span.first for span in of_log])
        for log, of_log in reversed(list(zip(logs, spans, strict=True)))
    ]


def gone_up_to(logs: Sequence[KeptLog], user: str) -> Position:
    """Return the position up to which messages to a user may be gone from the log; ``ORIGIN`` if none can be.

    ``logs`` are those that Kafka still has, the newest first.
    """
    oldest = logs[0].generation
    for log in logs:
        if log.generation != oldest:
            break
        if first := log.firsts[partition_of(user, len(log.firsts))]:
            return Position.before(oldest, first)
        oldest -= 1
    return Position.before(oldest + 1, 0) if oldest else ORIGIN


async def is_applied(settings: Settings, inbox: Inbox, previous: Generation) -> bool:
    """Return whether every Redis primary still has the mark that all of a previous log was applied to it.

    Raises ``KafkaUnavailable`` and ``RedisUnavailable``.
    """
    async with LogReader(settings) as reader:
        spans = await reader.spans(Names.of(previous.version).incoming_messages)
    return all([await inbox.applied(s.partition, previous.version) >= s.end for s in spans if s.first < s.end])


async def apply(settings: Settings, inbox: Inbox, previous: Generation, tokens: Mapping[int, str]) -> None:
    """Append the messages of a previous log to the inboxes of users who are now on the partitions in ``tokens``.

    Inboxes that lost nothing do not change. Raises ``KafkaUnavailable``, ``FencingTokenStale``, and ``ResponseError``.

    Args:
        settings: Settings of the process.
        inbox: The offline store.
        previous: Generation of the previous log.
        tokens: Fencing token of each current partition to restore.
    """
    records: list[Record[Messages]] = []
    size = 0
    async with LogReader(settings) as reader:
        async for found in reader.read(await reader.spans(Names.of(previous.version).incoming_messages)):
            address = address_for(MESSAGING, found.offset, found.at, found.headers)
            if address is None:
                continue
            try:
                value = INCOMING.decode(found.value)
            except (UndecodableRecord, UnknownVersion):
                continue  # It became a dead letter at the time; no newer program can have written to an ended log.
            records.append(Record(found.partition, *address, value))
            size += len(found.value or b"")
            if len(records) >= AT_ONCE or size >= AT_ONCE_BYTES:
                await _append(settings, inbox, previous.generation, records, tokens)
                records, size = [], 0
        await _append(settings, inbox, previous.generation, records, tokens)


async def _append(
    settings: Settings, inbox: Inbox, generation: int, records: list[Record[Messages]], tokens: Mapping[int, str]
) -> None:
    # Some recipients are now on partitions of other workers.
    batches = [
        batch._replace(partition=partition)
        for batch in by_recipient(records, generation, settings.retry_window)
        if (partition := partition_of(batch.user, settings.partitions)) in tokens
    ]
    if batches:
        await inbox.append(batches, tokens)
