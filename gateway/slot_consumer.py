"""The way from Kafka to the gateway: the records of its slot, read from the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final

import structlog

from chat_streams.kafka.client import KAFKA_AWAY, client_options
from chat_streams.kafka.consumer import Consumer
from chat_streams.kafka.names import MAX_RECORD, OUTGOING_MESSAGES
from chat_streams.model.errors import ConsumerEnded, UndecodableRecord, UnknownVersion
from chat_streams.model.records import OUTGOING, Outgoing
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.spans import Header

log = structlog.get_logger()

FETCH_BYTES: Final = max(4 * 1024 * 1024, MAX_RECORD)
POLL_SECONDS: Final = 1.0
POLL_RECORDS: Final = 500
AGAIN_SECONDS: Final = 0.5
"""The time until a poll is made again that failed."""


class SlotConsumer:
    """Reads one partition of ``outgoing_messages``: assigned, not subscribed, from its end."""

    def __init__(self, settings: Settings, receive: Callable[[Outgoing, Iterable[Header]], None]) -> None:
        self._settings = settings
        self._receive = receive
        self._consumer: Consumer | None = None
        self._is_open = asyncio.Event()

    async def open(self, slot: int) -> None:
        """Begin at the end of a slot's partition, which is known when this returns.

        Only then may connections be announced: what is sent to them comes behind it. Raises ``KafkaError`` and
        ``TimeoutError``.
        """
        await self.close()
        consumer = Consumer(
            client_options(self._settings),
            auto_offset_reset="latest",
            max_partition_fetch_bytes=FETCH_BYTES,
            fetch_max_bytes=FETCH_BYTES,
        )
        await consumer.start()
        try:
            await consumer.assign_end(OUTGOING_MESSAGES, slot)
        except BaseException:
            await consumer.stop()
            raise
        self._consumer = consumer
        self._is_open.set()

    async def close(self) -> None:
        """Stop reading."""
        consumer, self._consumer = self._consumer, None
        self._is_open.clear()
        if consumer is not None:
            await consumer.stop()

    async def run(self) -> None:
        """Hand each record to ``receive``, until cancelled; raises ``ConsumerEnded``."""
        while True:
            await self._is_open.wait()
            if (consumer := self._consumer) is None:
                continue
            try:
                batches = await consumer.poll(POLL_SECONDS, POLL_RECORDS)
            except ConsumerEnded:
                if consumer is self._consumer:
                    raise
                continue  # Another slot is being opened.
            except KAFKA_AWAY as error:
                log.warning("deliveries cannot be read, waiting", error=repr(error))
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            for records in batches.values():
                for record in records:
                    self._take(record)
                    # A full fetch takes long to work through; the sockets must not wait for all of it.
                    await asyncio.sleep(0)

    def _take(self, record: Any) -> None:
        # What cannot be taken is not lost: whatever it was, the inbox has it, and the connections ask for it.
        try:
            self._receive(OUTGOING.decode(record.value), record.headers)
        except (UndecodableRecord, UnknownVersion) as error:
            log.error("a delivery cannot be read", **_place(record), error=repr(error))  # noqa: TRY400 - no bodies
        except Exception as error:
            log.exception("a delivery failed by a fault of the gateway", **_place(record), error=repr(error))


def _place(record: Any) -> dict[str, Any]:
    return {"topic": record.topic, "partition": record.partition, "offset": record.offset}
