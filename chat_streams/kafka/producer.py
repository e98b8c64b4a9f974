"""The writer to Kafka: a batch is taken whole or not at all, and one that was given up is not written later."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    ProducerClosed,
    UnknownTopicOrPartitionError,
)

from chat_streams.compat.aiokafka import cut_off, make_severable
from chat_streams.kafka.client import KAFKA_AWAY, client_options, explain_failure
from chat_streams.kafka.log_clock import LogClock, SkewReport
from chat_streams.kafka.names import MAX_RECORD
from chat_streams.model.errors import KafkaUnavailable
from chat_streams.runtime.retry import KAFKA_ERRORS, retry_forever
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.tasks import OnFailure, raise_if_cancelled, spawn

log = structlog.get_logger()

COMMAND_SECONDS: Final = 30.0
"""Seconds that a write of a command may take."""
CLOSE_SECONDS: Final = 1.0
"""Seconds in which clients that were cut off close, at a stop."""


class ProducerRecord(NamedTuple):
    """A record to be written."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


class Written(NamedTuple):
    """The offset of the first record of a batch (-1 where Kafka does not tell), and its append time in ms."""

    offset: int
    at: int


class _Client:
    """A client of aiokafka, with the number of writes under way on it."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self.producer = producer
        self._outcomes: set[asyncio.Future[Any]] = set()
        self._writes = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.contextmanager
    def busy(self) -> Iterator[AIOKafkaProducer]:
        self._writes += 1
        self._idle.clear()
        try:
            yield self.producer
        finally:
            self._writes -= 1
            if not self._writes:
                self._idle.set()

    async def outcome(self, written: asyncio.Future[Any]) -> Any:
        """Wait for the metadata of a batch; raises ``KafkaConnectionError`` once this client is cut off.

        aiokafka fails what was cut off after a while only, when nobody waits for it any more.
        """
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        written.add_done_callback(partial(_tell, outcome))
        self._outcomes.add(outcome)
        try:
            return await outcome
        finally:
            self._outcomes.discard(outcome)

    def cut_off(self) -> None:
        cut_off(self.producer)
        for outcome in self._outcomes:
            if not outcome.done():
                outcome.set_exception(KafkaConnectionError("cut off with another write that Kafka did not answer"))

    async def end(self, within_s: float) -> None:
        """Disconnect, in ``within_s``, once no write is under way: each has its limit of time."""
        await self._idle.wait()
        try:
            async with asyncio.timeout(within_s):
                await self.producer.stop()
        except KAFKA_AWAY as error:
            self.cut_off()
            log.warning("stopping a producer failed", error=repr(error))


@contextlib.asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[KafkaProducer]:
    """Connect a writer for a command, of any of our records; raises ``KafkaUnavailable`` with an explanation."""
    producer = KafkaProducer(client_options(settings), COMMAND_SECONDS, 2 * MAX_RECORD)
    try:
        await producer.start()
    except KafkaError as error:
        raise KafkaUnavailable(await explain_failure(settings, error)) from error
    try:
        yield producer
    finally:
        await producer.stop(CLOSE_SECONDS)


class KafkaProducer:
    """Writes batches to partitions (acks=all, idempotent), through one client of aiokafka at a time.

    aiokafka tries a batch again without end, and after one that failed for good its partition takes nothing more: the
    sequence has a gap. So a write that takes too long or is cancelled cuts the client off from Kafka, and all writes
    under way on it fail. One that Kafka refused retires the client, which ends when its other writes are done. Both
    times a new client connects, and further writes wait for it.

    Args:
        options: Addresses and login (``client_options``).
        timeout_s: Seconds after which a write has failed; after half of them a broker that is silent is asked again.
        batch_bytes: Most bytes of a batch, in Kafka's format.
    """

    def __init__(self, options: Mapping[str, Any], timeout_s: float, batch_bytes: int) -> None:
        self._options = {
            **options,
            "acks": "all",
            "enable_idempotence": True,
            "max_batch_size": batch_bytes,
            "request_timeout_ms": int(timeout_s * 500),
        }
        self._timeout_s = timeout_s
        self._batch_bytes = batch_bytes
        self._client: _Client | None = None
        self._clients: set[_Client] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewal: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._stopped = False
        self._connected = False
        self.clock = LogClock()
        self._skew = SkewReport(self.clock)

    @property
    def connected(self) -> bool:
        """Tell whether Kafka was reached when last tried; a client that merely retires does not count."""
        return self._connected and not self._stopped

    async def start(self) -> None:
        """Connect; raises ``KafkaError``."""
        self._use(await self._connect())

    async def stop(self, within_s: float) -> None:
        """Wait up to ``within_s`` for the writes under way, then cut them off; further ones fail at once."""
        self._stopped = True
        self._changed.set()
        if self._renewal is not None:
            self._renewal.cancel()
        if self._client is not None:
            self._retire(self._client)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_s)
        for client in self._clients:
            client.cut_off()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)

    async def partitions_of_topic(self, topic: str) -> set[int]:
        """Return the partitions of a topic; raises ``KafkaError`` or ``TimeoutError``."""
        async with asyncio.timeout(self._timeout_s):
            client = await self._current()
            with client.busy() as producer:
                return set(await producer.partitions_for(topic))

    async def write(self, topic: str, partition: int, records: Sequence[ProducerRecord]) -> Written:
        """Write records as one batch.

        The caller has one write under way to a partition. Whatever this raises, nothing is written any more once it
        has, but for what the broker has received already.

        Raises:
            KafkaError: Kafka did not take it, or another write that took too long has cut its client off.
            TimeoutError: There was no connection in time.
        """
        client: _Client | None = None
        is_sent = False
        with KAFKA_ERRORS.count_exceptions():
            try:
                async with asyncio.timeout(self._timeout_s):
                    client = self._client or await self._current()
                    with client.busy() as producer:
                        batch = self._batch(producer, topic, records)
                        if partition not in await producer.partitions_for(topic):
                            raise UnknownTopicOrPartitionError(f"{topic}/{partition}")
                        asked = time.monotonic()
                        written = await producer.send_batch(batch, topic, partition=partition)
                        is_sent = True
                        return self._written(await client.outcome(written), asked)
            except (TimeoutError, asyncio.CancelledError) as error:
                if client is not None and is_sent:
                    self._cut_off(client)
                elif client is not None:
                    self._retire(client)
                raise_if_cancelled(error)
                if isinstance(error, asyncio.CancelledError):
                    raise KafkaConnectionError("the client was ended during the write") from error
                if is_sent:
                    raise KafkaTimeoutError(f"Kafka did not answer within {self._timeout_s:g} s") from error
                raise
            except KafkaError:
                if client is not None and is_sent:
                    self._retire(client)
                raise

    def _written(self, metadata: Any, asked: float) -> Written:
        self._skew.note(asked, metadata)
        return Written(int(metadata.offset), int(metadata.timestamp))

    def _batch(self, producer: AIOKafkaProducer, topic: str, records: Sequence[ProducerRecord]) -> Any:
        batch = producer.create_batch()
        for key, value, headers in records:
            added = batch.append(timestamp=None, key=key, value=value, headers=list(headers))
            # The first one is always added.
            if added is None or batch.size() > self._batch_bytes:
                raise MessageSizeTooLargeError(f"{len(records)} records for {topic} exceed {self._batch_bytes} bytes")
        batch.close()
        return batch

    # The clients

    async def _current(self) -> _Client:
        while not self._stopped:
            if self._client is not None:
                return self._client
            self._changed.clear()
            await self._changed.wait()
        raise ProducerClosed

    async def _connect(self) -> _Client:
        producer = AIOKafkaProducer(**self._options)
        make_severable(producer)
        try:
            async with asyncio.timeout(self._timeout_s):
                await producer.start()
        except BaseException as error:
            self._connected = False
            await producer.stop()
            if isinstance(error, TimeoutError):
                raise KafkaTimeoutError(f"no connection within {self._timeout_s:g} s") from error
            raise
        return _Client(producer)

    def _use(self, client: _Client) -> None:
        self._client = client
        self._clients.add(client)
        self._connected = True
        self._changed.set()

    def _cut_off(self, client: _Client) -> None:
        client.cut_off()
        self._connected = self._connected and client is not self._client
        self._retire(client)

    def _retire(self, client: _Client) -> None:
        """Have further writes wait for a new client; this one ends when it is idle."""
        if client is not self._client:
            return
        self._client = None
        ending = self._spawn("end a producer", client.end(self._timeout_s), partial(_log_failure, "ending a producer"))
        ending.add_done_callback(lambda _: self._clients.discard(client))
        if not self._stopped:
            self._renewal = self._spawn("connect a producer", self._renew(), self._on_renewal_failed)

    async def _renew(self) -> None:
        self._use(await retry_forever("connect a producer", Exception, self._connect))

    def _on_renewal_failed(self, error: BaseException) -> None:
        # Nothing else would connect again.
        _log_failure("connecting a producer", error)
        if not self._stopped:
            self._renewal = self._spawn("connect a producer", self._renew(), self._on_renewal_failed)

    def _spawn(self, name: str, work: Coroutine[Any, Any, None], on_failure: OnFailure) -> asyncio.Task[None]:
        task = spawn(name, work, on_failure)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _log_failure(doing: str, error: BaseException) -> None:
    log.error(f"{doing} failed", error=repr(error), exc_info=error)


def _tell(outcome: asyncio.Future[Any], written: asyncio.Future[Any]) -> None:
    error = None if written.cancelled() else written.exception()
    if outcome.done():
        return
    if written.cancelled():
        outcome.cancel()
    elif error is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(written.result())
