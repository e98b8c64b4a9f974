"""A session: the table from a client's frame to its handler, the ids in its log, and its share of pages under way."""

from __future__ import annotations

import asyncio
import contextlib
import time
import typing
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, Final

import pytest
import structlog
from structlog.testing import capture_logs

from chat_streams.model.codes import Close
from chat_streams.model.position import ORIGIN, Position
from chat_streams.model.records import FIRST_REQUEST, Delivery
from chat_streams.runtime.settings import Settings
from gateway import handshake
from gateway import session as module
from gateway.handshake import Greeting
from gateway.protocol import ClientFrame, Hello
from gateway.session import HANDLERS, Session
from gateway.state import delivery_state
from gateway.state.delivery_state import Limits, PageRequest
from gateway.state.fetch_budget import FetchBudget
from gateway.state.hello_queue import HelloQueue
from gateway.state.rate_limit import RateLimiter, Rates

PAGE: Final = 100
RATES: Final = Rates(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)


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
    services: Any = SimpleNamespace(settings=Settings(hello_timeout=3600), hellos=HelloQueue(1))
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
    services: Any = SimpleNamespace(settings=Settings(), hellos=HelloQueue(1))
    socket: Any = SilentSocket()
    running = asyncio.create_task(Session(services, socket).run())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


class Hub:
    """The hub's part that is about pages, and the connections that asked for one."""

    def __init__(self, total: int) -> None:
        self.budget = FetchBudget(total, PAGE)
        self.sessions: dict[bytes, Session] = {}
        self.requests: list[Session] = []

    def add(self, session: Session) -> None:
        self.sessions[session.id] = session
        if session.state.outstanding:
            self.requests.append(session)

    def remove(self, session: Session) -> None:
        del self.sessions[session.id]
        self.budget.forget(session.id)

    def announce(self, session: Session) -> None:
        pass

    def reserve(self, session: Session, size: int) -> bool:
        return self.budget.reserve(session.id, size)

    def release(self, size: int) -> None:
        self.budget.release(size)
        while (waiting := self.budget.next_in_line()) is not None:
            self.sessions[waiting].on_fetch_budget()

    def request_page(self, session: Session, request: PageRequest) -> None:
        self.requests.append(session)


@contextlib.asynccontextmanager
async def sessions(monkeypatch: pytest.MonkeyPatch, hub: Hub, count: int) -> AsyncIterator[list[Session]]:
    """Run sessions whose hello was good."""

    async def greeted(*_: Any) -> Greeting:
        return Greeting("bob", "phone", 1, ORIGIN, time.time() + 3_600, RateLimiter(RATES, 0.0))

    monkeypatch.setattr(module, "shake_hands", greeted)
    services: Any = SimpleNamespace(
        hub=hub,
        settings=Settings(),
        limits=Limits(10, 1_000, 10, PAGE),
        publisher=SimpleNamespace(has_room=True, log_now=None),
        traces=None,
    )
    found = [Session(services, SilentSocket()) for _ in range(count)]  # type: ignore[arg-type]
    tasks = [asyncio.create_task(session.run()) for session in found]
    await asyncio.sleep(0)
    try:
        yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def page(session: Session, request: int) -> Delivery:
    top = Position.of(1, 1, 0)
    return Delivery("bob", session.id, 1, request, ORIGIN, top, top, 1, b"{}")


async def test_first_pages_keep_within_the_budget_and_the_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(2 * PAGE)
    async with sessions(monkeypatch, hub, 4) as (first, second, third, fourth):
        assert hub.requests == [first, second]
        for session in (third, fourth):
            session.on_registered(Position.of(1, 1, 0))
        assert hub.requests == [first, second]
        first.on_delivery(page(first, FIRST_REQUEST))
        assert hub.requests == [first, second, third]
        third.on_delivery(page(third, third.state.request))
        assert hub.requests == [first, second, third, fourth]
        assert third.state.forwarded == Position.of(1, 1, 0)
    assert (hub.budget.free, hub.budget.waiting) == (2 * PAGE, 0)


async def test_a_page_that_does_not_come_takes_no_budget_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(module, "_now", lambda: now)
    hub = Hub(PAGE)
    async with sessions(monkeypatch, hub, 1) as (session,):
        session.on_registered(ORIGIN)
        assert (hub.budget.free, hub.requests) == (0, [session])
        now = delivery_state.FIRST_TIMEOUT
        session.progress()
        assert (hub.budget.free, hub.requests) == (PAGE, [session])
