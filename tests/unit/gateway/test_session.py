"""A session: the table from a client's frame to its handler, and the ids in its log."""

from __future__ import annotations

import asyncio
import typing
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from chat_streams.model.codes import Close
from chat_streams.runtime.settings import Settings
from gateway import handshake
from gateway.protocol import ClientFrame, Hello
from gateway.session import HANDLERS, Session


def test_each_frame_of_a_client_but_the_hello_has_a_handler() -> None:
    assert set(HANDLERS) == set(typing.get_args(ClientFrame)) - {Hello}


def test_each_line_of_a_session_has_user_device_and_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the configuration there is now: a logger keeps that of its first use.
    monkeypatch.setattr(handshake, "log", structlog.get_logger())
    nothing: Any = None
    session = Session(nothing, nothing)
    session.user, session.device = "alice", "phone"
    with capture_logs() as lines:
        session.log.warning("history cannot be read", error="why")
    assert lines == [
        {
            "event": "history cannot be read",
            "log_level": "warning",
            "user": "alice",
            "device": "phone",
            "connection": session.id.hex(),
            "error": "why",
        }
    ]


class SilentSocket:
    """A client that says nothing."""

    def __init__(self) -> None:
        self.closed: list[tuple[int, bytes]] = []
        self.sent: list[bytes] = []

    async def receive(self) -> Any:
        await asyncio.Event().wait()

    async def send_frame(self, frame: bytes, _: Any) -> None:
        self.sent.append(frame)

    async def close(self, *, code: int, message: bytes) -> None:
        self.closed.append((code, message))


async def test_who_has_not_said_hello_holds_up_no_stop() -> None:
    services: Any = SimpleNamespace(settings=Settings(hello_timeout=3600))
    socket: Any = SilentSocket()
    session = Session(services, socket)
    running = asyncio.create_task(session.run())
    await asyncio.sleep(0)
    session.goodbye(1_000)
    await asyncio.wait_for(running, 1)
    # A goodbye before the welcome would be a frame that no client waits for.
    assert socket.closed == [(Close.GOING_AWAY, b"the gateway is stopping")]
    assert socket.sent == []
    assert not running.cancelled()


async def test_a_handler_that_is_cancelled_from_outside_stays_cancelled() -> None:
    services: Any = SimpleNamespace(settings=Settings())
    socket: Any = SilentSocket()
    running = asyncio.create_task(Session(services, socket).run())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
