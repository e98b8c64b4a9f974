"""The topic ``log_losses``: durable notes of the records that were gone before a service had applied them.

A note stays until an operator acknowledges it, and after that as acknowledged: the topic is compacted.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import structlog

from chat_streams.kafka.client import KAFKA_AWAY, explain_failure
from chat_streams.kafka.log_reader import LogReader
from chat_streams.kafka.names import LOSSES
from chat_streams.kafka.producer import ProducerRecord, connected
from chat_streams.model.errors import KafkaUnavailable
from chat_streams.model.losses import Loss
from chat_streams.runtime.settings import Settings

log = structlog.get_logger()


async def read(reader: LogReader) -> list[Loss]:
    """Return all losses, the oldest first; raises ``KafkaUnavailable``."""
    found: dict[bytes | None, Loss] = {}
    async for record in reader.read(await reader.spans(LOSSES)):
        try:
            found[record.key] = Loss.decode(record.value).dated(record.at)
        except msgspec.DecodeError as error:
            log.warning("the note of a loss cannot be read", topic=LOSSES, offset=record.offset, error=repr(error))
    return sorted(found.values(), key=lambda loss: loss.at)


async def acknowledge(settings: Settings, losses: Iterable[Loss], who: str) -> None:
    """Note durably that ``who`` has acknowledged these losses; raises ``KafkaUnavailable``."""
    async with connected(settings) as producer:
        try:
            for loss in losses:
                await producer.write(LOSSES, 0, [ProducerRecord(loss.key, loss.acknowledged(who).encode())])
        except KAFKA_AWAY as error:
            raise KafkaUnavailable(await explain_failure(settings, error)) from error
