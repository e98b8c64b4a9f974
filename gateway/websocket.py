"""One WebSocket connection: the thin shell around ``connection.py``."""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog
from aiohttp import WSMsgType, web

from chat_streams.kafka.names import partition_of
from chat_streams.model.codes import Close
from chat_streams.model.position import Position
from chat_streams.model.records import Delivery, Message, Missed
from chat_streams.model.times import now_ms
from chat_streams.runtime.spans import Expected
from chat_streams.runtime.tokens import BadToken, ExpiredToken, Identity, KeysUnavailable
from gateway import protocol
from gateway.protocol import Ack, ClientFrame, CloseConnection, Hello, History, InvalidFrame, Ping, Send
from gateway.publisher import Accepted
from gateway.state.delivery_state import DeliveryState, InvalidAck, PageRequest
from gateway.state.order_barrier import OrderBarrier
from gateway.state.rate_limit import RateLimiter
from tables.chat_history import HistoryUnavailable
from tables.redis_cluster import StoreUnavailable

if TYPE_CHECKING:
    from gateway.app import Gateway

log = structlog.get_logger()

WRITE_BUFFER: Final = 256 * 1024
"""Bytes of answers waiting for a slow client; past it, its frames are not read."""
HISTORY_AT_ONCE: Final = 2
CLOSE_SECONDS: Final = 5.0


class _Live(NamedTuple):
    """What was forwarded soon after it was accepted, ``at`` (ms since the epoch), and is not acknowledged."""

    until: Position
    messages: int
    at: int


