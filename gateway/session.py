"""One WebSocket connection from its hello to its end: reads frames, pauses a client that is too fast, forwards, closes.

The handlers answer the frames; ``state/delivery_state.py`` decides what is forwarded.
"""

from __future__ import annotations

import asyncio
import functools
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, TypeVar

from aiohttp import WSMsgType, web
from prometheus_client import Counter, Histogram

from chat_streams.model.codes import Close, ErrorCode
from chat_streams.model.position import Position
from chat_streams.model.records import Delivery, Missed
from chat_streams.runtime.metrics import BUCKETS, REGISTRY, WeightedHistogram
from chat_streams.runtime.spans import Expected
from chat_streams.runtime.tasks import spawn
from gateway import protocol
from gateway.handlers import acknowledge, history, ping, send
from gateway.handlers.context import SessionContext
from gateway.handshake import Greeting, connection_log, shake_hands, welcome
from gateway.protocol import Ack, CloseConnection, Hello, History, InvalidFrame, Ping, Send
from gateway.publisher import Accepted
from gateway.services import Services
from gateway.state.delivery_state import DeliveryState, PageRequest, RegistrationDue
from gateway.state.order_barrier import OrderBarrier
from gateway.state.rate_limit import RateLimiter
from gateway.writer import Writer

HANDLERS: Final[dict[type[Any], Callable[[SessionContext, Any], None]]] = {
    Send: send.handle,
    Ack: acknowledge.handle,
    History: history.handle,
    Ping: ping.handle,
}
"""The handler of each type of frame; a hello comes first and only once."""

ACKNOWLEDGED: Final = Counter(
    "connect_chat_gateway_messages_acknowledged_total", "Acknowledged by a device.", registry=REGISTRY
)
STALLS: Final = Counter(
    "connect_chat_gateway_window_stalls_total",
    "Times a client's window was full with more to come.",
    registry=REGISTRY,
)
DELIVERY_SECONDS: Final = WeightedHistogram(
    "connect_chat_gateway_delivery_seconds", "Messages to users who are connected: from accepted to forwarded."
)
ACKNOWLEDGEMENT_SECONDS: Final = WeightedHistogram(
    "connect_chat_gateway_acknowledgement_seconds",
    "The same messages: from accepted to acknowledged by the device.",
)
CATCH_UP_SECONDS: Final = Histogram(
    "connect_chat_gateway_catch_up_seconds",
    "From welcome until all that waited in the inbox is forwarded.",
    buckets=BUCKETS,
    registry=REGISTRY,
)

P = ParamSpec("P")
R = TypeVar("R")

# The loop's clock; asking for the running loop costs a system call before Python 3.12.
_now: Final = time.monotonic


class _Live(NamedTuple):
    """Messages forwarded soon after they were accepted, ``at`` (ms since the epoch, by the log), not acknowledged."""

    until: Position
    messages: int
    at: int


