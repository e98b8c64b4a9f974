"""The transport under Faust: our consumer, and a producer with strict lanes. Faust's conductor only subscribes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import faust
import mode
from faust.transport import base
from faust.types import FutureMessage

from chat_streams.compat.faust import UnusedProducer
from chat_streams.kafka.client import KAFKA_AWAY
from chat_streams.kafka.lanes import Lanes
from chat_streams.kafka.names import MAX_RECORD, partition_for
from chat_streams.kafka.producer import KafkaProducer
from chat_streams.processing.consumer import Consumer
from chat_streams.processing.lasting import lasting
from chat_streams.runtime.retry import retry_forever

WRITE_SECONDS: Final = 30.0
FLUSH_SECONDS: Final = 5.0
STOP_SECONDS: Final = 2.0
"""For what is not written at a stop, all flushes together, and then for the client to end."""
BATCH_BYTES: Final = MAX_RECORD // 2
RECORD_BYTES: Final = 2 * MAX_RECORD
"""The largest record: a dead letter holds a whole record and the reason of its failure."""


class Producer(UnusedProducer):
    """The producer of an app: to a partition, writes leave in order, and a failed one is repeated first."""

    def __init__(self, transport: Transport, loop: Any = None, **kwargs: Any) -> None:
        super().__init__(transport, loop=loop, **kwargs)
        self._client = KafkaProducer(self.app.client_options, WRITE_SECONDS, RECORD_BYTES)
        self._lanes = Lanes(self._client, BATCH_BYTES)
        self._stops_at: float | None = None

    async def on_start(self) -> None:
        """Connect; raises ``KafkaError``."""
        await self._client.start()

    async def on_stop(self) -> None:
        """Give up what Kafka does not take soon, and disconnect."""
        await self.flush()
        await self._lanes.stop(0.0)
        await self._client.stop(STOP_SECONDS)

    def write(
        self, topic: str, partition: int, key: bytes | None, value: Callable[[], bytes | None], headers: Any = None
    ) -> asyncio.Future[int]:
        """Put a write into its lane; returns the future of its offset."""
        return self._lanes.write(topic, partition, key, value, headers)

    async def partition_of(self, topic: str, key: bytes | None) -> int:
        """Return the partition to which a key belongs; waits while Kafka is away and the topic is not known yet."""
        found = await retry_forever("find partitions", KAFKA_AWAY, lambda: self._client.partitions_of_topic(topic))
        return partition_for(key or b"", len(found))

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: Any,
        *,
        transactional_id: str | None = None,
    ) -> asyncio.Future[int]:
        """Put a record into its lane, as Faust asks for it; the timestamp is the log's to give."""
        if partition is None:
            partition = await self.partition_of(topic, key)
        headers = list(headers.items()) if isinstance(headers, Mapping) else headers
        return self.write(topic, partition, key, lambda: value, headers)

    async def send_and_wait(self, *args: Any, **kwargs: Any) -> Any:
        """Write a record, and wait until Kafka has it."""
        return await (await self.send(*args, **kwargs))

    def send_soon(self, fut: FutureMessage) -> None:
        """Put a changelog's record into its lane at once, not by way of Faust's buffer, which ``flush`` may not see."""
        message = fut.message
        written = self._lanes.write(
            message.channel.get_topic_name(), message.partition, message.key, lambda: message.value
        )
        written.add_done_callback(partial(self._on_changed, fut))

    def _on_changed(self, fut: FutureMessage, written: asyncio.Future[Any]) -> None:
        if not written.cancelled() and written.exception() is None:
            fut.set_result(None)
        elif not self.should_stop:
            # The table has what its changelog has not. Another worker applies what caused it once more.
            self.add_future(self.crash(written.exception()))

    async def flush(self) -> bool:
        """Wait until Kafka has all that was written, and return whether it has: for 5 s, or 2 s from a stop on."""
        within_s = FLUSH_SECONDS
        if self.app.should_stop:
            now = asyncio.get_running_loop().time()
            self._stops_at = self._stops_at or now + STOP_SECONDS
            within_s = max(0.0, self._stops_at - now)
        return await self._lanes.flush(within_s)


class Fetcher(mode.Service):
    """Hands records out; Faust starts it once tables are restored, and stops it before the agents."""

    def __init__(self, app: faust.App, **kwargs: Any) -> None:
        self._app = app
        super().__init__(**kwargs)

    @lasting
    async def hand_out(self) -> None:
        """Hand out records until this is stopped."""
        await self._app.consumer.hand_out()


class Transport(base.Transport):
    """Connects an app to Kafka through the classes above."""

    Consumer = Consumer
    Producer = Producer
    Fetcher = Fetcher
    driver_version = "aiokafka"