class WebSocket:
    """A connection from its hello to its end.

    Most connections are idle: what only a busy one needs is made when it is needed.
    """

    __slots__ = (
        *("_rate_limiter", "_ended", "_gateway", "_barrier", "_hold", "_histories", "_hub", "_out", "_out_bytes"),
        *("_reader", "_reserved", "_stopped", "_tasks", "_timer", "_unconfirmed", "_writer", "_ws"),
        *("_expected", "_live", "_since", "_stalls", "_waits"),
        *("device", "id", "number", "patience", "state", "user"),
    )

    def __init__(self, gateway: Gateway, ws: web.WebSocketResponse) -> None:
        self.id = secrets.token_bytes(16)
        self.user = ""
        self.device = ""
        self.number = 0
        self.state: DeliveryState
        self.patience = 0.0
        self._rate_limiter: RateLimiter
        self._gateway = gateway
        self._hub = gateway.hub
        self._ws = ws
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._hold: asyncio.Event | None = None
        self._ended: CloseConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._stopped = False
        self._unconfirmed = 0
        self._barrier: OrderBarrier | None = None
        self._reserved = 0
        self._since = 0
        self._live: deque[_Live] | None = None
        self._expected: Expected | None = None
        self._waits = True
        self._stalls = 0
        self._timer: asyncio.TimerHandle | None = None
        self._histories = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Serve the connection until it ends."""
        try:
            expires = await self._hello()
        except CloseConnection as ended:
            await self._close(ended)
            return
        except InvalidFrame as bad:
            await self._ws.send_str(bad.frame.decode())
            await self._close(CloseConnection(Close.BAD_SEQUENCE, "the first frame must be a hello"))
            return
        expiry = asyncio.get_running_loop().call_later(
            max(0.0, expires - time.time()), self.end, Close.TOKEN_EXPIRED, "the token has expired"
        )
        self._hub.add(self)
        self.progress()
        try:
            await self._read_until_end()
        finally:
            expiry.cancel()
            if self._timer is not None:
                self._timer.cancel()
            self._hub.remove(self)
            if self._reserved:
                self._hub.release(self._reserved)
                self._reserved = 0
            for task in self._tasks:
                task.cancel()
            if (writer := self._writer) is not None:
                await asyncio.wait({writer}, timeout=CLOSE_SECONDS)
                writer.cancel()
        if self._ended is not None:
            await self._close(self._ended)

    # What the hub brings

    def deliver(self, delivery: Delivery) -> None:
        """A part of the inbox has come."""
        before = self.state.forwarded
        frames = self.state.on_delivery(delivery, self._now())
        if self.state.forwarded > before and (at := self._gateway.forwarded(delivery, self._since)) is not None:
            if self._live is None:
                self._live = deque()
            self._live.append(_Live(delivery.until, delivery.count, at))
        self._advance(frames)

    def expect(self, parent: str, until: Position) -> None:
        """The delivery that ends at ``until`` and comes now holds a sampled message."""
        if self._gateway.traces is not None:
            self._expected = self._expected or Expected(self._gateway.traces, self.device)
            self._expected.add(parent, until)

    def _follow_expected(self) -> None:
        if self._expected is not None and not self._expected.moved(self.state.forwarded, self.state.acked):
            self._expected = None

    def missed(self, missed: Missed) -> None:
        """A part of the inbox left it without acknowledgement."""
        self._advance(self.state.on_missed(missed, self._now()))

    def registered(self, top: Position) -> None:
        """The registry knows this connection."""
        self._advance(self.state.on_registered(top))

    def heard_of(self, until: Position) -> None:
        """There is something in the inbox."""
        self.state.on_inbox_advanced(until)
        self._advance([])

    def unregistered(self) -> None:
        """The registry must hear of this connection again."""
        self.state.on_unregistered(self._now())
        self.progress()

    def end(self, code: Close, reason: str) -> None:
        """Close the connection, after what is to be written."""
        if self._ended is None:
            self._ended = CloseConnection(code, reason)
            self._stop_reading()

    def goodbye(self, reconnect_in_ms: int) -> None:
        """Tell the client that the gateway stops, and close."""
        self._put(protocol.goodbye("the gateway is stopping", reconnect_in_ms))
        self.end(Close.GOING_AWAY, "the gateway is stopping")

    def on_confirmed(self, accepted: list[Accepted], ok: bool) -> None:
        """Messages of this connection are in the log, or are not for sure."""
        self._unconfirmed -= len(accepted)
        if ok:
            self._put(protocol.sent((a.message.id, a.at_text) for a in accepted))
        else:
            for a in accepted:
                self._hold_back(a.message.to, a.message.id)
                self._put(protocol.error("not_logged", "the log did not take it", retry=True, id=a.message.id))
        self._consider_reading()

    def progress(self) -> None:
        """Do what the state machine wants, and come back when it wants more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._now()
        while (due := self.state.due(now)) is not None:
            if not isinstance(due, PageRequest):
                self._hub.announce(self)
                continue
            self._reserve(due)
        if self.state.stalls != self._stalls:
            self._gateway.statistics.counters["stalls"] += self.state.stalls - self._stalls
            self._stalls = self.state.stalls
        at = self.state.next_due()
        if at is not None and self._ended is None:
            self._timer = asyncio.get_running_loop().call_at(max(at, now + 0.001), self.progress)

    def on_fetch_budget(self) -> None:
        """There is room for a page: go on asking."""
        self.state.resume_requests(self._now())
        self.progress()

    # From hello to welcome

    async def _hello(self) -> float:
        """Answer the hello; when its token expires, in s since the epoch."""
        settings = self._gateway.settings
        try:
            async with asyncio.timeout(settings.hello_timeout):
                message = await self._ws.receive()
                if message.type is not WSMsgType.TEXT:
                    raise CloseConnection(Close.BAD_SEQUENCE, "the first frame must be a hello, as text")
                frames = protocol.parse(message.data, settings.max_frame_objects)
                hello = frames[0] if frames else None
                if isinstance(hello, InvalidFrame):
                    raise hello
                if not isinstance(hello, Hello) or len(frames) != 1:
                    raise CloseConnection(Close.BAD_SEQUENCE, "the first frame must be a hello, alone")
                identity = await self._identify(hello)
                self._rate_limiter = self._gateway.rate_limiters.of(identity.user, self._now())
                if wait := self._rate_limiter.connect(self._now()):
                    text = f"too many connections: more than {settings.connect_rate:g} a second, wait {wait:.1f} s"
                    raise CloseConnection(Close.TOO_MANY_CONNECTS, text)
                await self._register(identity.user, hello)
        except TimeoutError:
            raise CloseConnection(Close.HELLO_TIMEOUT, f"no hello within {settings.hello_timeout:g} s") from None
        return identity.expires

    async def _identify(self, hello: Hello) -> Identity:
        try:
            return await self._gateway.authenticator.identify(hello.token)
        except KeysUnavailable as error:
            raise CloseConnection(Close.KEYS_AWAY, "the keys to check tokens with are away, try again") from error
        except ExpiredToken as error:
            raise CloseConnection(Close.TOKEN_EXPIRED, "the token has expired") from error
        except BadToken as error:
            raise CloseConnection(Close.BAD_TOKEN, f"the token is refused: {error}"[:120]) from error

    async def _register(self, user: str, hello: Hello) -> None:
        s = self._gateway.settings
        after = Position.parse(hello.after) if hello.after is not None else None
        try:
            device = await self._gateway.inbox.hello(user, hello.device, after)
            removed = device.removed
            if after is not None and after > max(device.cursor, device.top):
                # The inbox holds less than the device has seen: it expired, or Redis lost it. The log knows better.
                log_end = await self._gateway.log_end(partition_of(user, s.partitions))
                device = await self._gateway.inbox.hello(user, hello.device, after, log_end)
                removed += device.removed
            self._gateway.statistics.counters["acknowledged"] += removed
        except StoreUnavailable as error:
            log.warning("hello cannot be answered", user=user, error=str(error))
            raise CloseConnection(Close.STORE_AWAY, "the offline store is away, try again") from error
        self.user, self.device, self.number = user, hello.device, device.number
        self._since = now_ms()
        self.state = DeliveryState(device.cursor, self._gateway.limits, self._now(), _jitter)
        self.patience = (self.state.next_due() or 0) - self._now()
        self._put(
            protocol.welcome(
                user=user,
                device=hello.device,
                connection=self.id.hex(),
                after=str(device.cursor),
                heartbeat_s=s.heartbeat,
                window=s.window,
                max_body_bytes=s.max_body,
            )
        )

    # Reading

    async def _read_until_end(self) -> None:
        self._reader = asyncio.current_task()
        room = self._gateway.publisher
        try:
            if self._ended is not None:
                return
            while True:
                # Not reading is how a client that is too fast, or Kafka too slow for it, is held back.
                if self._hold is not None:
                    await self._hold.wait()
                if not room.has_room:
                    await room.wait_for_room()
                message = await self._ws.receive()
                if message.type is WSMsgType.TEXT:
                    self._take(message.data)
                elif message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
                    return
                else:
                    self._ended = self._ended or CloseConnection(Close.NOT_JSON, "frames are text")
                    return
                # Not kept while the next one is waited for: it may be large, and the wait long.
                del message
        except CloseConnection as ended:
            self._ended = self._ended or ended
        except asyncio.CancelledError:
            # An end that was wanted cancelled this task, and that is taken back.
            if not self._stopped or self._reader is None or self._reader.uncancel():
                raise
        finally:
            self._reader = None

    def _stop_reading(self) -> None:
        if self._reader is not None and not self._stopped:
            self._stopped = True
            self._reader.cancel()

    def _take(self, text: str) -> None:
        try:
            frames = protocol.parse(text, self._gateway.settings.max_frame_objects)
        except InvalidFrame as bad:
            self._put(bad.frame)
            return
        for frame in frames:
            if isinstance(frame, Send):
                self._send(frame)
            elif isinstance(frame, InvalidFrame):
                self._put(frame.frame)
            else:
                self._take_other(frame)
        self._consider_reading()

    def _take_other(self, frame: ClientFrame) -> None:
        if isinstance(frame, Ack):
            position, before = Position.parse(frame.pos), self.state.unacknowledged
            try:
                moved = self.state.acknowledge(position)
            except InvalidAck as error:
                self._put(protocol.error("bad_ack", str(error)))
                return
            if moved:
                self._count_acknowledged(before - self.state.unacknowledged)
                self._follow_expected()
                self._hub.acknowledge(self)
                self.progress()
        elif isinstance(frame, Ping):
            self._put(protocol.pong(frame.ref))
        elif isinstance(frame, History):
            self._start_history(frame)
        else:
            raise CloseConnection(Close.BAD_SEQUENCE, "a second hello")

    def _count_acknowledged(self, messages: int) -> None:
        statistics = self._gateway.statistics
        statistics.counters["confirmed"] += messages
        while self._live and self._live[0].until <= self.state.acked:
            _, number, at = self._live.popleft()
            statistics.took("acknowledgement", max(0.0, time.time() - at / 1000), number)
        self._live = self._live or None

    def _send(self, frame: Send) -> None:
        settings = self._gateway.settings
        body = bytes(frame.body)
        if (wrong := protocol.why_no_body(body)) is not None:
            self._put(protocol.error("bad_frame", f"{wrong} - at `$.body`", id=frame.id))
            return
        if len(body) > settings.max_body:
            text = f"$.body has {len(body)} bytes, {settings.max_body} are allowed"
            self._put(protocol.error("too_large", text, id=frame.id))
            return
        if self._barrier and (first := self._barrier.blocker(frame.to, frame.id, self._now())) is not None:
            text = f"sent behind {first}, which was refused: send that again first, so that the order stays"
            self._put(protocol.error("out_of_order", text, retry=True, id=frame.id))
            return
        if wait := self._rate_limiter.send(len(body), self._now()):
            self._hold_back(frame.to, frame.id)
            text = f"more than {settings.send_rate:g} messages or {settings.send_bytes_rate:g} bytes a second"
            in_ms = math.ceil(wait * 1000)
            self._put(protocol.error("rate_limited", text, retry=True, retry_in_ms=in_ms, id=frame.id))
            return
        at = now_ms()
        at_text = self._gateway.at_text(at)
        tail = protocol.message_tail(frame.id, self.user, at_text, body)
        self._unconfirmed += 1
        traces, span = self._gateway.traces, None
        if traces is not None and traces.sampled():
            span = traces.begin("send", message=frame.id, sender=self.user, to=frame.to)
        self._gateway.publisher.send(Accepted(Message(frame.to, self.user, frame.id, at, tail), at_text, self, span))

    def _hold_back(self, to: str, message_id: str) -> None:
        if self._barrier is None:
            self._barrier = OrderBarrier(self._gateway.settings.unconfirmed)
        self._barrier.refuse(to, message_id, self._now())

    # History

    def _start_history(self, frame: History) -> None:
        wants = frame.with_ is not None, frame.after is not None, frame.until is not None
        if wants not in ((True, False, False), (False, True, True)):
            text = "either $.with, or $.after and $.until"
            self._put(protocol.error("bad_frame", text, ref=frame.ref))
        elif self._histories >= HISTORY_AT_ONCE:
            text = f"at most {HISTORY_AT_ONCE} history requests at once"
            self._put(protocol.error("busy", text, retry=True, ref=frame.ref))
        else:
            self._histories += 1
            task = asyncio.create_task(self._history(frame))
            self._tasks.append(task)
            task.add_done_callback(self._tasks.remove)

    async def _history(self, frame: History) -> None:
        store = self._gateway.history
        try:
            if frame.with_ is not None:
                page = await store.page(self.user, frame.with_, frame.before, frame.limit)
            else:
                assert frame.after is not None
                assert frame.until is not None
                before = Position.parse(frame.before) if frame.before is not None else None
                after, until = Position.parse(frame.after), Position.parse(frame.until)
                # What has only just overflowed is not in the chat database yet, and an empty page would read as
                # "nothing was missed".
                await self._gateway.wait_for_history(self.user, until)
                page = await store.range(self.user, after, until, before, frame.limit)
        except ValueError as error:
            self._put(protocol.error("bad_frame", f"{error} - at `$.before`", ref=frame.ref))
        except HistoryUnavailable as error:
            log.warning("history cannot be read", error=str(error))
            text = "the chat database is away, try again"
            self._put(protocol.error("history_unavailable", text, retry=True, ref=frame.ref))
        else:
            self._put(protocol.history(frame.ref, page.messages, page.cursor))
        finally:
            self._histories -= 1
            self._consider_reading()

    # Forwarding

    def _advance(self, frames: list[bytes]) -> None:
        for frame in frames:
            self._put(frame)
        self._follow_expected()
        if self._waits and self.state.is_caught_up:
            self._waits = False
            self._gateway.statistics.took("catch_up", (now_ms() - self._since) / 1000)
        if self._reserved and not self.state.outstanding:
            reserved, self._reserved = self._reserved, 0
            self._hub.release(reserved)
        self.progress()

    def _reserve(self, ask: PageRequest) -> None:
        if self._reserved:
            self._hub.release(self._reserved)
            self._reserved = 0
        # Without room the hub says when there is some again.
        if self._hub.reserve(self, ask.limit_bytes):
            self._reserved = ask.limit_bytes
            self._hub.ask(self, ask)
        else:
            self.state.postpone_request()

    # Writing

    def _put(self, frame: bytes) -> None:
        self._out.append(frame)
        self._out_bytes += len(frame)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    def _consider_reading(self) -> None:
        limit = self._gateway.settings.unconfirmed
        answers = self._out_bytes - (self.state.unacknowledged_bytes if self.user else 0)
        if self._ended is None and (
            self._unconfirmed >= limit or answers > WRITE_BUFFER or self._histories >= HISTORY_AT_ONCE
        ):
            self._hold = self._hold or asyncio.Event()
        elif self._hold is not None:
            self._hold.set()
            self._hold = None

    async def _write(self) -> None:
        try:
            while self._out:
                frames, self._out = self._out, []
                for frame in frames:
                    await self._ws.send_frame(frame, WSMsgType.TEXT)
                    self._out_bytes -= len(frame)
            if self._hold is not None:
                self._consider_reading()
        except (ConnectionError, RuntimeError):
            # The client is gone: reading ends, too.
            self._out.clear()
            self._stop_reading()
        finally:
            self._writer = None

    async def _close(self, ended: CloseConnection) -> None:
        # RFC 6455, 5.5: a control frame carries at most 125 bytes, two of them the code.
        await self._ws.close(code=ended.code, message=str(ended).encode()[:120])

    @staticmethod
    def _now() -> float:
        # The loop's clock; asking for the running loop costs a system call before Python 3.12.
        return time.monotonic()


def _jitter() -> float:
    return random.uniform(0.5, 1.0)
