"""The socket that clients connect to: it answers 503 while file descriptors are short, and says so in the log.

uvloop accepts a connection for which there is no descriptor, and closes it without a word. So a part of the limit is
kept back: connections that would use it are refused in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any, Final, cast

import structlog
from aiohttp import web
from prometheus_client import Counter

from chat_streams.model.addresses import join_address
from chat_streams.model.errors import SettingsError
from chat_streams.runtime.descriptors import reserve
from chat_streams.runtime.metrics import REGISTRY

log = structlog.get_logger()

LINGER_S: Final = 1.0
"""For the request of a refused connection: an answer before it is lost where the request meets a closed socket."""
LINGERING: Final = 32
"""Refused connections whose requests are waited for; further ones get their answer at once."""
LOG_S: Final = 10.0
_TEXT: Final = b"no room for another connection now\n"
ANSWER: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_TEXT), _TEXT)
)
REFUSED: Final = Counter(
    "connect_chat_gateway_connections_refused_total",
    "Connections answered 503 because the limit of file descriptors is near.",
    registry=REGISTRY,
)

Factory = Callable[[], asyncio.BaseProtocol]


class Doorkeeper:
    """A factory of protocols for a server: those of ``let_in`` while there are descriptors, else ones that refuse.

    ``limit`` is that of descriptors in this process.
    """

    def __init__(self, let_in: Factory, limit: int) -> None:
        self._let_in = let_in
        self._limit = limit
        self.most = limit - reserve(limit)
        """Descriptors that connections may have."""
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._lingering: set[Refusal] = set()
        self._logged_at = -LOG_S

    def __call__(self) -> asyncio.BaseProtocol:
        """Return the protocol of a connection that was accepted."""
        if not self.is_short():
            return self._let_in()
        REFUSED.inc()
        now = time.monotonic()
        if now - self._logged_at >= LOG_S:
            self._logged_at = now
            log.warning(
                "connections are refused for want of file descriptors: raise the limit (ulimit -n, LimitNOFILE) or"
                " lower CHAT_MAX_CONNECTIONS",
                limit=self._limit,
                kept_back=self._limit - self.most,
            )
        return Refusal(self._lingering)

    def is_short(self) -> bool:
        """Return whether the descriptors of connections are used up: a new one has the lowest free number."""
        try:
            lowest_free = os.dup(self._null)
        except OSError:
            return True
        os.close(lowest_free)
        return lowest_free >= self.most

    def close(self) -> None:
        """Release what this holds."""
        os.close(self._null)


class Refusal(asyncio.Protocol):
    """A connection that is answered 503, once its request has come, and closed."""

    def __init__(self, lingering: set[Refusal]) -> None:
        self._lingering = lingering
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the request, or answer at once if many others are waited for."""
        self._transport = cast(asyncio.Transport, transport)
        if len(self._lingering) >= LINGERING:
            self._answer()
            return
        self._lingering.add(self)
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        """Answer the request, of which the beginning will do."""
        self._answer()

    def connection_lost(self, error: Exception | None) -> None:
        """Forget the connection."""
        self._lingering.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(ANSWER)
            self._transport.close()


def run_app(
    app: web.Application,
    host: str,
    port: int,
    *,
    backlog: int,
    connections: int,
    limit: int,
    loop: asyncio.AbstractEventLoop,
    **options: Any,
) -> None:
    """Run an application until SIGTERM or SIGINT, as ``aiohttp.web.run_app`` does, behind a ``Doorkeeper``.

    Raises ``SettingsError`` when the address cannot be listened on.

    Args:
        app: The application.
        host: Name or address to listen on.
        port: Port to listen on.
        backlog: Connections that wait to be accepted.
        connections: How many it shall have at most; a warning says if descriptors are fewer.
        limit: File descriptors that this process may have.
        loop: The event loop to run it on; it is closed at the end.
        options: Those of ``aiohttp.web.AppRunner``.
    """
    asyncio.set_event_loop(loop)
    runner = web.AppRunner(app, **options)
    try:
        # A signal cancels it.
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(_serve(runner, host, port, backlog, connections, limit))
    finally:
        if left := asyncio.all_tasks(loop):
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _cancel_at_signal(task: asyncio.Task[Any], loop: asyncio.AbstractEventLoop) -> None:
    """Cancel a task at the first SIGINT or SIGTERM; a further one does not cut off what the first began."""
    signals = (signal.SIGINT, signal.SIGTERM)

    def cancel() -> None:
        for number in signals:
            loop.add_signal_handler(number, lambda: None)
        task.cancel()

    for number in signals:
        loop.add_signal_handler(number, cancel)


async def _serve(runner: web.AppRunner, host: str, port: int, backlog: int, connections: int, limit: int) -> None:
    loop, serving = asyncio.get_running_loop(), asyncio.current_task()
    assert serving is not None
    _cancel_at_signal(serving, loop)
    await runner.setup()
    try:
        assert runner.server is not None
        doorkeeper = Doorkeeper(runner.server, limit)
        try:
            server = await loop.create_server(doorkeeper, host, port, backlog=backlog)
        except OSError as error:
            where = join_address(host, port)
            raise SettingsError(
                f"cannot listen on {where} (CHAT_GATEWAY_HOST, CHAT_GATEWAY_PORT): {error.strerror}"
            ) from error
        # Not before: a start that fails says why in one line.
        if connections > doorkeeper.most:
            log.warning("CHAT_MAX_CONNECTIONS is more than file descriptors allow", most=doorkeeper.most, limit=limit)
        try:
            await asyncio.Event().wait()
        finally:
            server.close()
            doorkeeper.close()
    finally:
        await runner.cleanup()
