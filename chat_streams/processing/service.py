"""The base of the Faust apps: settings for Faust, a check of the topics and Redis at start, and readiness."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import aiohttp.web
import click
import faust
import structlog
from faust.types import TP
from faust.web.base import BlueprintManager

from chat_streams.compat import uvloop_streams
from chat_streams.kafka import names, topics
from chat_streams.kafka.client import client_options
from chat_streams.kafka.generations import Log
from chat_streams.kafka.log_reader import LogReader
from chat_streams.kafka.log_reader import Span as Offsets
from chat_streams.kafka.topic_watch import TopicWatch
from chat_streams.model import errors
from chat_streams.model.errors import LaneDropped, RedisRefused, SettingsError
from chat_streams.model.losses import Loss
from chat_streams.model.position import Position
from chat_streams.model.records import Messages, Record
from chat_streams.processing.lasting import run_lasting
from chat_streams.processing.offsets import LostRange
from chat_streams.processing.ordered import OrderedApp
from chat_streams.processing.page_requests import NewestTimes
from chat_streams.processing.worker_metrics import WORKER
from chat_streams.runtime import descriptors, logs
from chat_streams.runtime.metrics import PATH, REGISTRY, Exposition
from chat_streams.runtime.process import limit_stop, tame_garbage_collector
from chat_streams.runtime.retry import retry_forever
from chat_streams.runtime.settings import Settings, settings, warn_of_unknown_settings
from chat_streams.runtime.spans import Traces
from chat_streams.runtime.statistics import INTERVAL_S
from chat_streams.runtime.tasks import close_all, log_loop_error
from tables.redis_cluster import Cluster

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = structlog.get_logger()

DAY: Final = 24 * 3600.0
LOOPBACK: Final = "127.0.0.1"
CLOSE_SECONDS: Final = 1.0


class Service(OrderedApp):
    """A Faust app of this project, started by ``faust -A chat_streams.<name> worker``."""

    def __init__(self, name: str, redis: bool = True, **options: Any) -> None:
        self.settings = _settings_or_exit()
        logs.configure(self.settings.log_format, self.settings.secrets())
        warn_of_unknown_settings()
        uvloop_streams.install()
        super().__init__(
            name,
            broker=f"aiokafka://{self.settings.kafka.replace(',', ';')}",
            client_options=client_options(self.settings),
            loss_window=self.settings.loss_window,
            dead_letters=names.DEAD_LETTERS,
            key_serializer="raw",
            value_serializer="raw",
            autodiscover=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            topic_partitions=self.settings.partitions,
            # Faust listens on all interfaces by default; its option --web-bind changes that, --web-host does not.
            web_bind=LOOPBACK,
            logging_config=logs.config(self.settings.log_format),
            stream_wait_empty=False,
            broker_session_timeout=self.settings.session_timeout,
            broker_heartbeat_interval=self.settings.session_timeout / 4,
            broker_commit_interval=self.settings.commit_interval,
            # Recovery of a table ends for good where it waits longer than this; it is to wait until Kafka is back.
            broker_request_timeout=DAY,
            **options,
        )
        self._redis = redis
        self.log_generation: Log | None = None
        self._topic_watch: TopicWatch | None = None
        self.traces: Traces | None = None
        self.exposition = Exposition(REGISTRY, WORKER)
        self.on_loss: dict[str, Callable[[int, LostRange], Awaitable[None]]] = {}
        """By topic, what to do about records of a partition that are gone, before anything behind them is applied."""
        self.applied_elsewhere: dict[str, Callable[[int], Awaitable[int]]] = {}
        """By topic, how to find out up to where a partition is applied when Kafka does not know."""
        self.hindrances: Callable[[], Sequence[str]] = list
        """Returns what an operator has to mend before this worker counts as ready."""
        self.to_close: dict[str, Callable[[], Awaitable[None]]] = {}
        """By name, what to close once no agent runs any more."""
        # None of Faust's own pages: they ask for no token, and APP_WEB_TABLES_ENABLED would show all users there.
        self.web.blueprints = BlueprintManager()
        self._add_pages()
        self.statistics.partitions = self.partitions
        self._add_tasks()

    @property
    def kafka_log(self) -> Log:
        """The log whose generation is part of the positions; known once the app has started."""
        assert self.log_generation is not None
        return self.log_generation

    def worker_init(self) -> None:
        """Check Kafka and Redis before a worker starts; ends the process with one line that names what is wrong."""
        super().worker_init()
        descriptors.raise_limit()
        # Faust calls this before every command of the app, also before the one that creates the topics.
        if "worker" not in sys.argv:
            return
        try:
            self.log_generation = asyncio.run(self._check())
            self.topic_ids = self.log_generation.topics
            self._topic_watch = TopicWatch(self.settings, self.conf.id, self.topic_ids)
        except (errors.TopicsError, RedisRefused) as error:
            raise click.ClickException(str(error)) from error
        self.traces = Traces.of(self.settings, self.conf.id)
        tame_garbage_collector()

    async def _check(self) -> Log:
        current = await topics.check(self.settings, self.conf.id)
        if self._redis:
            cluster = Cluster(self.settings)
            try:
                await cluster.check()
            finally:
                await cluster.close()
        return current

    def _add_tasks(self) -> None:
        run_lasting(self, self.watch)
        run_lasting(self, self.watch_topics)
        run_lasting(self, self.publish_statistics)

    async def on_start(self) -> None:
        """Have the errors logged that nobody waits for."""
        asyncio.get_running_loop().set_exception_handler(log_loop_error)
        await super().on_start()

    async def stop(self) -> None:
        """Stop within the grace that a supervisor gives."""
        limit_stop(asyncio.get_running_loop())
        await super().stop()
        await close_all(CLOSE_SECONDS, {name: close() for name, close in self.to_close.items()})

    def begin_spans(self, name: str, records: list[Record[Messages]]) -> dict[tuple[str, Position], Span]:
        """Begin a span for each sampled message of some records; returns them by recipient and position.

        Returns none with traces off.
        """
        return {} if self.traces is None else self.traces.begin_all(name, records, self.kafka_log.generation)

    async def first_unapplied(self, tp: TP) -> int:
        """Return the first offset that may not be applied, where the group has committed none; waits for engines."""
        look = self.applied_elsewhere.get(tp.topic)
        return 0 if look is None else await look(tp.partition)

    async def lost(self, tp: TP, lost: LostRange) -> None:
        """Tell whom it concerns, then note durably what was never applied; waits for engines that are away."""
        if tp.topic in self.on_loss:
            await self.on_loss[tp.topic](tp.partition, lost)
        first = max(lost.first, lost.unapplied)
        if first < lost.end:
            loss = Loss(self.conf.id, tp.topic, self.kafka_log.generation, tp.partition, first, lost.end)
            await retry_forever(
                "note a loss", LaneDropped, lambda: self.produce(names.LOSSES, 0, loss.key, loss.encode)
            )

    async def watch_topics(self) -> None:
        """End the worker when one of its topics was deleted and made anew, for as long as it runs."""
        assert self._topic_watch is not None
        await self._or_end(self._topic_watch.run())

    async def check_topics(self) -> None:
        """Raise ``TopicsError``, and end the worker, where one of its topics was deleted and made anew.

        Raises ``KafkaError`` and ``TimeoutError``, too.
        """
        if self._topic_watch is not None:
            await self._or_end(self._topic_watch.look())

    async def _or_end(self, work: Awaitable[None]) -> None:
        try:
            await work
        except errors.TopicsError as error:
            log.critical("stopping", error=repr(error))
            await self.crash(error)
            raise

    async def publish_statistics(self) -> None:
        """Publish the statistics of this worker every few seconds, for as long as it runs."""
        # The sleep of a service that is stopping returns at once.
        while not self.should_stop:
            await self.sleep(INTERVAL_S)
            if not self.should_stop:
                await self.statistics.publish_once(
                    lambda key, value: self.producer.send_and_wait(names.SERVICE_STATS, key, value, 0, None, None)
                )

    def newest_times(self, topic: str) -> NewestTimes:
        """Return what tells the append time of the newest record of each partition of a topic."""

        async def look(offsets: Mapping[int, int]) -> dict[int, int]:
            async with LogReader(self.settings) as reader:
                spans = [Offsets(topic, partition, offset, offset + 1) for partition, offset in offsets.items()]
                return {record.partition: record.at async for record in reader.read(spans)}

        return NewestTimes(lambda partition: self.consumer.read_to(TP(topic, partition)), look)

    @property
    def is_ready(self) -> bool:
        """True while this worker has partitions and is neither in a rebalance nor in recovery; shown by ``/readyz``."""
        is_working = bool(self.consumer.assignment()) and not self.rebalancing and not self.in_recovery
        return is_working and not self.hindrances()

    def _add_pages(self) -> None:
        # These are functions because Faust turns each one into a method of a view class.
        @self.page("/healthz")
        async def healthz(view: faust.web.View, request: aiohttp.web.Request) -> Any:
            return view.json({"alive": True})

        @self.page("/readyz")
        async def readyz(view: faust.web.View, request: aiohttp.web.Request) -> Any:
            ready = self.is_ready
            return view.json({"ready": ready}, status=200 if ready else 503)

        @self.page(PATH)
        async def metrics(view: faust.web.View, request: aiohttp.web.Request) -> Any:
            return await self.exposition.answer(request)


def _settings_or_exit() -> Settings:
    try:
        return settings()
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
