"""The gateway service: WebSocket connections on one side, topics on the other (``docs/architecture.md``)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Final

import structlog
from aiohttp import web
from prometheus_client import Counter, Gauge

from chat_streams.model import codes
from chat_streams.model.codes import Close
from chat_streams.model.origins import AllowedOrigins
from chat_streams.runtime.metrics import REGISTRY
from chat_streams.runtime.process import limit_stop
from chat_streams.runtime.settings import Settings
from gateway import protocol
from gateway.protocol import CloseConnection
from gateway.services import Services
from gateway.session import Session
from gateway.writer import CLOSE_SECONDS

log = structlog.get_logger()

GOODBYE_SECONDS: Final = 3.0
MESSAGES_SECONDS: Final = 3.0
"""For Kafka, at a stop, to confirm the messages that were taken; the others are refused."""
DRAIN_SECONDS: Final = 3.0
"""For the clients to go, at a stop; one that has not read all by then gets the rest on another gateway."""
COUNTED: Final = frozenset({*codes.Close, *codes.STANDARD_CLOSES})
"""Close codes that are counted each by itself."""

CONNECTIONS: Final = Gauge("connect_chat_gateway_connections", "WebSockets that are open.", registry=REGISTRY)
CLOSED: Final = Counter(
    "connect_chat_gateway_connections_closed_total",
    "By close code; 0 for codes of the client's own.",
    ["code"],
    registry=REGISTRY,
)
CLOSED.labels("1000")


class Endpoints:
    """The HTTP endpoints of a gateway, and the sessions that came in by them."""

    def __init__(self, services: Services) -> None:
        self._services = services
        origins = services.settings.origins
        self._origins = AllowedOrigins([]) if origins is None else AllowedOrigins.parse(origins)
        self._sessions: set[Session] = set()
        self._stopping = False
        CONNECTIONS.set_function(lambda: len(self._sessions))

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """Start before the socket listens, stop after (``web.Application.cleanup_ctx``).

        Raises ``TopicsError`` where the topics are not as they have to be, at the start or later.
        """
        try:
            await self._services.start()
            yield
        finally:
            # Also what had been started when the rest failed.
            await self._services.stop()
        if self._services.failure is not None:
            raise self._services.failure

    async def leave(self, app: web.Application) -> None:
        """Say goodbye to all clients, each with another delay until it reconnects, and let their last frames out.

        Before that, what they have sent is confirmed or refused: on another gateway they would have to send it again
        without knowing.
        """
        self._stopping = True
        limit_stop(asyncio.get_running_loop())
        await self._services.publisher.finish_messages(MESSAGES_SECONDS)
        for session in list(self._sessions):
            session.goodbye(int(random.uniform(0, GOODBYE_SECONDS) * 1000))
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while self._sessions:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            log.warning("clients did not go", count=len(self._sessions))

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/connect``: the WebSocket."""
        settings = self._services.settings
        if self._stopping or not self._services.hub.ready or len(self._sessions) >= settings.max_connections:
            return web.Response(status=503, text="no room for another connection now", headers={"Retry-After": "2"})
        ws = web.WebSocketResponse(
            protocols=(protocol.SUBPROTOCOL,),
            heartbeat=settings.heartbeat,
            # aiohttp refuses what has as many bytes as this.
            max_msg_size=settings.max_frame + 1,
            compress=False,
            timeout=CLOSE_SECONDS,
        )
        offered = request.headers.get("Sec-WebSocket-Protocol", "")
        if protocol.SUBPROTOCOL not in [name.strip() for name in offered.split(",")]:
            return web.Response(status=400, text=f"the WebSocket subprotocol {protocol.SUBPROTOCOL} is wanted\n")
        session = Session(self._services, ws)
        # From here on it counts: those that are being opened must not pass the limit together.
        self._sessions.add(session)
        try:
            await ws.prepare(request)
            await self._serve(session, ws, request)
        finally:
            self._sessions.discard(session)
        return ws

    async def _serve(self, session: Session, ws: web.WebSocketResponse, request: web.Request) -> None:
        origin = request.headers.get("Origin")
        try:
            # RFC 6455, 10.2. A page sees no HTTP status: refused by a 403, it would try again for ever.
            if self._origins.allows(origin, request.host):
                await session.run()
            else:
                text = f"origin_refused: pages of {origin!a:.60} may not connect"
                await session.refuse(CloseConnection(Close.ORIGIN_REFUSED, text))
        finally:
            code = ws.close_code or 1006
            # A client may close with any of 4,000 codes.
            CLOSED.labels(str(int(code)) if code in COUNTED else "0").inc()

    async def healthz(self, request: web.Request) -> web.Response:
        """``GET /healthz``: the process lives."""
        return web.json_response({"alive": True})

    async def readyz(self, request: web.Request) -> web.Response:
        """``GET /readyz``: it can take connections; says what is missing if not."""
        missing = (["stopping"] if self._stopping else []) + await self._services.missing()
        return web.json_response({"ready": not missing, "missing": missing}, status=503 if missing else 200)


async def close_afterwards(_: web.Request, response: web.StreamResponse) -> None:
    """Keep no connection for a further request: a balancer would use it at the moment when its time is over."""
    if not isinstance(response, web.WebSocketResponse):
        response.force_close()
        # aiohttp has made the headers by now.
        response.headers["Connection"] = "close"


def create_app(settings: Settings) -> web.Application:
    """The aiohttp application; raises ``SettingsError`` when there is no key for tokens."""
    endpoints = Endpoints(Services(settings))
    app = web.Application()
    app.on_response_prepare.append(close_afterwards)
    app.cleanup_ctx.append(endpoints.run)
    app.on_shutdown.append(endpoints.leave)
    app.router.add_get(protocol.PATH, endpoints.connect)
    app.router.add_get("/healthz", endpoints.healthz)
    app.router.add_get("/readyz", endpoints.readyz)
    return app
