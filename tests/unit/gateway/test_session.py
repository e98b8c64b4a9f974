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
import pytest_asyncio
import structlog
from aiohttp import WSMsgType
from structlog.testing import capture_logs

from chat_streams.model.codes import Close
from chat_streams.model.position import ORIGIN, Position
from chat_streams.model.records import FIRST_REQUEST, OUTGOING, Delivery
from chat_streams.runtime.settings import Settings
from gateway import handshake, hub
from gateway import session as module
from gateway.announcer import Announced
from gateway.handshake import Greeting
from gateway.protocol import ClientFrame, CloseConnection, Hello
from gateway.publisher import Sender
from gateway.session import HANDLERS, Session
from gateway.slot_consumer import SlotConsumer
from gateway.state import delivery_state
from gateway.state.delivery_state import Limits, PageRequest
from gateway.state.fetch_budget import FetchBudget
from gateway.state.hello_queue import HelloQueue
from gateway.state.rate_limit import RateLimiter, Rates
from gateway.state.standstill import Standstill
from gateway.writer import Reader

PAGE: Final = 100
RATES: Final = Rates(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)


def test_each_frame_of_a_client_but_the_hello_has_a_handler() -> None:
    assert set(HANDLERS) == set(typing.get_args(ClientFrame)) - {Hello}


@pytest.fixture(autouse=True)
def configured_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log by the configuration there is now: a logger keeps that of its first use."""
    monkeypatch.setattr(handshake, "log", structlog.get_logger())


def test_each_line_of_a_session_has_user_device_and_connection() -> None:
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


async def test_an_end_before_anything_is_read_ends_the_connection() -> None:
    services: Any = SimpleNamespace(settings=Settings(hello_timeout=3600), hellos=HelloQueue(1))
    socket: Any = SilentSocket()
    session = Session(services, socket)
    session.goodbye(1_000)
    await asyncio.wait_for(session.run(), 1)
    assert [code for code, _ in socket.closed] == [Close.GOING_AWAY]


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


async def test_a_connection_that_cannot_be_taken_in_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Hub):
        def add(self, session: Session) -> None:
            super().add(session)
            raise LookupError

    hub = Broken(2 * PAGE)
    async with sessions(monkeypatch, hub, 1) as (session,), asyncio.timeout(10):
        socket: Any = session._ws
        while not socket.closed:
            await asyncio.sleep(0)
        assert [code for code, _ in socket.closed] == [Close.FAILED]
        assert (hub.budget.free, hub.sessions) == (2 * PAGE, {})


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


CALLED_BY_OTHERS = sorted(
    {
        name
        for protocol in (Announced, hub.Connection, Reader, Sender)
        for name, member in vars(protocol).items()
        if callable(member) and not name.startswith("_")
    }
    # What ends a session needs nothing that could be broken.
    - {"end", "fail", "on_connection_lost"}
)
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "on_confirmed": ([SimpleNamespace(message=None)], 1),
    "on_too_large": ([SimpleNamespace(message=None)],),
    "expect_sampled": ("", ORIGIN),
    "on_delivery": (None,),
    "on_missed": (None,),
    "on_registered": (ORIGIN,),
    "on_inbox_advanced": (ORIGIN,),
}


@pytest.mark.parametrize("name", [*CALLED_BY_OTHERS, "progress"])
async def test_a_fault_in_what_others_call_ends_the_session_and_reaches_nobody_else(name: str) -> None:
    nothing: Any = None
    # Without a state, services or a socket, all of it is a fault.
    session = Session(nothing, nothing)
    session.user, session.device = "alice", "phone"
    session._hold = asyncio.Event()
    with capture_logs() as lines:
        result = getattr(session, name)(*ARGUMENTS.get(name, ()))
    assert not result
    assert session._end is not None
    assert session._end.code is Close.FAILED
    assert [(line["log_level"], line["connection"], line["user"]) for line in lines] == [
        ("error", session.id.hex(), "alice")
    ]
    assert "Error(" in lines[0]["error"]


class Socket:
    """A WebSocket that brings the frames of a client, and keeps what it is given."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: list[bytes] = []
        self.closed_with: int | None = None

    async def receive(self) -> Any:
        return await self.incoming.get()

    async def send_frame(self, frame: bytes, _: Any) -> None:
        self.sent.append(frame)

    async def close(self, code: int, message: bytes) -> None:
        self.closed_with = code


