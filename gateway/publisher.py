"""From the gateway to Kafka: many small things in few records, in order, within a bound of memory."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from chat_streams.kafka.client import client_options
from chat_streams.kafka.names import (
    INBOX_REQUESTS,
    INCOMING_MESSAGES,
    MAX_RECORD,
    SERVICE_STATS,
    SESSION_EVENTS,
    partition_of,
)
from chat_streams.model.records import (
    INCOMING,
    MAX_MESSAGES,
    REQUESTS,
    SESSIONS,
    Acknowledge,
    Fetch,
    Message,
    Messages,
    UserConnected,
    UserDisconnected,
)
from chat_streams.runtime.retry import retry_forever
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.spans import Header, Mark, Traces, traceparent
from chat_streams.runtime.statistics import Statistics, counting_errors

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = structlog.get_logger()

SESSION_INTERVAL: Final = 0.05
"""Seconds between two times that records of session events leave: of those, each is worked on alone."""
ITEM_BYTES: Final = 64
"""What a thing adds to a record beside its own bytes, about."""
TOGETHER: Final = 0.001
"""Seconds after a record left in which others of its topic leave with it: Kafka and workers take them in one go."""

CLOSED_SECONDS: Final = 1.0
"""Between two tries to write to a log that was closed by a repartition."""

T = TypeVar("T")
Done = Callable[[Sequence[T], bool], None]


class _Pace:
    """When records of one topic that are not full leave: those of all partitions together, once per ``interval`` s."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._left_at = -math.inf
        self._due_at = -math.inf

    def due(self, now: float, patience: float) -> float:
        """When something that waits up to ``patience`` s for others must leave: with those of other partitions."""
        if not now < self._due_at <= now + patience:
            self._due_at = now + patience
        return self._due_at

    def next(self, now: float, left_at: float) -> float:
        """When a record of a partition may leave whose last one left at ``left_at``."""
        joins = left_at < self._left_at and now - self._left_at <= TOGETHER
        return now if joins else self._left_at + self._interval

    def leaves(self, now: float) -> None:
        """One leaves now."""
        if now - self._left_at > TOGETHER:
            self._left_at = now


class _Lane(Generic[T]):
    """The things for one partition of one topic: one record under way at a time, so what fails fails in order.

    The first record leaves at once, then they keep the ``pace`` of their topic while they are not full: a lone record
    costs the whole system milliseconds, a batched one a fraction (``docs/architecture.md``, "A record carries a
    batch"). A thing with ``patience`` waits that long, in s, for others to travel with.
    """

    def __init__(
        self, publisher: Publisher, topic: str, partition: int, pace: _Pace, encode: Callable[[Any], bytes]
    ) -> None:
        self._publisher = publisher
        self._topic = topic
        self._partition = partition
        self._pace = pace
        self._encode = encode
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[T, int]] = []
        self._bytes = 0
        self._under_way = False
        self._left_at = -math.inf
        self._hurries = False
        self._due_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def add(self, thing: T, size: int, patience: float) -> None:
        self._waiting.append((thing, size))
        self._bytes += size
        self._due_at = min(self._due_at, self._pace.due(self._loop.time(), patience) if patience else 0.0)
        if not self._under_way:
            self._consider()

    def hurry(self) -> None:
        """Send what waits as soon as nothing is under way."""
        if not self._waiting:
            return
        self._hurries = True
        if not self._under_way:
            self._consider()

    def _full(self) -> bool:
        return len(self._waiting) >= MAX_MESSAGES or self._bytes >= self._publisher.settings.record_bytes

    def _consider(self) -> None:
        if not self._waiting:
            return
        now = self._loop.time()
        leaves_at = max(self._pace.next(now, self._left_at), self._due_at)
        if now >= leaves_at or self._hurries or self._full():
            if now >= leaves_at:
                # Those which are full or hurry must not hold up the others.
                self._pace.leaves(now)
            self._left_at = now
            self._hurries = False
            self._set_timer(math.inf)
            self._under_way = True
            self._publisher.spawn(self._send(self._take()))
        elif leaves_at < self._timer_at:
            self._set_timer(leaves_at)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if at == math.inf else self._loop.call_at(at, self._on_time)
        self._timer_at = at

    def _on_time(self) -> None:
        self._set_timer(math.inf)
        if not self._under_way:
            self._consider()

    def _take(self) -> list[tuple[T, int]]:
        size = count = 0
        for _, one in self._waiting[:MAX_MESSAGES]:
            if count and size + one > self._publisher.settings.record_bytes:
                break
            size += one
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        self._bytes -= size
        # What stays behind was waiting for room, not for others.
        self._due_at = 0.0 if self._waiting else math.inf
        return taken

    async def _send(self, taken: list[tuple[T, int]]) -> None:
        things = [thing for thing, _ in taken]
        headers = self._publisher.headers(self._topic, things)
        ok = await self._publisher.produce(self._topic, self._partition, self._encode(things), headers)
        self._publisher.give_back(sum(size for _, size in taken))
        self._publisher.done(self._topic, things, ok)
        if not ok and self._waiting:
            # What follows a record that failed fails with it: sent again, all of it comes in the old order.
            rest, self._waiting, self._bytes, self._due_at = self._waiting, [], 0, math.inf
            self._publisher.give_back(sum(size for _, size in rest))
            self._publisher.done(self._topic, [thing for thing, _ in rest], False)
        self._under_way = False
        self._consider()


