"""The way from Kafka to the gateway: the records of its slot, read from the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import ConsumerStoppedError, KafkaError
from aiokafka.structs import TopicPartition

from chat_streams.kafka.client import client_options
from chat_streams.kafka.names import MAX_RECORD, OUTGOING_MESSAGES
from chat_streams.model.errors import ConnectChatError, UndecodableRecord, UnknownVersion
from chat_streams.model.records import OUTGOING, Outgoing
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.spans import Header

log = structlog.get_logger()

FETCH_BYTES: Final = 4 * 1024 * 1024
START_SECONDS: Final = 30.0


class SlotConsumerEnded(ConnectChatError):
    """Nothing can be read any more; only a new process helps."""


class SlotConsumer:
    """Reads one partition of ``outgoing_messages``: assigned, not subscribed, from its end."""

    def __init__(self, settings: Settings, receive: Callable[[Outgoing, Iterable[Header]], None]) -> None:
        self._settings = settings
        self._receive = receive
        self._consumer: AIOKafkaConsumer | None = None

    async def open(self, slot: int) -> None:
        """Begin at the end of a slot's partition, which is known when this returns; raises ``KafkaError``.

        Only then may connections be announced: what is sent to them comes behind it.
        """
        await self.close()
        consumer = AIOKafkaConsumer(
            **client_options(self._settings),
            enable_auto_commit=False,
            auto_offset_reset="latest",
            max_partition_fetch_bytes=max(FETCH_BYTES, MAX_RECORD),
            fetch_max_bytes=FETCH_BYTES,
        )
        tp = TopicPartition(OUTGOING_MESSAGES, slot)
        # Cancelled while it connects, aiokafka loses sight of the connection, which says so when it is collected: a
        # gateway that found its port taken ended with two lines.
        starting = asyncio.ensure_future(consumer.start())
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.shield(starting)
                consumer.assign([tp])
                await consumer.seek_to_end(tp)
                await consumer.position(tp)
        except BaseException:
            await asyncio.wait([starting])
            await consumer.stop()
            raise
        self._consumer = consumer

    async def close(self) -> None:
        """Stop reading."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()

    async def run(self) -> None:
        """Hand each record to ``receive``, until cancelled; raises ``SlotConsumerEnded``."""
        while True:
            consumer = self._consumer
            if consumer is None:
                await asyncio.sleep(0.05)
                continue
            try:
                batches = await consumer.getmany(timeout_ms=1000)
            except ConsumerStoppedError:
                # Another slot is being opened. This is no KafkaError.
                continue
            except KafkaError as error:
                log.warning("deliveries cannot be read, waiting", error=repr(error))
                await asyncio.sleep(0.5)
                continue
            if consumer is self._consumer and _has_ended(consumer):
                # An error that aiokafka does not know ends its fetcher, and nothing more would come.
                raise SlotConsumerEnded("the consumer of deliveries has ended by an error")
            for records in batches.values():
                for record in records:
                    self._take(record)
                    # A full fetch takes long to work through; the sockets must not wait for all of it.
                    await asyncio.sleep(0)

    def _take(self, record: Any) -> None:
        try:
            self._receive(OUTGOING.decode(record.value), record.headers)
        except (UndecodableRecord, UnknownVersion) as error:
            # Nothing is lost: whatever it was, the inbox has it, and the connections ask for it.
            place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
            log.error("a delivery cannot be read", **place, error=repr(error))  # noqa: TRY400 - bodies are not logged


def _has_ended(consumer: Any) -> bool:
    return bool(consumer._fetcher._fetch_task.done())
