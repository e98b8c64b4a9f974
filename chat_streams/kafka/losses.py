"""The topic ``log_losses``: durable notes of the records that were gone before a service had applied them.

A note stays until an operator acknowledges it, and after that as acknowledged: the topic is compacted.
"""

from __future__ import annotations

from collections.abc import Iterable

import aiokafka
import msgspec
import structlog
from aiokafka.errors import KafkaError

from chat_streams.kafka.client import client_options, explain_failure
from chat_streams.kafka.log_reader import LogReader
from chat_streams.kafka.names import LOSSES
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
    producer = aiokafka.AIOKafkaProducer(**client_options(settings), acks="all", enable_idempotence=True)
    try:
        await producer.start()
        for loss in losses:
            await producer.send_and_wait(LOSSES, loss.acknowledged(who).encode(), loss.key, 0)
    except KafkaError as error:
        raise KafkaUnavailable(await explain_failure(settings, error)) from error
    finally:
        await producer.stop()
