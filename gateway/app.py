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
from chat_streams.runtime.metrics import REGISTRY
from chat_streams.runtime.settings import Settings
from gateway import protocol
from gateway.services import Services
from gateway.session import Session
from gateway.writer import CLOSE_SECONDS

log = structlog.get_logger()

GOODBYE_SECONDS: Final = 3.0
DRAIN_SECONDS: Final = 10.0
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
        self._origins = {name.strip() for name in (services.settings.origins or "").split(",")}
        self._sessions: set[Session] = set()
        self._stopping = False
        CONNECTIONS.set_function(lambda: len(self._sessions))

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """Start before the socket listens, stop after (``web.Application.cleanup_ctx``).

        Raises ``TopicsError`` where the topics are not as they have to be, at the start or later.
        """
        await self._services.start()
        yield
        await self._services.stop()
        if self._services.failure is not None:
            raise self._services.failure

    async def leave(self, app: web.Application) -> None:
        """Say goodbye to all clients, each with another delay until it reconnects, and let their last frames out."""
        self._stopping = True
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
        if not self._is_welcome(request):
            text = f"pages of {request.headers['Origin'][:100]} may not connect: see CHAT_ORIGINS\n"
            return web.Response(status=403, text=text)
        ws = web.WebSocketResponse(
            protocols=(protocol.SUBPROTOCOL,),
            heartbeat=settings.heartbeat,
            max_msg_size=settings.max_frame,
            compress=False,
            timeout=CLOSE_SECONDS,
        )
        offered = request.headers.get("Sec-WebSocket-Protocol", "")
        if protocol.SUBPROTOCOL not in [name.strip() for name in offered.split(",")]:
            return web.Response(status=400, text=f"the WebSocket subprotocol {protocol.SUBPROTOCOL} is wanted\n")
        await ws.prepare(request)
        session = Session(self._services, ws)
        self._sessions.add(session)
        try:
            await session.run()
        finally:
            self._sessions.discard(session)
            code = ws.close_code or 1006
            # A client may close with any of 4,000 codes.
            CLOSED.labels(str(int(code)) if code in COUNTED else "0").inc()
        return ws

    def _is_welcome(self, request: web.Request) -> bool:
        """Return whether this is no browser, or its page is from where pages may come (RFC 6455, 10.2)."""
        origin = request.headers.get("Origin")
        allowed = self._origins
        return origin is None or "*" in allowed or origin in allowed or origin.partition("://")[2] == request.host

    async def healthz(self, request: web.Request) -> web.Response:
        """``GET /healthz``: the process lives."""
        return web.json_response({"alive": True})

    async def readyz(self, request: web.Request) -> web.Response:
        """``GET /readyz``: it can take connections; says what is missing if not."""
        missing = (["stopping"] if self._stopping else []) + await self._services.missing()
        return web.json_response({"ready": not missing, "missing": missing}, status=503 if missing else 200)


def create_app(settings: Settings) -> web.Application:
    """The aiohttp application; raises ``SettingsError`` when there is no key for tokens."""
    endpoints = Endpoints(Services(settings))
    app = web.Application()
    app.cleanup_ctx.append(endpoints.run)
    app.on_shutdown.append(endpoints.leave)
    app.router.add_get(protocol.PATH, endpoints.connect)
    app.router.add_get("/healthz", endpoints.healthz)
    app.router.add_get("/readyz", endpoints.readyz)
    return app
