"""Collecting the state of the system every few seconds: offsets, leases, and the statistics that services publish.

The only topic that is read whole is ``service_stats``. A few records of the others are sampled while they are
watched.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import structlog
from aiohttp import web
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import TopicPartition

from chat_streams.inspector.series import OnLogTime, Series
from chat_streams.kafka import losses, names
from chat_streams.kafka.client import client_options
from chat_streams.kafka.generations import generations, newest
from chat_streams.kafka.log_clock import LogClock, SkewReport
from chat_streams.kafka.log_reader import LogReader
from chat_streams.kafka.names import SERVICE_STATS
from chat_streams.kafka.topics import retentions
from chat_streams.model.errors import HistoryUnavailable, RedisUnavailable
from chat_streams.model.losses import Losses, records_of, unnoted
from chat_streams.model.position import Position
from chat_streams.model.times import now_ms
from chat_streams.operations.lag import Lag, Watermarks
from chat_streams.operations.lag_reader import GROUPS, LOOK_S, look
from chat_streams.operations.lag_sampling import OLDEST_BYTES, Sample, sample
from chat_streams.operations.leases import Slot, leases
from chat_streams.runtime import statistics
from chat_streams.runtime.metrics import REGISTRY
from chat_streams.runtime.process import crash
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.statistics import ServiceStats, Statistics
from chat_streams.runtime.tasks import spawn, uncancelled
from tables import last_audit
from tables.chat_history import ChatHistory
from tables.redis_cluster import Cluster

log = structlog.get_logger()

WATCHED_S: Final = 10.0
"""Seconds that sampling goes on after the last call of ``watch``."""
SAMPLE_S: Final = 4.0
"""Seconds between two samples."""
REQUEST_S: Final = 5.0
"""Seconds that Kafka has to answer a request."""
WAIT_MS: Final = 2000
"""The time in ms that Kafka may hold back a fetch while there is nothing new, as each empty answer costs both sides."""
DATABASE_S: Final = 4.0
"""Seconds between two looks at the chat database, besides ``LOOK_S``."""
LOSSES_S: Final = 10.0
"""Seconds between two looks at what retention took, and at how long it lets records be."""
LOGS: Final = (names.INCOMING_MESSAGES, names.SESSION_EVENTS, names.INBOX_REQUESTS)
TOPICS: Final = (*LOGS, names.OUTGOING_MESSAGES, names.DEAD_LETTERS)
OTHER_TOPICS: Final = (names.REGISTRY_CHANGELOG, names.GENERATIONS, names.LOSSES, names.SERVICE_STATS)
"""Further topics whose tail can be shown."""
ONE_PARTITION: Final = (names.DEAD_LETTERS, names.GENERATIONS, names.LOSSES, names.SERVICE_STATS)


@dataclass
class Engine:
    """The state of an engine at the last look; ``since`` is when ``up`` last changed, in ms since the epoch."""

    name: str
    up: bool | None = None
    since: int = field(default_factory=now_ms)
    error: str = ""

    def see(self, error: Exception | None) -> None:
        """Record the result of a look: the error, or ``None`` if the engine answered."""
        up = error is None
        if up != self.up:
            self.up, self.since = up, now_ms()
        self.error = "" if error is None else f"{type(error).__name__}: {error}"[:300].removesuffix(": ")


class Collector:
    """The state of the whole system at the last look, as the pages show it."""

    def __init__(self, settings: Settings, cluster: Cluster, history: ChatHistory) -> None:
        self.settings = settings
        self.engines = {name: Engine(name) for name in ("Kafka", "Redis", "DynamoDB")}
        self.series = Series()
        self._on_log_time = OnLogTime()
        self._newest: tuple[int, float] | None = None
        """The append time of the newest statistics, and when they came (monotonic)."""
        self.clock = LogClock()
        self._skew = SkewReport(self.clock)
        self.watermarks = Watermarks()
        self.slots: list[Slot] = []
        self.audit: dict[str, Any] | None = None
        self.statistics_trouble = ""
        """The reason why ``service_stats`` cannot be read; empty while it can."""
        self.samples: dict[str, Sample] = {}
        self.lags: dict[tuple[str, str, int], Lag] = {}
        self._cluster = cluster
        self._history = history
        self.statistics = Statistics("inspector", REGISTRY)
        self.statistics.gauges = self._gauges
        self.losses = Losses([], [])
        """The records that were gone before they were applied."""
        self.retentions: dict[str, float] = {}
        """For how many seconds Kafka keeps the records of a topic."""
        self._watched_at = -math.inf

    async def run(self, _: web.Application) -> AsyncIterator[None]:
        """Look at everything for as long as the site runs (``web.Application.cleanup_ctx``)."""
        looks = (
            *(self._kafka, self._read_statistics, self._redis, self._dynamodb, self._publish, self._sample),
            self._read_losses,
        )
        tasks = [spawn(f"look {look.__name__}", self._forever(look), partial(crash, "the inspector")) for look in looks]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def watch(self) -> None:
        """Sample the streams for the next ``WATCHED_S``, because somebody looks at them."""
        self._watched_at = time.monotonic()

    def _gauges(self) -> dict[str, float]:
        marks, redis = self.watermarks, self.engines["Redis"]
        found = {f"lag_{group}": float(marks.lag(group)) for group in GROUPS} if marks.ends else {}
        if (end := marks.ends.get(TopicPartition(names.DEAD_LETTERS, 0))) is not None:
            found["dead_letters"] = float(end)
        found["lost"] = float(records_of([*self.losses.open, *self.losses.acknowledged]))
        return found | {"redis_since": float(redis.since)} if redis.up else found

    async def _forever(self, look: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await uncancelled(look())
            except RedisUnavailable as error:
                self.engines["Redis"].see(error)
            except Exception as error:  # noqa: BLE001 - a look that failed is reported and tried again
                # Only this look decides whether Kafka is up: the others may fail for reasons of their own.
                if look == self._kafka:
                    self.engines["Kafka"].see(error)
                elif look == self._read_statistics:
                    self.statistics_trouble = f"{type(error).__name__}: {error}"[:300].removesuffix(": ")
                log.debug("a look failed", look=look.__name__, error=repr(error))
            await asyncio.sleep(LOOK_S)

    @contextlib.asynccontextmanager
    async def _consumer(self) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = AIOKafkaConsumer(
            **client_options(self.settings),
            enable_auto_commit=False,
            request_timeout_ms=int(REQUEST_S * 1000),
            fetch_max_wait_ms=WAIT_MS,
        )
        try:
            async with asyncio.timeout(REQUEST_S):
                await consumer.start()
            yield consumer
        finally:
            await consumer.stop()

    async def _kafka(self) -> None:
        admin = AIOKafkaAdminClient(**client_options(self.settings), request_timeout_ms=int(REQUEST_S * 1000))
        try:
            async with self._consumer() as consumer, asyncio.timeout(None) as limit:
                await admin.start()
                while True:
                    limit.reschedule(asyncio.get_running_loop().time() + REQUEST_S)
                    tps = [TopicPartition(t, p) for t in TOPICS for p in range(self.partitions(t))]
                    await look(self.watermarks, consumer, admin, tps)
                    self.engines["Kafka"].see(None)
                    limit.reschedule(None)
                    await asyncio.sleep(LOOK_S)
        finally:
            await admin.close()

    async def _read_losses(self) -> None:
        admin = AIOKafkaAdminClient(**client_options(self.settings), request_timeout_ms=int(REQUEST_S * 1000))
        try:
            await admin.start()
            current = newest(await generations(self.settings))
            generation = 1 if current is None else current.generation
            async with LogReader(self.settings) as reader:
                while True:
                    self.retentions = await retentions(admin, LOGS)
                    noted = await losses.read(reader)
                    firsts = {(s.topic, s.partition): s.first for topic in LOGS for s in await reader.spans(topic)}
                    away = []
                    for group, of_group in GROUPS.items():
                        if (committed := self.watermarks.committed.get(group)) is not None:
                            read = {tp: first for tp, first in firsts.items() if tp[0] in of_group}
                            away += unnoted(group, generation, committed, read)
                    self.losses = Losses.of([*noted, *away])
                    await asyncio.sleep(LOSSES_S)
        finally:
            await admin.close()

    def partitions(self, topic: str) -> int:
        """Return the number of partitions of a topic, by the settings."""
        if topic == names.OUTGOING_MESSAGES:
            return self.settings.slots
        return 1 if topic in ONE_PARTITION else self.settings.partitions

    async def _read_statistics(self) -> None:
        async with self._consumer() as consumer:
            tp = TopicPartition(SERVICE_STATS, 0)
            consumer.assign([tp])
            async with asyncio.timeout(REQUEST_S):
                if self._newest is None:
                    # The topic holds little more than the hour that is kept.
                    offset = (await consumer.beginning_offsets([tp]))[tp]
                else:
                    found = await consumer.offsets_for_times({tp: self._newest[0] + 1})
                    offset = found[tp].offset if found[tp] else (await consumer.end_offsets([tp]))[tp]
            consumer.seek(tp, offset)
            self.statistics_trouble = ""
            while True:
                for record in (await consumer.getmany(tp, timeout_ms=1000, max_records=500)).get(tp, []):
                    self._newest = record.timestamp, time.monotonic()
                    with contextlib.suppress(ValueError):
                        told = statistics.decode(record.value or b"")
                        self.series.add(self._on_log_time.of(told, record.timestamp))

    def now(self) -> int:
        """Return the log's time, about, in ms since the epoch; by this machine's clock until something was read."""
        if self._newest is None:
            return now_ms()
        at, came = self._newest
        return at + int(1000 * (time.monotonic() - came))

    async def _publish(self) -> None:
        producer = AIOKafkaProducer(**client_options(self.settings), request_timeout_ms=int(REQUEST_S * 1000))
        try:
            async with asyncio.timeout(REQUEST_S):
                await producer.start()
            await self.statistics.publish(partial(self._send, producer))
        finally:
            await producer.stop()

    async def _send(self, producer: AIOKafkaProducer, key: bytes, value: bytes) -> None:
        asked = time.monotonic()
        self._skew.note(asked, await producer.send_and_wait(SERVICE_STATS, value, key, 0))

    async def _redis(self) -> None:
        self.slots = await leases(self._cluster, self.settings.slots)
        self.audit = await last_audit.load(self._cluster)
        if self.audit is not None:
            self.series.ledger.audited(int(self.audit["at"]))
        self.engines["Redis"].see(None)

    async def _dynamodb(self) -> None:
        try:
            await self._history.range("~", Position(0, 0), Position(1, 0), None, 1)
        except HistoryUnavailable as error:
            self.engines["DynamoDB"].see(error)
        else:
            self.engines["DynamoDB"].see(None)
        await asyncio.sleep(DATABASE_S)

    def living(self) -> list[ServiceStats]:
        """Return the newest statistics of each instance that is not gone, ordered by service."""
        return self.series.living(self.now())

    @property
    def leases(self) -> list[Slot] | None:
        """The leases of gateways; ``None`` while Redis does not answer."""
        return self.slots if self.engines["Redis"].up else None

    async def _sample(self) -> None:
        if not self._watched:
            return
        async with LogReader(self.settings, OLDEST_BYTES) as reader:
            while self._watched:
                self.samples, self.lags = await sample(reader, self.watermarks, self.samples)
                await asyncio.sleep(SAMPLE_S)

    @property
    def _watched(self) -> bool:
        return time.monotonic() - self._watched_at < WATCHED_S
