"""The gateway service: WebSocket connections on one side, topics on the other (``docs/architecture.md``)."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator
from typing import Final

import structlog
from aiohttp import web
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from chat_streams.kafka import topics
from chat_streams.kafka.client import client_options
from chat_streams.kafka.generations import Log
from chat_streams.kafka.names import INCOMING_MESSAGES, partition_of
from chat_streams.model import codes
from chat_streams.model.position import MAX_PLACE, ORIGIN, Position
from chat_streams.model.records import Delivery
from chat_streams.runtime.metrics import PATH, Metrics
from chat_streams.runtime.settings import Settings, SettingsError
from chat_streams.runtime.spans import Traces
from chat_streams.runtime.statistics import Statistics
from chat_streams.runtime.tokens import Authenticator
from gateway import protocol
from gateway.hub import Hub
from gateway.publisher import Publisher
from gateway.state.delivery_state import Limits
from gateway.state.rate_limit import RateLimiters, Rates
from gateway.websocket import WebSocket
from tables.chat_history import ChatHistory, HistoryUnavailable
from tables.inbox import Inbox
from tables.redis_cluster import Cluster, StoreUnavailable
from tables.slots import Slots

log = structlog.get_logger()

HISTORY: Final = "history"
"""The consumer group of the history service."""
HISTORY_LOOK_SECONDS: Final = 0.2
GOODBYE_SECONDS: Final = 3.0
DRAIN_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 5.0
COUNTED: Final = frozenset({*codes.Close, 1000, 1001, 1006, 1009})
"""Close codes that are counted each by itself."""


class Gateway:
    """All of one gateway process but its listening socket."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.limits = Limits(settings.window, settings.window_bytes, settings.read_messages, settings.read_bytes)
        self.authenticator = Authenticator(settings)
        self._cluster = Cluster(settings)
        self.inbox = Inbox(self._cluster, settings)
        self.history = ChatHistory(settings)
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
        self._origins = {name.strip() for name in (settings.origins or "").split(",")}
        self.statistics = Statistics("gateway")
        self.statistics.gauges = self._gauges
        self.traces = Traces.of(settings, "gateway")
        self.publisher = Publisher(settings, self.statistics, self.traces)
        self.hub = Hub(settings, self.publisher, Slots(self._cluster, settings))
        self._log: Log | None = None
        self._ends: AIOKafkaConsumer | None = None
        self._stopping = False
        self._sockets: set[WebSocket] = set()
        self._at = (0, "")

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """Start before the socket listens, stop after (``web.Application.cleanup_ctx``).

        Raises ``TopicsError`` and ``StoreRefused``.
        """
        self._log = await topics.check(self.settings, "gateway")
        await self._cluster.check()
        metrics = await self._serve_metrics()
        await self.publisher.start()
        self._ends = AIOKafkaConsumer(**client_options(self.settings), enable_auto_commit=False)
        await self._ends.start()
        running = asyncio.create_task(self.hub.run())
        running.add_done_callback(_stop_if_failed)
        publishing = asyncio.create_task(self.statistics.publish(self.publisher.publish_statistics))
        yield
        running.cancel()
        publishing.cancel()
        await asyncio.gather(running, publishing, return_exceptions=True)
        await self.publisher.stop()
        await self.hub.close()
        await self._ends.stop()
        await self.history.close()
        await self._cluster.close()
        await metrics.cleanup()

    async def _serve_metrics(self) -> web.AppRunner:
        """Metrics have a port of their own, which a load balancer does not know."""
        app = web.Application()
        app.router.add_get(PATH, Metrics(self.statistics).answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        host, port = self.settings.metrics_host, self.settings.metrics_port
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise SettingsError(f"cannot listen on {host}:{port} (CHAT_METRICS_PORT): {error.strerror}") from error
        return runner

    async def leave(self, app: web.Application) -> None:
        """Say goodbye to all clients, each with another delay until it reconnects, and let their last frames out."""
        self._stopping = True
        for socket in list(self._sockets):
            socket.goodbye(int(random.uniform(0, GOODBYE_SECONDS) * 1000))
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while self._sockets:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            log.warning("clients did not go", count=len(self._sockets))

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/connect``: the WebSocket."""
        if self._stopping or not self.hub.ready or len(self._sockets) >= self.settings.max_connections:
            return web.Response(status=503, text="no room for another connection now", headers={"Retry-After": "2"})
        if not self._is_welcome(request):
            text = f"pages of {request.headers['Origin'][:100]} may not connect: see CHAT_ORIGINS\n"
            return web.Response(status=403, text=text)
        ws = web.WebSocketResponse(
            protocols=(protocol.SUBPROTOCOL,),
            heartbeat=self.settings.heartbeat,
            max_msg_size=self.settings.max_frame,
            compress=False,
            timeout=CLOSE_SECONDS,
        )
        offered = request.headers.get("Sec-WebSocket-Protocol", "")
        if protocol.SUBPROTOCOL not in [name.strip() for name in offered.split(",")]:
            return web.Response(status=400, text=f"the WebSocket subprotocol {protocol.SUBPROTOCOL} is wanted\n")
        await ws.prepare(request)
        socket = WebSocket(self, ws)
        self._sockets.add(socket)
        try:
            await socket.run()
        finally:
            self._sockets.discard(socket)
            code = ws.close_code or 1006
            # A client may close with any of 4,000 codes.
            self.statistics.counters[f"closed_{code if code in COUNTED else 0}"] += 1
        return ws

    def _is_welcome(self, request: web.Request) -> bool:
        """Whether this is no browser, or its page is from where pages may come (RFC 6455, 10.2)."""
        origin = request.headers.get("Origin")
        allowed = self._origins
        return origin is None or "*" in allowed or origin in allowed or origin.partition("://")[2] == request.host

    async def healthz(self, request: web.Request) -> web.Response:
        """``GET /healthz``: the process lives."""
        return web.json_response({"alive": True})

    async def readyz(self, request: web.Request) -> web.Response:
        """``GET /readyz``: it can take connections; says what is missing if not."""
        missing = []
        if self._stopping:
            missing.append("stopping")
        if not self.hub.ready:
            missing.append("no slot")
        if not self.publisher.healthy:
            missing.append("kafka")
        try:
            await self._cluster.ping()
        except StoreUnavailable:
            missing.append("redis")
        return web.json_response({"ready": not missing, "missing": missing}, status=503 if missing else 200)

    async def log_end(self, partition: int) -> Position:
        """A position above all in a partition of the log and below all to come; raises ``StoreUnavailable``."""
        assert self._ends is not None
        assert self._log is not None
        tp = TopicPartition(INCOMING_MESSAGES, partition)
        try:
            async with asyncio.timeout(self.settings.engine_timeout):
                end = (await self._ends.end_offsets([tp]))[tp]
        except (KafkaError, TimeoutError) as error:
            raise StoreUnavailable(f"the log's end is not known: {error!r}") from error
        # Not (end, 0): that is the address of the next message.
        return Position.of(self._log.generation, end - 1, MAX_PLACE) if end else ORIGIN

    async def wait_for_history(self, user: str, until: Position) -> None:
        """Return once the chat database has all up to ``until`` of a user's inbox that is in the log by now.

        Raises ``HistoryUnavailable`` when it has not after ``engine_timeout``.
        """
        assert self._log is not None
        if until.generation < self._log.generation:
            return  # All of an earlier log was written before this one began.
        tp = TopicPartition(INCOMING_MESSAGES, partition_of(user, self.settings.partitions))
        admin = AIOKafkaAdminClient(**client_options(self.settings))
        try:
            last = min(until, await self.log_end(tp.partition))
            async with asyncio.timeout(self.settings.engine_timeout):
                await admin.start()
                while (await admin.list_consumer_group_offsets(HISTORY, partitions=[tp]))[tp].offset <= last.offset:
                    await asyncio.sleep(HISTORY_LOOK_SECONDS)
        except (StoreUnavailable, KafkaError, TimeoutError, OSError) as error:
            raise HistoryUnavailable(f"the history of {user} is not written up to {until} yet") from error
        finally:
            await admin.close()

    def forwarded(self, delivery: Delivery, since: int) -> int | None:
        """Count what a client was sent that is connected since a time (ms since the epoch).

        Returns when the first of the messages was accepted, if that was since then: all count with its delay.
        """
        self.statistics.counters["delivered"] += delivery.count
        if not delivery.count or (at := protocol.at_of(delivery.messages)) is None or at < since:
            return None
        self.statistics.took("delivery", max(0.0, time.time() - at / 1000), delivery.count)
        return at

    def at_text(self, at: int) -> str:
        """The text of a time; the same one is asked for many times in a row."""
        if self._at[0] != at:
            self._at = (at, protocol.at_text(at))
        return self._at[1]

    def _gauges(self) -> dict[str, float]:
        lease = self.hub.lease
        found = {"connections": float(len(self._sockets)), "produce_buffer_bytes": float(self.publisher.held)}
        found["lease"] = float(lease is not None)
        return found if lease is None else found | {"slot": float(lease.slot), "epoch": float(lease.epoch)}


def _stop_if_failed(running: asyncio.Task[None]) -> None:
    """Stop the process: a gateway that no longer reads its slot would keep its clients waiting for nothing."""
    if not running.cancelled() and (error := running.exception()) is not None:
        log.critical("the gateway stops", error=repr(error))
        signal.raise_signal(signal.SIGTERM)


def create_app(settings: Settings) -> web.Application:
    """The aiohttp application; raises ``SettingsError`` when there is no key for tokens."""
    gateway = Gateway(settings)
    app = web.Application()
    app.cleanup_ctx.append(gateway.run)
    app.on_shutdown.append(gateway.leave)
    app.router.add_get(protocol.PATH, gateway.connect)
    app.router.add_get("/healthz", gateway.healthz)
    app.router.add_get("/readyz", gateway.readyz)
    return app