class Accepted:
    """A message on its way to the log, who is told of its fate, and its span if it is sampled."""

    __slots__ = ("at_text", "message", "owner", "span")

    def __init__(self, message: Message, at_text: str, owner: Any, span: Span | None = None) -> None:
        self.message = message
        self.at_text = at_text
        self.owner = owner
        self.span = span


class Publisher:
    """Batches what the connections of a gateway send and writes it to Kafka (acks=all, idempotent).

    ``confirm`` is called with messages of ``incoming_messages`` and whether Kafka has them; of what failed nothing
    is tried again here, since the client sends it again under its id.
    """

    def __init__(
        self,
        settings: Settings,
        confirm: Callable[[Sequence[Accepted], bool], None],
        statistics: Statistics,
        traces: Traces | None = None,
    ) -> None:
        self.settings = settings
        self._traces = traces
        self._statistics = statistics
        self._confirm = confirm
        self._producer: AIOKafkaProducer | None = None
        self._lanes: dict[tuple[str, int], _Lane[Any]] = {}
        self._paces = {
            INCOMING_MESSAGES: _Pace(settings.record_interval),
            SESSION_EVENTS: _Pace(SESSION_INTERVAL),
            INBOX_REQUESTS: _Pace(settings.record_interval),
        }
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = settings.produce_buffer
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._renewal: asyncio.Task[None] | None = None
        self._closed_until = 0.0
        self.healthy = False

    async def start(self) -> None:
        """Connect; raises ``KafkaError``."""
        self._producer = await self._new_producer()
        self.healthy = True

    async def stop(self) -> None:
        """Wait until everything taken so far is written or has failed, then disconnect."""
        while True:
            # What waits for its interval would wait for a timer that nobody waits for.
            for lane in self._lanes.values():
                lane.hurry()
            if not self._tasks:
                break
            await asyncio.wait(self._tasks)
        if self._renewal is not None:
            self._renewal.cancel()
        if self._producer is not None:
            await self._producer.stop()

    async def say(self, key: bytes, value: bytes) -> None:
        """Write a record of ``service_stats``; raises what Kafka does not take it for. Its caller limits the time."""
        if self._producer is None:
            raise ConnectionError("there is no connection to Kafka")
        await self._producer.send_and_wait(SERVICE_STATS, value, key, 0)

    @property
    def held(self) -> int:
        """Bytes that wait for Kafka."""
        return self.settings.produce_buffer - self._room

    @property
    def has_room(self) -> bool:
        """Whether less than ``produce_buffer`` bytes wait for Kafka."""
        return self._room > 0

    async def wait_for_room(self) -> None:
        """Return once less than ``produce_buffer`` bytes wait for Kafka."""
        await self._has_room.wait()

    def send(self, accepted: Accepted) -> None:
        """Write a message; its fate is told to ``confirm``."""
        message = accepted.message
        size = len(message.json) + len(message.to) + len(message.sender) + len(message.id) + ITEM_BYTES
        self._add(INCOMING_MESSAGES, message.to, accepted, size, _encode_messages)

    def tell(self, event: UserConnected | UserDisconnected) -> None:
        """Write a session event; lost only with Kafka away, and then made good by the next announcement."""
        self._add(SESSION_EVENTS, event.user, event, 2 * ITEM_BYTES + len(event.user), _encode_events)

    def ask(self, request: Acknowledge | Fetch, hurry: bool = False, patience: float = 0.0) -> None:
        """Write an inbox request; a lost fetch is asked again, a lost acknowledgement covered by the next."""
        size = 2 * ITEM_BYTES + len(request.user)
        lane = self._add(INBOX_REQUESTS, request.user, request, size, _encode_requests, patience)
        if hurry:
            lane.hurry()

    def hurry(self, user: str) -> None:
        """Write what waits of the inbox requests of a user, and of others beside it."""
        lane = self._lanes.get((INBOX_REQUESTS, partition_of(user, self.settings.partitions)))
        if lane is not None:
            lane.hurry()

    def _add(
        self, topic: str, user: str, thing: Any, size: int, encode: Callable[[Any], bytes], patience: float = 0.0
    ) -> _Lane[Any]:
        partition = partition_of(user, self.settings.partitions)
        lane = self._lanes.get((topic, partition))
        if lane is None:
            lane = self._lanes[topic, partition] = _Lane(self, topic, partition, self._paces[topic], encode)
        self._room -= size
        if self._room <= 0:
            self._has_room.clear()
        lane.add(thing, size, patience)
        return lane

    def give_back(self, size: int) -> None:
        """Free the room of what is no longer waiting."""
        self._room += size
        if self._room > 0:
            self._has_room.set()

    def spawn(self, work: Any) -> None:
        """Run work which ``stop`` waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def done(self, topic: str, things: Sequence[Any], ok: bool) -> None:
        """A record was written or has failed."""
        if topic == INCOMING_MESSAGES:
            self._confirm(things, ok)
        elif not ok:
            log.warning("not written", topic=topic, count=len(things))

    def headers(self, topic: str, things: Sequence[Any]) -> list[Header] | None:
        """What a record says of the sampled messages in it."""
        if self._traces is None or topic != INCOMING_MESSAGES:
            return None
        return [
            Mark(index, traceparent(thing.span)).header()
            for index, thing in enumerate(things)
            if thing.span is not None
        ]

    async def produce(self, topic: str, partition: int, value: bytes, headers: list[Header] | None = None) -> bool:
        """Write one record; whether Kafka has it for sure. At once ``False`` while there is no connection to it."""
        producer = self._producer
        if producer is None or (topic == INCOMING_MESSAGES and time.monotonic() < self._closed_until):
            return False
        try:
            with self._statistics.timed(f"produce_{topic}"), counting_errors("kafka"):
                async with asyncio.timeout(2 * self.settings.produce_timeout):
                    await producer.send_and_wait(topic, value, partition=partition, headers=headers)
        except (KafkaError, TimeoutError, OSError) as error:
            log.warning("kafka did not take a record", topic=topic, partition=partition, error=repr(error))
            self.healthy = False
            if isinstance(error, MessageSizeTooLargeError):
                # Records are far smaller than the limit, unless `topics repartition` has lowered it.
                self._closed_until = time.monotonic() + CLOSED_SECONDS
            self._renew(producer)
            return False
        self.healthy = True
        return True

    def _renew(self, broken: AIOKafkaProducer) -> None:
        # A record that timed out leaves a gap in the idempotent producer's sequence: everything behind it would fail.
        if self._producer is broken:
            self._producer = None
            self.spawn(_stop(broken))
            self._renewal = asyncio.create_task(self._connect_again())

    async def _connect_again(self) -> None:
        away = (KafkaError, OSError, TimeoutError)
        self._producer = await retry_forever("connect a producer", away, self._new_producer)

    async def _new_producer(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **client_options(self.settings),
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_batch_size=MAX_RECORD // 2,
            max_request_size=MAX_RECORD,
            request_timeout_ms=int(self.settings.produce_timeout * 1000),
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer


async def _stop(producer: AIOKafkaProducer) -> None:
    try:
        await producer.stop()
    except KafkaError as error:
        log.warning("stopping a producer failed", error=repr(error))


def _encode_messages(things: list[Accepted]) -> bytes:
    return INCOMING.encode(Messages(tuple(thing.message for thing in things)))


def _encode_events(things: list[UserConnected | UserDisconnected]) -> bytes:
    return SESSIONS.encode(tuple(things))


def _encode_requests(things: list[Acknowledge | Fetch]) -> bytes:
    return REQUESTS.encode(tuple(things))
