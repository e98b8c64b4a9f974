"""The logs that a repartition ended: Kafka keeps them for the retention, and they may hold what waits in inboxes.

A Redis that lost everything is given them before the log of today, since an inbox takes nothing below its top.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from chat_streams.batches import by_recipient
from chat_streams.contiguous import Record
from chat_streams.dead_letters import MESSAGING
from chat_streams.log_reader import LogReader
from chat_streams.records import INCOMING, Messages, Undecodable, UnknownVersion
from chat_streams.redrive import Redrive
from chat_streams.settings import Settings
from chat_streams.topics import Generation, Names, partition_of
from tables.inbox import Inbox

AT_ONCE: Final = 200
AT_ONCE_BYTES: Final = 2 * 1024 * 1024
"""Records, and their bytes, that are appended together."""


async def is_applied(settings: Settings, inbox: Inbox, former: Generation) -> bool:
    """Whether every Redis primary still has the mark that all of a former log was applied to it.

    Raises ``LogUnavailable`` and ``StoreUnavailable``.
    """
    async with LogReader(settings) as reader:
        spans = await reader.spans(Names.of(former.version).incoming_messages)
    return all([await inbox.applied(s.partition, former.version) >= s.end for s in spans if s.first < s.end])


async def apply(settings: Settings, inbox: Inbox, former: Generation, tokens: Mapping[int, str]) -> None:
    """Append what a former log has for the users who are now on some partitions, of which ``tokens`` has each one's.

    Where nothing was lost, nothing changes. Raises ``LogUnavailable``, ``StaleToken``, and ``ResponseError``.
    """
    records: list[Record[Messages]] = []
    size = 0
    async with LogReader(settings) as reader:
        async for found in reader.read(await reader.spans(Names.of(former.version).incoming_messages)):
            redrive = Redrive.of(found.headers)
            if redrive is not None and MESSAGING not in redrive.apps:
                continue
            try:
                value = INCOMING.decode(found.value)
            except (Undecodable, UnknownVersion):
                continue  # It was a dead letter then; and of an ended log there is no newer version.
            at = found.offset if redrive is None or redrive.offset is None else redrive.offset
            records.append(Record(found.partition, at, value))
            size += len(found.value or b"")
            if len(records) >= AT_ONCE or size >= AT_ONCE_BYTES:
                await _append(settings, inbox, former.generation, records, tokens)
                records, size = [], 0
        await _append(settings, inbox, former.generation, records, tokens)


async def _append(
    settings: Settings, inbox: Inbox, generation: int, records: list[Record[Messages]], tokens: Mapping[int, str]
) -> None:
    recipients, batches = [], []
    for user, _, messages in by_recipient(records, generation, settings.retry_window):
        partition = partition_of(user, settings.partitions)
        if partition in tokens:
            recipients.append((user, partition, tokens[partition]))
            batches.append(messages)
    if batches:
        await inbox.append(recipients, batches)
