"""The way from the gateway to Kafka: what its connections send, in batches, within a bound of memory."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog
from aiokafka.errors import TopicAuthorizationFailedError
from prometheus_client import Counter, Gauge, Histogram

from chat_streams.kafka.client import KAFKA_AWAY, NEVER_TAKEN, client_options
from chat_streams.kafka.names import (
    INBOX_REQUESTS,
    INCOMING_MESSAGES,
    MAX_RECORD,
    SERVICE_STATS,
    SESSION_EVENTS,
    partition_of,
)
from chat_streams.kafka.producer import KafkaProducer, ProducerRecord
from chat_streams.kafka.topics import CLOSED_BYTES
from chat_streams.model.errors import TopicsError
from chat_streams.model.records import (
    INCOMING,
    REQUESTS,
    SESSIONS,
    Acknowledge,
    Fetch,
    Message,
    Messages,
    UserConnected,
    UserDisconnected,
)
from chat_streams.runtime.metrics import BUCKETS, REGISTRY
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.spans import Header, Mark, Traces, traceparent
from chat_streams.runtime.tasks import spawn
from gateway.batcher import Part, PartitionBatcher
from gateway.state.flush_schedule import FlushSchedule
from gateway.state.log_ends import LogEnds

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = structlog.get_logger()

SESSION_INTERVAL: Final = 0.05
"""Seconds between two times that records of session events leave: of those, each is worked on alone."""
ITEM_BYTES: Final = 64
"""Bytes that an item adds to a record beside its own, about."""
REFUSE_SECONDS: Final = 1.0
"""For telling connections, at a stop, what Kafka did not take."""

ACCEPTED: Final = Counter(
    "connect_chat_gateway_messages_accepted_total", "Kafka has them, and the sender was told.", registry=REGISTRY
)
REFUSED: Final = Counter("connect_chat_gateway_messages_refused_total", "Kafka did not take them.", registry=REGISTRY)
PRODUCE_BUFFER_BYTES: Final = Gauge(
    "connect_chat_gateway_produce_buffer_bytes", "What waits for Kafka.", registry=REGISTRY
)
PRODUCE_SECONDS: Final = Histogram(
    "connect_chat_gateway_produce_seconds",
    "From a record's leaving to Kafka's answer.",
    ["topic"],
    buckets=BUCKETS,
    registry=REGISTRY,
)


class Sender(Protocol):
    """The connection that a message came on."""

    def on_confirmed(self, accepted: list[Accepted], at: int | None) -> None:
        """Note when messages of this connection were appended to the log (ms since the epoch).

        With ``None`` it is not sure that they were.
        """

    def on_too_large(self, accepted: list[Accepted]) -> None:
        """Note that messages of this connection are larger than the log takes, and are not in it."""


class Accepted:
    """A message on its way to the log, its owner, who is told of its fate, and its span if it is sampled."""

    __slots__ = ("message", "owner", "span")

    def __init__(self, message: Message, owner: Sender, span: Span | None = None) -> None:
        self.message = message
        self.owner = owner
        self.span = span


class Publisher:
    """Batches what the connections of a gateway send and writes it to Kafka (acks=all, idempotent).

    Owners of messages are told whether Kafka has them; of what failed nothing is tried again here, since the client
    sends it again under its id.
    """

    def __init__(self, settings: Settings, traces: Traces | None = None) -> None:
        self.settings = settings
        self._traces = traces
        self._kafka = KafkaProducer(client_options(settings), settings.produce_timeout, MAX_RECORD)
        self._statistics: asyncio.Future[Any] | None = None
        self._batchers: dict[tuple[str, int], PartitionBatcher[Any]] = {}
        self._schedules = {
            INCOMING_MESSAGES: FlushSchedule(settings.record_interval),
            SESSION_EVENTS: FlushSchedule(SESSION_INTERVAL),
            INBOX_REQUESTS: FlushSchedule(settings.record_interval),
        }
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = settings.produce_buffer
        self._has_room = asyncio.Event()
        self._has_room.set()
        self.on_logged: dict[str, Callable[[list[Any], bool], None]] = {}
        """By topic, what is told of its items: whether Kafka has them for sure. Messages have owners instead."""
        self.limit_of: Callable[[str], Awaitable[int]] = _unknown_limit
        """Finds out the ``max.message.bytes`` of a topic."""
        self.closed = ""
        """Why nothing may be written to the log; "" where it may."""
        self._ends = LogEnds()
        self._suspect: Callable[[str], None] = log.error
        self._is_void = False
        self._takes_messages = True
        self.healthy = False
        PRODUCE_BUFFER_BYTES.set_function(lambda: self.held)

    async def start(self) -> None:
        """Connect; raises ``KafkaError``."""
        await self._kafka.start()
        self.healthy = True

    def watch_ends(self, ends: Mapping[int, int], suspect: Callable[[str], None]) -> None:
        """Take a record below the log's ``ends``, by partition, for a sign that the topic was made anew.

        ``suspect`` is told of it, once; from then on nothing is written.
        """
        for partition, end in ends.items():
            self._ends.advance(INCOMING_MESSAGES, partition, end - 1)
        self._suspect = suspect

    def set_closed(self, reason: str) -> None:
        """Write nothing to the log while there is a ``reason``: what came into it now would stay behind."""
        if reason != self.closed:
            log.warning("the log is closed" if reason else "the log is open", why=reason)
        self.closed = reason

    def refuse(self) -> None:
        """Write nothing any more: what Kafka would take is not in the log that this gateway knows."""
        self._is_void = True
        self.healthy = False

    async def finish_messages(self, within_s: float) -> None:
        """Take no message any more, and wait until those that were taken are confirmed, ``within_s`` at most.

        What Kafka has not confirmed by then is refused, and nothing at all is written any more.
        """
        self._takes_messages = False
        if not await self._written(within_s, (INCOMING_MESSAGES,)):
            await self.stop(0.0)

    async def stop(self, within_s: float) -> None:
        """Write what was taken so far, ``within_s`` at most, and disconnect; messages not confirmed are refused."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        await self._written(within_s, tuple(_ENCODE))
        await self._kafka.stop(max(0.0, deadline - loop.time()))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=REFUSE_SECONDS)

    async def _written(self, within_s: float, topics: Sequence[str]) -> bool:
        """Wait until nothing is left to be written to some topics; returns whether that was so in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while busy := [b for (topic, _), b in self._batchers.items() if topic in topics and not b.is_idle]:
            # What waits for its interval would wait for a timer that nobody waits for.
            for batcher in busy:
                batcher.flush()
            if (left := deadline - loop.time()) <= 0:
                return False
            # A flush fails at once what has waited for too long: then nothing is under way.
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        return True

    async def publish_statistics(self, key: bytes, value: bytes) -> None:
        """Write a record of ``service_stats``; raises what Kafka does not take it for. Its caller limits the time."""
        if not self._kafka.connected:
            raise ConnectionError("there is no connection to Kafka")
        if self._statistics is not None and not self._statistics.done():
            raise TimeoutError("the record before is not written yet")
        writing = self._kafka.write(SERVICE_STATS, 0, [ProducerRecord(key, value)])
        self._statistics = spawn("write statistics", writing, None)
        # A write that is cancelled takes all others along.
        await asyncio.shield(self._statistics)

    @property
    def log_now(self) -> int | None:
        """The log's time, about, in ms since the epoch; ``None`` before anything was written."""
        return self._kafka.clock.now_ms(time.monotonic())

    @property
    def held(self) -> int:
        """Bytes that wait for Kafka."""
        return self.settings.produce_buffer - self._room

    @property
    def has_room(self) -> bool:
        """Return whether less than ``produce_buffer`` bytes wait for Kafka."""
        return self._room > 0

    async def wait_for_room(self) -> None:
        """Return once less than ``produce_buffer`` bytes wait for Kafka."""
        await self._has_room.wait()

    def send(self, accepted: Accepted) -> None:
        """Write a message; its owner is told of its fate."""
        if not self._takes_messages:
            self._confirm([accepted], None)
            return
        message = accepted.message
        size = len(message.json) + len(message.to) + len(message.sender) + len(message.id) + ITEM_BYTES
        self._add(INCOMING_MESSAGES, message.to, accepted, size)

    def publish_event(self, event: UserConnected | UserDisconnected) -> None:
        """Write a session event; lost only with Kafka away, and then made good by the next announcement."""
        self._add(SESSION_EVENTS, event.user, event, 2 * ITEM_BYTES + len(event.user))

    def request_page(self, fetch: Fetch) -> None:
        """Write the request for a page of an inbox; one that is lost is made again."""
        self._add(INBOX_REQUESTS, fetch.user, fetch, 2 * ITEM_BYTES + len(fetch.user))

    def publish_acknowledgement(self, acknowledge: Acknowledge, *, flush: bool = False, linger: float = 0.0) -> None:
        """Write an acknowledgement; one that is lost is covered by the next, or written again (``Hub``).

        It may wait up to ``linger`` s for others, or leaves as soon as it can with ``flush``.
        """
        size = 2 * ITEM_BYTES + len(acknowledge.user)
        batcher = self._add(INBOX_REQUESTS, acknowledge.user, acknowledge, size, linger)
        if flush:
            batcher.flush()

    def flush(self, user: str) -> None:
        """Write what waits of the inbox requests of a user, and of others beside it."""
        batcher = self._batchers.get((INBOX_REQUESTS, partition_of(user, self.settings.partitions)))
        if batcher is not None:
            batcher.flush()

    def _add(self, topic: str, user: str, item: Any, size: int, linger: float = 0.0) -> PartitionBatcher[Any]:
        partition = partition_of(user, self.settings.partitions)
        batcher = self._batchers.get((topic, partition))
        if batcher is None:
            batcher = PartitionBatcher(
                *(self, topic, partition, self._schedules[topic]),
                record_bytes=self.settings.record_bytes,
                patience_s=self.settings.produce_timeout,
            )
            self._batchers[topic, partition] = batcher
        self._room -= size
        if self._room <= 0:
            self._has_room.clear()
        batcher.add(item, size, linger)
        return batcher

    # What the batchers call

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work which ``stop`` waits for."""
        task = spawn("write a record", work, _log_fault)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def release(self, size: int) -> None:
        """Free the room of items that no longer wait."""
        self._room += size
        if self._room > 0:
            self._has_room.set()

    async def write(self, topic: str, partition: int, items: list[Any]) -> list[Part]:
        """Write items in one record, or in smaller ones if that is too large; returns their fates, in their order."""
        try:
            at = await self.produce(topic, partition, _ENCODE[topic](items), self._headers(topic, items))
        except _RecordTooLarge:
            if len(items) == 1:
                return [Part(1, is_too_large=True)]
        else:
            return [Part(len(items), at)]
        half = len(items) // 2
        parts = await self.write(topic, partition, items[:half])
        if parts[-1].at is None and not parts[-1].is_too_large:
            return [*parts, Part(len(items) - half)]
        return [*parts, *await self.write(topic, partition, items[half:])]

    def on_written(self, topic: str, items: list[Any], at: int | None) -> None:
        """Tell whom it concerns that a record was written or has failed."""
        if topic == INCOMING_MESSAGES:
            self._confirm(items, at)
            return
        if at is None:
            log.warning("not written", topic=topic, count=len(items))
        if topic in self.on_logged:
            self.on_logged[topic](items, at is not None)

    def on_too_large(self, topic: str, items: list[Any]) -> None:
        """Tell whom it concerns that Kafka refuses each of these for good."""
        if topic == INCOMING_MESSAGES:
            self._confirm(items, None, is_too_large=True)
        else:
            self.on_written(topic, items, None)

    def _confirm(self, items: list[Accepted], at: int | None, is_too_large: bool = False) -> None:
        (REFUSED if at is None else ACCEPTED).inc(len(items))
        by_owner: defaultdict[Sender, list[Accepted]] = defaultdict(list)
        for accepted in items:
            by_owner[accepted.owner].append(accepted)
            if accepted.span is not None:
                accepted.span.set_attribute("chat.accepted", at is not None)
                accepted.span.end()
        for owner, own in by_owner.items():
            try:
                if is_too_large:
                    owner.on_too_large(own)
                else:
                    owner.on_confirmed(own, at)
            except Exception as error:
                # The others wait for theirs.
                log.exception("a connection could not be told", error=repr(error))

    def _headers(self, topic: str, items: list[Any]) -> list[Header] | None:
        """The headers by which a record names the sampled messages in it."""
        if self._traces is None or topic != INCOMING_MESSAGES:
            return None
        return [
            Mark(index, traceparent(item.span)).header() for index, item in enumerate(items) if item.span is not None
        ]

    # The producer

    async def produce(
        self, topic: str, partition: int, value: bytes, headers: list[Header] | None = None
    ) -> int | None:
        """Write one record; when it was appended (ms since the epoch), ``None`` unless Kafka has it for sure.

        At once ``None`` while there is no connection to it, or the log is closed.
        """
        if self._is_void or self.closed or not self._kafka.connected:
            return None
        began = time.monotonic()
        try:
            written = await self._kafka.write(topic, partition, [ProducerRecord(None, value, headers or ())])
        except NEVER_TAKEN as error:
            if await self._is_too_large(topic, partition, len(value)):
                raise _RecordTooLarge from error
            return None
        except KAFKA_AWAY as error:
            setting = f"Write on topic {topic} (docs/security.md)"
            hint = {"setting": setting} if isinstance(error, TopicAuthorizationFailedError) else {}
            log.warning("kafka did not take a record", topic=topic, partition=partition, error=repr(error), **hint)
            self.healthy = False
            return None
        _SECONDS[topic].observe(time.monotonic() - began)
        self._check_end(topic, partition, written.offset)
        if self._is_void:
            return None
        self.healthy = True
        return written.at

    async def _is_too_large(self, topic: str, partition: int, size: int) -> bool:
        """Return whether the topic's limit is lower than at the start; else the log is closed, or nothing is known."""
        try:
            limit = await self.limit_of(topic)
        except (TopicsError, *KAFKA_AWAY) as error:
            log.warning("the limit of a topic is not known", topic=topic, error=repr(error))
            return False
        if limit <= CLOSED_BYTES:
            return False  # A repartition, of which this gateway has not heard yet.
        log.error(
            "a record is too large", topic=topic, partition=partition, bytes=size, setting=f"max.message.bytes={limit}"
        )
        return True

    def _check_end(self, topic: str, partition: int, offset: int) -> None:
        """Write nothing any more, and tell of it, where a log has gone back: the record counts for an old one."""
        if offset < 0 or self._is_void or (last := self._ends.advance(topic, partition, offset)) is None:
            return
        self.refuse()
        self._suspect(
            f"partition {partition} of topic {topic} ended at offset {last}, and took a record at {offset}: records"
            " were lost from it"
        )


def _log_fault(error: BaseException) -> None:
    log.error("writing a record failed by a fault of this program", error=repr(error), exc_info=error)


class _RecordTooLarge(Exception):
    """A topic takes no record of this size."""


async def _unknown_limit(topic: str) -> int:
    raise TopicsError(f"the limit of {topic} is not known")


def _encode_messages(items: list[Accepted]) -> bytes:
    return INCOMING.encode(Messages(tuple(item.message for item in items)))


def _encode_events(items: list[UserConnected | UserDisconnected]) -> bytes:
    return SESSIONS.encode(tuple(items))


def _encode_requests(items: list[Acknowledge | Fetch]) -> bytes:
    return REQUESTS.encode(tuple(items))


_ENCODE: Final[dict[str, Callable[[list[Any]], bytes]]] = {
    INCOMING_MESSAGES: _encode_messages,
    SESSION_EVENTS: _encode_events,
    INBOX_REQUESTS: _encode_requests,
}
_SECONDS: Final = {topic: PRODUCE_SECONDS.labels(topic) for topic in _ENCODE}
