"""The parts of one gateway process that all its sessions share: how they are made, started and stopped."""

from __future__ import annotations

import asyncio
import time
from typing import Final, NoReturn

import structlog
from aiohttp import web

from chat_streams.kafka import topics
from chat_streams.kafka.generations import why_closed
from chat_streams.kafka.log_notices import LogNotices
from chat_streams.kafka.topic_watch import TopicWatch
from chat_streams.model.addresses import join_address
from chat_streams.model.errors import RedisUnavailable, SettingsError, TopicsError
from chat_streams.runtime.metrics import PATH, REGISTRY, Exposition
from chat_streams.runtime.process import crash, limit_stop
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.shared_call import SharedCall
from chat_streams.runtime.spans import Traces
from chat_streams.runtime.statistics import Statistics
from chat_streams.runtime.tasks import close_all, run_endless, spawn
from chat_streams.runtime.tokens import Authenticator
from gateway.hub import Hub
from gateway.incoming_log import IncomingLog
from gateway.publisher import Publisher
from gateway.state.delivery_state import Limits
from gateway.state.hello_queue import HelloQueue
from gateway.state.rate_limit import RateLimiters, Rates
from gateway.state.standstill import BEAT_SECONDS, LEAST_SECONDS, Standstill
from tables.chat_history import ChatHistory
from tables.inbox import Inbox
from tables.redis_cluster import Cluster
from tables.slots import Slots

log = structlog.get_logger()

HELLOS_AT_ONCE: Final = 2_000
"""Connections that have not said hello. A client does so within a round trip, so that few are silent at a time."""
CANCEL_SECONDS: Final = 3.0
"""For what runs to end at a stop: a consumer that is being opened while Kafka is away takes a moment."""
LAST_WRITES_SECONDS: Final = 2.0
"""For the news of connections that are gone, once all messages are confirmed or refused."""
CLOSE_SECONDS: Final = 3.0
PING_S: Final = 1.0
"""Seconds for which Redis' answer to one question for readiness is good for all: whoever reaches the port can ask."""


class Services:
    """All of one gateway process but its connections; raises ``SettingsError`` when there is no key for tokens."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.limits = Limits(settings.window, settings.window_bytes, settings.read_messages, settings.read_bytes)
        self.rate_limiters = RateLimiters(
            Rates(
                send_rate=settings.send_rate,
                send_burst=settings.send_burst,
                send_bytes_rate=settings.send_bytes_rate,
                send_bytes_burst=settings.send_bytes_burst,
                connect_rate=settings.connect_rate,
                connect_burst=settings.connect_burst,
            )
        )
        self.hellos = HelloQueue(HELLOS_AT_ONCE)
        self.authenticator = Authenticator(settings)
        self._cluster = Cluster(settings)
        self._redis_answers = SharedCall(self._ping_redis, PING_S)
        self.inbox = Inbox(self._cluster, settings)
        self.history = ChatHistory(settings)
        self.statistics = Statistics("gateway", REGISTRY)
        self.statistics.gauges = self._lease
        self.traces = Traces.of(settings, "gateway")
        self.publisher = Publisher(settings, self.traces)
        self.hub = Hub(settings, self.publisher, Slots(self._cluster, settings))
        self.log = IncomingLog(settings)
        self.failure: TopicsError | None = None
        """Why the gateway stops, and does not start again before somebody has done something."""
        # What is written after that may be beyond the retry window of what its client has sent elsewhere.
        self.standstill = Standstill(max(LEAST_SECONDS, settings.retry_window / 2), time.monotonic())
        self._metrics: web.AppRunner | None = None
        self._running: asyncio.Task[NoReturn] | None = None

    async def start(self) -> None:
        """Connect to the engines and begin; raises ``TopicsError`` and ``RedisRefused``."""
        current = await topics.check(self.settings, "gateway")
        await self._cluster.check()
        self._metrics = await self._serve_metrics()
        await self.publisher.start()
        await self.log.start(current.generation)
        watch = TopicWatch(self.settings, "gateway", current.topics)
        self.publisher.limit_of = watch.largest_record
        notices = LogNotices(self.settings, current.current.topic_id, self.publisher.set_closed)
        self.publisher.set_closed(why_closed([current.current], current.current.topic_id))
        self.publisher.watch_ends(await self.log.ends(), watch.suspect)
        works = {
            "the hub": self.hub.run(),
            "statistics": self.statistics.publish(self.publisher.publish_statistics),
            "fetching the keys for tokens": self.authenticator.run(),
            "the watch on topics": watch.run(),
            "the beat": self._beat(),
            "the notices about the log": notices.run(),
        }
        self._running = spawn("the gateway", run_endless(works), self._on_failed)

    async def stop(self) -> None:
        """Write what was taken so far, release the slot and disconnect."""
        limit_stop(asyncio.get_running_loop())
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running], timeout=CANCEL_SECONDS)
        self._redis_answers.stop()
        await close_all(
            CLOSE_SECONDS,
            {
                "the publisher": self.publisher.stop(LAST_WRITES_SECONDS),
                "the slot": self.hub.close(),
                "the reader of the log": self.log.stop(),
                "the chat database": self.history.close(),
            },
        )
        # The slot is given back by way of it.
        await close_all(CLOSE_SECONDS, {"redis": self._cluster.close(), "metrics": self._close_metrics()})

    async def missing(self) -> list[str]:
        """The names of what connections need and is not there."""
        missing = []
        if not self.hub.ready:
            missing.append("no slot")
        if self.publisher.closed:
            missing.append("an open log")
        elif not self.publisher.healthy:
            missing.append("kafka")
        if not self.authenticator.has_keys:
            missing.append("keys for tokens")
        if not await self._redis_answers.result():
            missing.append("redis")
        return missing

    async def _ping_redis(self) -> bool:
        try:
            await self._cluster.ping()
        except RedisUnavailable:
            return False
        return True

    def _on_failed(self, error: BaseException) -> None:
        """Stop the process: a gateway that no longer reads its slot would keep its clients waiting for nothing."""
        if isinstance(error, TopicsError):
            self.failure = error
            self.publisher.refuse()
        crash("the gateway", error)

    async def _beat(self) -> None:
        while True:
            self.standstill.beat(time.monotonic())
            await asyncio.sleep(BEAT_SECONDS)

    def _lease(self) -> dict[str, float]:
        lease = self.hub.lease
        return {} if lease is None else {"slot": float(lease.slot), "epoch": float(lease.epoch)}

    async def _serve_metrics(self) -> web.AppRunner:
        """Metrics have a port of their own, which a load balancer does not know."""
        app = web.Application()
        app.router.add_get(PATH, Exposition(REGISTRY).answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        host, port = self.settings.metrics_host, self.settings.metrics_port
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            where = join_address(host, port)
            raise SettingsError(
                f"cannot listen on {where} (CHAT_METRICS_HOST, CHAT_METRICS_PORT): {error.strerror}"
            ) from error
        return runner

    async def _close_metrics(self) -> None:
        if self._metrics is not None:
            await self._metrics.cleanup()