def _or_fails(
    otherwise: R,
) -> Callable[[Callable[Concatenate[Session, P], R]], Callable[Concatenate[Session, P], R]]:
    """Decorate a method that is called for others, or by a timer: an exception in it ends this session alone.

    The method returns ``otherwise`` then. Without this the exception would be the caller's, who has more sessions.
    """

    def decorate(method: Callable[Concatenate[Session, P], R]) -> Callable[Concatenate[Session, P], R]:
        @functools.wraps(method)
        def guarded(self: Session, /, *args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return method(self, *args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this session
                self.fail(error)
                return otherwise

        return guarded

    return decorate


class Session:
    """A connection from its hello to its end; a fault in anything that is done for it ends it, and nothing else.

    Most connections are idle: what only a busy one needs is made when it is needed.
    """

    __slots__ = (
        *("_end", "_expected", "_hold", "_live", "_reader", "_reserved", "_reserved_until", "_since", "_stalls"),
        *("_stopped", "_tasks"),
        *("_timer", "_waits", "_ws", "announce_timeout", "barrier", "device", "history_requests", "id", "number"),
        *("rate_limiter", "services", "state", "unconfirmed", "user", "writer"),
    )

    def __init__(self, services: Services, ws: web.WebSocketResponse) -> None:
        self.id = secrets.token_bytes(16)
        self.user = ""
        self.device = ""
        self.number = 0
        self.services = services
        self.state: DeliveryState
        self.rate_limiter: RateLimiter
        self.writer = Writer(ws, self)
        self.barrier: OrderBarrier | None = None
        self.unconfirmed = 0
        self.history_requests = 0
        self.announce_timeout = 0.0
        self._ws = ws
        self._reader: asyncio.Task[None] | None = None
        # Set when reading may go on; None while nothing holds it up.
        self._hold: asyncio.Event | None = None
        self._end: CloseConnection | None = None
        self._stopped = False
        self._reserved = 0
        self._reserved_until = 0.0
        self._since = 0.0
        self._live: deque[_Live] | None = None
        self._expected: Expected | None = None
        self._waits = True
        self._stalls = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] | None = None

    async def run(self) -> None:
        """Serve the connection until it ends."""
        try:
            await self._run()
        except Exception as error:  # noqa: BLE001 - likewise
            self.fail(error)
            await self._close(CloseConnection(Close.FAILED, Close.FAILED.meaning))

    async def _run(self) -> None:
        try:
            greeting = await self._shake_hands()
        except InvalidFrame as invalid:
            self.writer.put(invalid.frame)
            await self.refuse(CloseConnection(Close.BAD_SEQUENCE, "the first frame must be a hello"))
            return
        except CloseConnection as end:
            await self.refuse(end)
            return
        self._begin(greeting)
        expiry = asyncio.get_running_loop().call_later(
            max(0.0, greeting.expires - time.time()), self.end, Close.TOKEN_EXPIRED, Close.TOKEN_EXPIRED.meaning
        )
        # Not kept while the connection lives.
        del greeting
        try:
            self.services.hub.add(self)
            self.progress()
            await self._read_until_end()
        finally:
            expiry.cancel()
            if self._timer is not None:
                self._timer.cancel()
            self.services.hub.remove(self)
            self._release_reserved()
            for task in self._tasks or ():
                task.cancel()
            await self.writer.finish()
        if self._end is not None:
            await self._close(self._end)

    async def _shake_hands(self) -> Greeting:
        """Shake hands, unless ``end`` comes first: who says nothing, or waits for a key, must not hold up a stop."""
        if self._end is not None:
            raise self._end
        self._reader = asyncio.current_task()
        try:
            return await shake_hands(self.services, self._ws, self.id)
        except asyncio.CancelledError:
            if not self._was_stopped():
                raise
            raise self._end or CloseConnection(Close.GOING_AWAY, "the connection is lost") from None
        finally:
            self._reader = None

    def _begin(self, greeting: Greeting) -> None:
        self.user, self.device, self.number = greeting.user, greeting.device, greeting.number
        self.rate_limiter = greeting.rate_limiter
        now = self._since = _now()
        self.state = DeliveryState(greeting.cursor, self.services.limits, now, _jitter)
        self.announce_timeout = (self.state.next_due() or 0) - now
        self.writer.put(welcome(self.services, greeting, self.id))
        limits = self.services.limits
        # The first page, which its announcement asks for. Without room it is asked for later, as any other.
        if not self._reserve(min(limits.page_bytes, limits.window_bytes), now + self.announce_timeout):
            self.state.postpone_request()

    # What the hub brings

    @_or_fails(0)
    def on_delivery(self, delivery: Delivery) -> int:
        """Forward a part of the inbox, if it is the next one; returns how many messages that are."""
        before = self.state.forwarded
        frames = self.state.on_delivery(delivery, _now())
        forwarded = delivery.count if self.state.forwarded > before else 0
        if forwarded:
            self._observe_delivery(delivery)
        self._advance(frames)
        return forwarded

    @_or_fails(None)
    def on_missed(self, missed: Missed) -> None:
        """Tell the client that a part of the inbox left it without acknowledgement."""
        self._advance(self.state.on_missed(missed, _now()))

    @_or_fails(None)
    def on_registered(self, top: Position) -> None:
        """Note that the registry knows this connection; the inbox's top was ``top`` after that."""
        self._advance(self.state.on_registered(top))

    @_or_fails(None)
    def on_unregistered(self) -> None:
        """Note that the registry must be told of this connection again."""
        self.state.on_unregistered(_now())
        self.progress()

    @_or_fails(None)
    def on_inbox_advanced(self, until: Position) -> None:
        """Note that there is something in the inbox up to ``until``."""
        self.state.on_inbox_advanced(until)
        self._advance([])

    @_or_fails(None)
    def on_fetch_budget(self) -> None:
        """Go on requesting pages: there is room for one."""
        self.state.resume_requests(_now())
        self.progress()

    @_or_fails(None)
    def expect_sampled(self, parent: str, until: Position) -> None:
        """Note that the delivery which ends at ``until``, and comes now, holds a sampled message."""
        if self.services.traces is not None:
            self._expected = self._expected or Expected(self.services.traces, self.device)
            self._expected.add(parent, until)

    def end(self, code: Close, reason: str) -> None:
        """Close the connection, after what is to be written."""
        if self._end is None:
            self._end = CloseConnection(code, reason)
            self._stop_reading()

    def fail(self, error: BaseException) -> None:
        """Close the connection because of a fault of this program, which goes into the log."""
        self.log.error("a connection ends by a fault of the gateway", error=repr(error), exc_info=error)
        self.end(Close.FAILED, Close.FAILED.meaning)

    def goodbye(self, reconnect_in_ms: int) -> None:
        """Tell the client that the gateway stops, and close; before its welcome, the close code tells it."""
        if self.user:
            self.writer.put(protocol.goodbye("the gateway is stopping", reconnect_in_ms))
        self.end(Close.GOING_AWAY, "the gateway is stopping")

    # What the publisher brings

    @_or_fails(None)
    def on_confirmed(self, accepted: list[Accepted], at: int | None) -> None:
        """Tell the client that messages are in the log, or are not for sure."""
        self.unconfirmed -= len(accepted)
        if at is not None:
            self.writer.put(protocol.sent((a.message.id for a in accepted), at))
        else:
            for a in accepted:
                self.hold_back(a.message.to, a.message.id)
                self.writer.put(protocol.error(ErrorCode.NOT_LOGGED, "the log did not take it", id=a.message.id))
        self.update_reading()

    @_or_fails(None)
    def on_too_large(self, accepted: list[Accepted]) -> None:
        """Tell the client that messages are too large for the log; what follows them need not wait."""
        self.unconfirmed -= len(accepted)
        for a in accepted:
            text = "the log takes no message of this size at present"
            self.writer.put(protocol.error(ErrorCode.TOO_LARGE, text, id=a.message.id))
        self.update_reading()

    # What the handlers call

    @property
    def log(self) -> Any:
        """The logger for a line about this connection, which then says whose it is."""
        return connection_log(self.user, self.device, self.id)

    def hold_back(self, to: str, message_id: str) -> None:
        """Hold back further messages to a recipient until this one, which is refused, is sent again."""
        if self.barrier is None:
            self.barrier = OrderBarrier(self.services.settings.unconfirmed)
        self.barrier.refuse(to, message_id, _now())

    def on_acknowledged(self, messages: int) -> None:
        """Pass on that the client's cursor has moved, over so many forwarded messages."""
        ACKNOWLEDGED.inc(messages)
        log_now = self.services.publisher.log_now if self._live else None
        while self._live and self._live[0].until <= self.state.acked:
            _, number, at = self._live.popleft()
            if log_now is not None:
                ACKNOWLEDGEMENT_SECONDS.observe(max(0, log_now - at) / 1000, number)
        self._live = self._live or None
        self._follow_expected()
        self.services.hub.acknowledge(self)
        self.progress()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work that ends with the session."""
        task = spawn("answer", work, self.fail)
        if self._tasks is None:
            self._tasks = []
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    # Reading

    async def _read_until_end(self) -> None:
        self._reader = asyncio.current_task()
        publisher = self.services.publisher
        try:
            if self._end is not None:
                return
            while True:
                # Not reading is how a client that is too fast, or Kafka too slow for it, is held back.
                if self._hold is not None:
                    await self._hold.wait()
                if not publisher.has_room:
                    await publisher.wait_for_room()
                message = await self._ws.receive()
                if message.type is WSMsgType.TEXT:
                    self._handle(message.data)
                elif message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
                    return
                else:
                    self._end = self._end or CloseConnection(Close.NOT_JSON, "frames are text")
                    return
                # Not kept while the next one is waited for: it may be large, and the wait long.
                del message
        except CloseConnection as end:
            self._end = self._end or end
        except asyncio.CancelledError:
            if not self._was_stopped():
                raise
        finally:
            self._reader = None

    def _handle(self, text: str) -> None:
        if self.services.standstill.is_behind(self._since, _now()):
            raise CloseConnection(Close.GOING_AWAY, "the gateway stood still")
        try:
            frames = protocol.parse(text, self.services.settings.max_frame_objects, self._look)
        except InvalidFrame as invalid:
            self.writer.put(invalid.frame)
            return
        for frame in frames:
            if (handle := HANDLERS.get(type(frame))) is not None:
                handle(self, frame)
            elif isinstance(frame, InvalidFrame):
                self.writer.put(frame.frame)
            else:
                assert isinstance(frame, Hello), frame
                raise CloseConnection(Close.BAD_SEQUENCE, "a second hello")
        self.update_reading()

    def _look(self, size: int) -> float:
        return self.rate_limiter.look(size, _now())

    def update_reading(self) -> None:
        """Go on reading, or pause while the client has too much unconfirmed, unread or asked for."""
        if self._end is None and (
            self.unconfirmed >= self.services.settings.unconfirmed
            or self.writer.is_full(self.state.unacknowledged_bytes)
            or self.history_requests >= history.REQUESTS_AT_ONCE
        ):
            self._hold = self._hold or asyncio.Event()
        elif self._hold is not None:
            self._hold.set()
            self._hold = None

    @_or_fails(None)
    def on_drained(self) -> None:
        """Go on reading, if that waited for the writer."""
        if self._hold is not None:
            self.update_reading()

    def on_connection_lost(self) -> None:
        """Stop reading: the client is gone."""
        self._stop_reading()

    def _stop_reading(self) -> None:
        if self._reader is not None and not self._stopped:
            self._stopped = True
            self._reader.cancel()

    def _was_stopped(self) -> bool:
        """Return whether it was ``_stop_reading`` that cancelled this task; that is taken back, and it goes on."""
        return self._stopped and self._reader is not None and not self._reader.uncancel()

    # Forwarding

    @_or_fails(None)
    def progress(self) -> None:
        """Do what the state machine wants, and come back when it wants more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = _now()
        if self._reserved and now >= self._reserved_until:
            self._release_reserved()
        while (due := self.state.due(now)) is not None:
            if isinstance(due, RegistrationDue):
                self.services.hub.announce(self)
            else:
                self._request_page(due)
        if self.state.stalls != self._stalls:
            STALLS.inc(self.state.stalls - self._stalls)
            self._stalls = self.state.stalls
        at = self.state.next_due()
        if self._reserved:
            at = self._reserved_until if at is None else min(at, self._reserved_until)
        if at is not None and self._end is None:
            self._timer = asyncio.get_running_loop().call_at(max(at, now + 0.001), self.progress)

    def _request_page(self, request: PageRequest) -> None:
        self._release_reserved()
        # Without room the hub says when there is some again.
        if self._reserve(request.limit_bytes, _now() + request.timeout):
            self.services.hub.request_page(self, request)
        else:
            self.state.postpone_request()

    def _reserve(self, size: int, until: float) -> bool:
        """Take bytes of the budget for a page, for as long as its answer is waited for."""
        if not self.services.hub.reserve(self, size):
            return False
        self._reserved, self._reserved_until = size, until
        return True

    def _release_reserved(self) -> None:
        if self._reserved:
            reserved, self._reserved = self._reserved, 0
            self.services.hub.release(reserved)

    def _advance(self, frames: list[bytes]) -> None:
        for frame in frames:
            self.writer.put(frame)
        self._follow_expected()
        if self._waits and self.state.is_caught_up:
            self._waits = False
            CATCH_UP_SECONDS.observe(_now() - self._since)
        if not self.state.outstanding:
            self._release_reserved()
        self.progress()

    def _observe_delivery(self, delivery: Delivery) -> None:
        """Note the delay of what was accepted since the hello: all of a delivery counts with that of its first."""
        at, log_now = protocol.at_of(delivery.messages), self.services.publisher.log_now
        if at is None or log_now is None or log_now - at > 1000 * (_now() - self._since):
            return
        DELIVERY_SECONDS.observe(max(0, log_now - at) / 1000, delivery.count)
        if self._live is None:
            self._live = deque()
        self._live.append(_Live(delivery.until, delivery.count, at))

    def _follow_expected(self) -> None:
        if self._expected is not None and not self._expected.moved(self.state.forwarded, self.state.acked):
            self._expected = None

    # Closing

    async def refuse(self, end: CloseConnection) -> None:
        """Close the connection, whose hello was not good or is not waited for."""
        await self.writer.finish()
        await self._close(end)

    async def _close(self, end: CloseConnection) -> None:
        # RFC 6455, 5.5: a control frame carries at most 125 bytes, two of them the code.
        await self._ws.close(code=end.code, message=str(end).encode()[:120])


def _jitter() -> float:
    return random.uniform(0.5, 1.0)