class Gateway:
    """Two sessions beside each other in a hub, as far as a session needs services."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def shake_hands(_: Any, socket: Any, __: bytes) -> Greeting:
            if self.fault_at_hello is not None:
                raise self.fault_at_hello
            limiter: Any = None
            return Greeting(f"user{self.sockets.index(socket)}", "phone", 1, ORIGIN, 4e9, limiter)

        self.fault_at_hello: Exception | None = None
        self.sockets = [Socket(), Socket()]
        settings = Settings(partitions=1)
        publisher: Any = SimpleNamespace(has_room=True, flush=lambda _: None, on_logged={}, log_now=None)
        self.hub = hub.Hub(settings, publisher, typing.cast(Any, None))
        services: Any = SimpleNamespace(
            settings=settings,
            limits=Limits(settings.window, settings.window_bytes, settings.read_messages, settings.read_bytes),
            hub=self.hub,
            publisher=publisher,
            traces=None,
        )
        monkeypatch.setattr(module, "shake_hands", shake_hands)
        monkeypatch.setattr(module, "welcome", lambda *_: b"welcome")
        self.sessions = [Session(services, socket) for socket in typing.cast(list[Any], self.sockets)]
        self.running = [asyncio.create_task(session.run()) for session in self.sessions]

    def receive(self, *items: Any) -> None:
        """Take a record of the gateway's slot."""
        consumer = SlotConsumer(Settings(), self.hub._receive)
        consumer._take(SimpleNamespace(value=OUTGOING.encode(items), headers=(), topic="t", partition=0, offset=0))

    def deliver(self, number: int) -> Delivery:
        session = self.sessions[number]
        position = Position.of(1, 5, 0)
        return Delivery(session.user, session.id, 1, 0, ORIGIN, position, position, 1, b'{"id":"1"}')


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest_asyncio.fixture
async def gateway(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    made = Gateway(monkeypatch)
    await turns()
    yield made
    for task in made.running:
        task.cancel()
    await asyncio.wait(made.running)


async def test_an_exception_in_one_delivery_ends_its_connection_and_nothing_else(gateway: Gateway) -> None:
    broken, _ = gateway.sessions

    def fail(*_: Any) -> Any:
        raise ValueError("broken")

    broken.state = typing.cast(Any, SimpleNamespace(forwarded=ORIGIN, on_delivery=fail, unacknowledged_bytes=0))
    with capture_logs() as lines:
        gateway.receive(gateway.deliver(0), gateway.deliver(1))
        await turns()
    assert gateway.running[0].done()
    assert not gateway.running[1].done()
    assert gateway.sockets[0].closed_with == Close.FAILED
    assert any(b'"messages"' in frame for frame in gateway.sockets[1].sent)
    assert [(line["connection"], line["error"]) for line in lines] == [(broken.id.hex(), "ValueError('broken')")]


async def test_a_fault_in_the_hello_is_logged_with_the_connection_and_closes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Gateway(monkeypatch)
    made.fault_at_hello = KeyError("kid")
    with capture_logs() as lines:
        await asyncio.gather(*made.running)
    assert [socket.closed_with for socket in made.sockets] == [Close.FAILED, Close.FAILED]
    assert [line["connection"] for line in lines] == [session.id.hex() for session in made.sessions]


async def test_a_fault_in_a_frame_ends_its_connection(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its services lack what sending needs.
    frame = SimpleNamespace(type=WSMsgType.TEXT, data='{"type":"send","id":"1","to":"bob","body":1}')
    with capture_logs() as lines:
        gateway.sockets[0].incoming.put_nowait(frame)
        await turns()
    assert gateway.sockets[0].closed_with == Close.FAILED
    assert not gateway.running[1].done()
    assert [line["user"] for line in lines] == ["user0"]


async def test_a_fault_in_an_answer_ends_its_connection(gateway: Gateway) -> None:
    async def fail() -> None:
        raise ValueError("broken")

    with capture_logs() as lines:
        gateway.sessions[0].spawn(fail())
        await turns()
    assert gateway.sockets[0].closed_with == Close.FAILED
    assert not gateway.running[1].done()
    assert len(lines) == 1


async def test_what_was_sent_before_a_standstill_is_not_handled_after_it() -> None:
    """Its client has sent it elsewhere by now, and it may come behind the retry window."""
    published: list[Any] = []
    standstill = Standstill(10.0, 0.0)
    services: Any = SimpleNamespace(
        settings=Settings(), standstill=standstill, publisher=SimpleNamespace(send=published.append), traces=None
    )
    socket: Any = SilentSocket()
    session = Session(services, socket)
    session.rate_limiter = SimpleNamespace(send=lambda size, now: 0.0)  # type: ignore[assignment]
    session.state = SimpleNamespace(unacknowledged_bytes=0)  # type: ignore[assignment]
    frame = '{"type":"send","id":"1","to":"bob","body":1}'
    now = time.monotonic()
    session._since = now - 3_600.0
    standstill.beat(now - 3_000.0)
    with pytest.raises(CloseConnection) as end:
        session._handle(frame)
    assert end.value.code == Close.GOING_AWAY
    standstill.beat(now)
    with pytest.raises(CloseConnection):
        session._handle(frame)
    assert published == []
    # One that began after it.
    session._since = time.monotonic()
    session._handle(frame)
    assert len(published) == 1
