"""The reference client of protocol ``chat.v1``: it loses, repeats and reorders no message.

It sends each message under the same id until the server answers ``sent``, checks the chain of positions, acknowledges
messages that its callback has handled, and reconnects as the close codes require. The demo, the terminal chat, tests
and benchmarks use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import logging
import random
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, NoReturn, Self

import aiohttp
import msgspec
from aiohttp import WSMsgType

from clients.python.codes import CLOSES, RETRY, is_final
from clients.python.errors import (
    ChainBroken,
    ConnectionClosed,
    ProtocolError,
    RequestRefused,
    RequestTimeout,
    SendTimeout,
)

SUBPROTOCOL = "chat.v1"
MAX_FRAME_BYTES = 8 * 1024 * 1024  # the largest frame accepted from the server, whose frames stay below 4 MiB
FRAME_SENDS, FRAME_BYTES = 500, 256 * 1024  # a frame to the server is full when either is reached
FRAME_OVERHEAD = 1024  # the size of a send without its body: two ids, and the names of its fields
QUEUED_FRAMES = 10_000  # the limit between socket and callback; the server's window keeps it far below
HANDSHAKE_S, CLOSE_S, HEARTBEAT_S = 10.0, 5.0, 30.0
BACKOFF_S, BACKOFF_LIMIT_S = 0.1, 10.0
RETRIED_STATUSES = frozenset({429, 500, 502, 503, 504})

_log = logging.getLogger(__name__)


class Message(msgspec.Struct, frozen=True, gc=False):
    """A message; ``at`` is RFC 3339 UTC, ``pos`` its position in the user's inbox ("" in a conversation's history)."""

    id: str
    sender: str = msgspec.field(name="from")
    at: str
    body: Any
    pos: str = ""
    to: str = ""


class _Frame(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag=str.lower):
    pass


class Sent(_Frame, frozen=True, gc=False):
    """The server's confirmation that message ``id`` is in its log, accepted ``at`` (RFC 3339 UTC)."""

    id: str
    at: str


class HistoryPage(_Frame, frozen=True, tag="history"):
    """A page of history, oldest message first; ``before`` is the cursor of the next older page, None on the last."""

    ref: str
    messages: list[Message]
    before: str | None = None


class Welcome(_Frame, frozen=True):
    """The server's greeting on a new connection; the first delivery continues after position ``after``."""

    user: str
    device: str
    connection: str
    after: str
    heartbeat_s: float = HEARTBEAT_S
    max_body_bytes: int = 64 * 1024


class _Missed(_Frame, frozen=True, tag="missed"):
    after: str
    until: str


class _Messages(_Missed, frozen=True, tag="messages"):
    messages: list[Message]


class _CaughtUp(_Frame, frozen=True, tag="caught_up"):
    pos: str


class _Error(_Frame, frozen=True, tag="error"):
    code: str
    message: str = ""
    retry: bool = False
    retry_in_ms: float = 0
    id: str | None = None
    ref: str | None = None


class _Pong(_Frame, frozen=True, tag="pong"):
    ref: str


class _Goodbye(_Frame, frozen=True, tag="goodbye"):
    reconnect_in_ms: float = 0


class _SendFrame(_Frame, frozen=True, tag="send"):
    id: str
    to: str
    body: Any


_Known = Welcome | Sent | HistoryPage | _Messages | _Missed | _CaughtUp | _Error | _Pong | _Goodbye
_TYPES = {"welcome", "sent", "history", "messages", "missed", "caught_up", "error", "pong", "goodbye"}
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[_Known] | _Known)
_encode = msgspec.json.Encoder().encode


def decode(data: bytes) -> list[_Known]:
    """Decode the frames in one WebSocket message, leaving out those of types that this client does not know.

    Raises ``msgspec.DecodeError`` for bad JSON, and for a frame of a known type with a missing or wrong field.
    """
    try:
        frames = _decoder.decode(data)
    except msgspec.ValidationError:
        found = msgspec.json.decode(data)
        objects = found if isinstance(found, list) else [found]
        return msgspec.convert([o for o in objects if o.get("type") in _TYPES], list[_Known])
    return frames if isinstance(frames, list) else [frames]


def backoff_s(attempt: int) -> float:
    """Return the seconds to wait before attempt ``attempt`` (from 0): full jitter below a limit that doubles."""
    return random.uniform(0, min(BACKOFF_LIMIT_S, BACKOFF_S * 2 ** min(attempt, 16)))


def all_sent(results: Iterable[Sent | Exception]) -> list[Sent]:
    """Return the results of ``send_many`` if every message was sent; raises the first error otherwise."""
    sent = []
    for result in results:
        if isinstance(result, Exception):
            raise result
        sent.append(result)
    return sent


class _Call:
    """The sends of one call. Its future is done when each has a result: a confirmation, or an error."""

    def __init__(self, size: int) -> None:
        self.future: asyncio.Future[list[Sent | Exception]] = asyncio.get_running_loop().create_future()
        self.results: list[Any] = [None] * size
        self.left = size

    def settle(self, index: int, result: Sent | Exception) -> None:
        self.results[index] = result
        self.left -= 1
        if not self.left and not self.future.done():
            self.future.set_result(self.results)


class _Send(msgspec.Struct, gc=False, eq=False):
    id: str
    to: str
    frame: bytes
    deadline: float
    call: _Call
    index: int
    on_wire: bool = False


class RecipientQueue:
    """The unconfirmed sends to one recipient, in the order of the calls.

    ``on_wire`` counts those that are sent and unanswered, ``attempt`` the failures since the last confirmation. While
    ``failed`` is true, nothing more is sent.
    """

    def __init__(self) -> None:
        self.sends: dict[str, _Send] = {}
        self.on_wire = self.attempt = 0
        self.failed = False


class RecipientQueues:
    """The unconfirmed sends to all recipients, in the same order at every attempt. No I/O, no clock.

    After a send failed, no more are sent to its recipient until those on the wire are answered; then all unconfirmed
    ones are sent again in the original order. So a failure does not reorder messages.
    """

    def __init__(self) -> None:
        self.sends: dict[str, _Send] = {}
        self._by_recipient: dict[str, RecipientQueue] = {}
        self._outgoing: deque[_Send] = deque()

    def add(self, send: _Send) -> None:
        """Add a send after all others."""
        queue = self._by_recipient.get(send.to) or self._by_recipient.setdefault(send.to, RecipientQueue())
        self.sends[send.id] = queue.sends[send.id] = send
        self._outgoing.append(send)

    def take(self) -> list[bytes]:
        """Remove and return the frames to send together now, oldest first; they count as on the wire from here on."""
        frames: list[bytes] = []
        size = 0
        while self._outgoing and len(frames) < FRAME_SENDS and size < FRAME_BYTES:
            send = self._outgoing.popleft()
            # Settled sends are skipped; those of a failed queue are added again by ``again``.
            if send.id in self.sends and not (queue := self._by_recipient[send.to]).failed:
                send.on_wire = True
                queue.on_wire += 1
                frames.append(send.frame)
                size += len(send.frame)
        return frames

    def answer(self, id_: str, result: Sent | Exception | None) -> tuple[bool, RecipientQueue | None]:
        """Note the answer to a send; ``None`` for an error after which it is to be sent again. Unknown ids are ignored.

        Returns whether the send is settled, and the recipient's queue when that is to be sent ``again``.
        """
        send = self.sends.get(id_)
        if send is None or (result is None and not send.on_wire):
            return False, None
        queue = self._by_recipient[send.to]
        queue.on_wire -= send.on_wire
        send.on_wire = False
        if result is None:
            queue.failed = True
        else:
            del self.sends[id_], queue.sends[id_]
            if not queue.sends:
                del self._by_recipient[send.to]
            if isinstance(result, Sent):
                queue.attempt = 0
            send.call.settle(send.index, result)
        return result is not None, queue if queue.failed and queue.sends and not queue.on_wire else None

    def again(self, queue: RecipientQueue) -> None:
        """Send all unconfirmed sends of a failed queue again, in the original order."""
        if queue.failed and not queue.on_wire:
            queue.failed = False
            queue.attempt += 1
            self._outgoing = deque(send for send in self._outgoing if send.id not in queue.sends)
            self._outgoing.extend(queue.sends.values())

    def restart(self) -> None:
        """Start on a new connection: nothing is on the wire, and all unconfirmed sends go out in the original order."""
        for queue in self._by_recipient.values():
            queue.failed = False
            queue.on_wire = 0
        for send in self.sends.values():
            send.on_wire = False
        self._outgoing = deque(self.sends.values())


class _Lost(Exception):
    pass


class Client:
    """A client of one device, which reconnects by itself: ``async with Client(...) as client``.

    Entering the context raises ``ConnectionClosed`` when nothing listens at ``url``, or the server refuses or is not
    ready within ``timeout_s``. An error that ends the client later (``ConnectionClosed``, or one that a callback
    raised) is raised by every call from then on, and on leaving the context.

    Args:
        url: URL of the gateway's WebSocket.
        token: A JWT, or a function, possibly async, that returns one for each connection.
        device: Id of this device.
        after: Position kept elsewhere, to which the device's cursor is raised.
        on_messages: Callback for batches of messages, in order, each message once. When it returns, the batch is
            acknowledged. Without it, nothing is handled or acknowledged.
        on_missed: Callback for a range ``(after, until]`` that left the inbox unread (see ``history_range``).
        ack: False to acknowledge by the method ``ack`` only; unacknowledged messages come again after a reconnect.
        timeout_s: Seconds to wait for the answer to a send or request.
        in_flight: The largest number of unconfirmed sends; further sends wait.
    """

    def __init__(
        self,
        url: str,
        token: str | Callable[[], str | Awaitable[str]],
        device: str,
        *,
        after: str | None = None,
        on_messages: Callable[[list[Message]], Awaitable[None]] | None = None,
        on_missed: Callable[[str, str], Awaitable[None]] | None = None,
        ack: bool = True,
        timeout_s: float = 60.0,
        in_flight: int = 2_000,
    ) -> None:
        self.welcome: Welcome | None = None
        self.caught_up = asyncio.Event()
        """An event that is set once ``on_messages`` has handled what was in the inbox on connecting."""
        self._url, self._token, self._device, self._timeout_s = url, token, device, timeout_s
        self._on_messages, self._on_missed, self._auto_ack = on_messages, on_missed, ack
        self._acked, self._ack_due, self._until = after, False, ""
        self._handled: set[str] = set()
        self._queues, self._slots = RecipientQueues(), asyncio.Semaphore(in_flight)
        self._timer: asyncio.TimerHandle | None = None
        self._id_prefix, self._numbers = secrets.token_hex(8), itertools.count()
        self._requests: dict[str, tuple[bytes, asyncio.Future[Any]]] = {}
        self._control: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._deliveries = asyncio.Queue[tuple[int, _Missed | _CaughtUp] | None](QUEUED_FRAMES)
        self._connection_number, self._reconnect_at, self._last_error = 0, 0.0, ""
        self._ws: aiohttp.ClientWebSocketResponse[Any] | None = None
        self._end: Exception | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession()
        self._welcomed, self._ended = asyncio.Event(), asyncio.Event()
        self._tasks = [self._start(self._connections()), self._start(self._deliver())]
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._unless_ended(self._welcomed)
        except TimeoutError as error:
            await self.close()
            raise ConnectionClosed("unreachable", f"no welcome from {self._url} in {self._timeout_s:g} s") from error
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        end = self._end
        await self.close()
        if kind is None and end is not None and getattr(end, "code", None) != "closed":
            raise end

    async def close(self) -> None:
        """Let the callback finish its batch, acknowledge it and disconnect, within 10 s."""
        while not self._deliveries.empty():
            self._deliveries.get_nowait()
        self._deliveries.put_nowait(None)
        await asyncio.wait(self._tasks[1:], timeout=CLOSE_S)
        if self._ws is not None and self._end is None:
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._flush(self._ws)
        self._finish(ConnectionClosed("closed", "the client is closed"))
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    async def wait_closed(self) -> NoReturn:
        """Wait until an error ends the client, and raise it."""
        await self._unless_ended(asyncio.Event())
        raise AssertionError

    async def wait_caught_up(self) -> None:
        """Wait for ``caught_up``; raises the error if one ends the client before."""
        await self._unless_ended(self.caught_up)

    async def send(self, to: str, body: Any, id: str | None = None) -> Sent:  # noqa: A002 - the protocol's word
        """Send a message; returns when the server has it in its log.

        Messages to one recipient arrive in the order of the calls. Raises ``RequestRefused`` when it is refused (by the
        server, or here, where it is too large or no JSON),
        ``SendTimeout`` when there was no answer (send it again under the same id to find out whether it was accepted),
        and ``ValueError`` when a message with this id is being sent already.

        Args:
            to: Id of the recipient.
            body: Any value that JSON can represent.
            id: Id of the message; ``None`` for a new one.
        """
        return all_sent(await self._send([(to, body)], id))[0]

    async def send_many(self, messages: Iterable[tuple[str, Any]]) -> list[Sent | Exception]:
        """Send messages (to, body) in order, and wait until all are answered; returns a result for each.

        A result is the confirmation, or the error that ``send`` would raise; ``all_sent`` raises the first. An error of
        one message keeps no other from being sent. Those that are sent behind it to the same recipient come before it,
        where it is sent once more.
        """
        return await self._send(list(messages), None)

    async def ack(self, pos: str) -> None:
        """Acknowledge all messages up to and including position ``pos``, at once or on the next connection."""
        self._check()
        self._acked, self._ack_due = pos, True
        if self._ws is not None:
            with contextlib.suppress(ConnectionError):
                await self._flush(self._ws)

    async def history(self, with_: str, before: str | None = None, limit: int = 50) -> HistoryPage:
        """Get a page of the messages exchanged with a user, the newest page by default.

        Raises ``RequestRefused`` when the server refuses, and ``RequestTimeout`` without an answer.

        Args:
            with_: Id of the other user.
            before: Cursor of a page (``HistoryPage.before``), for the messages older than that.
            limit: The largest number of messages.
        """
        page: HistoryPage = await self._request({"type": "history", "with": with_, "before": before, "limit": limit})
        return page

    async def history_range(self, after: str, until: str, before: str | None = None, limit: int = 50) -> HistoryPage:
        """Get a page of the messages in the range ``(after, until]`` of the user's inbox, the newest page by default.

        Raises ``RequestRefused`` when the server refuses, and ``RequestTimeout`` without an answer.

        Args:
            after: Position, lower end of the range, exclusive.
            until: Position, upper end of the range, inclusive.
            before: Cursor of a page (``HistoryPage.before``), for the messages older than that.
            limit: The largest number of messages.
        """
        request = {"type": "history", "after": after, "until": until, "before": before, "limit": limit}
        page: HistoryPage = await self._request(request)
        return page

    async def ping(self) -> float:
        """Return the seconds that a round trip to the gateway takes; raises ``RequestTimeout`` without an answer."""
        start = time.perf_counter()
        await self._request({"type": "ping"})
        return time.perf_counter() - start

    # Sends and requests

    async def _send(self, messages: list[tuple[str, Any]], id_: str | None) -> list[Sent | Exception]:
        if not messages:
            return []
        loop = asyncio.get_running_loop()
        call = _Call(len(messages))
        for index, (to, body) in enumerate(messages):
            name = id_ or f"{self._id_prefix}-{next(self._numbers)}"
            try:
                frame = self._frame(name, to, body)
            except RequestRefused as error:
                call.settle(index, error)
                continue
            await self._slots.acquire()
            if self._end is not None:
                self._slots.release()
                call.settle(index, self._end)
                continue
            if name in self._queues.sends:
                self._slots.release()
                raise ValueError(f"message {name} is already being sent")
            self._queues.add(_Send(name, to, frame, loop.time() + self._timeout_s, call, index))
            if self._timer is None:
                self._timer = loop.call_later(self._timeout_s, self._expire)
            self._wake.set()
        return await call.future

    def _frame(self, name: str, to: str, body: Any) -> bytes:
        try:
            frame = _encode(_SendFrame(name, to, body))
        except (TypeError, ValueError, RecursionError) as error:
            # Half an emoji is a ValueError, too.
            raise RequestRefused("bad_body", f"message {name} is no JSON: {error}", RETRY["bad_body"]) from error
        if self.welcome is not None and len(frame) > self.welcome.max_body_bytes + FRAME_OVERHEAD:
            # The gateway might close the connection over it, and again at each further attempt.
            raise RequestRefused("too_large", f"message {name} has {len(frame)} bytes", RETRY["too_large"])
        return frame

    def _settle(self, id_: str, result: Sent | Exception | None, delay_s: float = 0.0) -> None:
        done, queue = self._queues.answer(id_, result)
        if done:
            self._slots.release()
        if queue is not None:
            asyncio.get_running_loop().call_later(max(delay_s, backoff_s(queue.attempt)), self._again, queue)

    def _again(self, queue: RecipientQueue) -> None:
        self._queues.again(queue)
        self._wake.set()

    def _expire(self) -> None:
        # All sends have the same timeout, so the oldest is always the next to expire: one timer serves them all.
        loop, self._timer = asyncio.get_running_loop(), None
        while (oldest := next(iter(self._queues.sends.values()), None)) is not None:
            if oldest.deadline > loop.time():
                self._timer = loop.call_at(oldest.deadline, self._expire)
                return
            self._settle(oldest.id, SendTimeout(f"no answer for message {oldest.id} in {self._timeout_s:g} s"))

    async def _request(self, request: dict[str, Any]) -> Any:
        self._check()
        ref = str(next(self._numbers))
        frame = _encode({name: value for name, value in request.items() if value is not None} | {"ref": ref})
        future = asyncio.get_running_loop().create_future()
        self._requests[ref] = frame, future
        self._control.append(frame)
        self._wake.set()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await future
        except TimeoutError as error:
            raise RequestTimeout(f"no answer to a {request['type']} in {self._timeout_s:g} s") from error
        finally:
            del self._requests[ref]

    def _reply(self, ref: str, result: Any) -> None:
        _, future = self._requests.get(ref, (b"", None))
        if future is None or future.done():
            return
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)

    # The end

    def _start(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._finish(error)

    def _finish(self, end: Exception) -> None:
        if self._end is not None:
            return
        self._end = end
        self._ended.set()
        for task in self._tasks:
            task.cancel()
        for id_ in list(self._queues.sends):
            self._settle(id_, end)
        for ref in self._requests:
            self._reply(ref, end)
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        if self._end is not None:
            raise self._end

    async def _unless_ended(self, event: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(e.wait()) for e in (event, self._ended)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not event.is_set():
            self._check()

    # Connections

    async def _connections(self) -> None:
        loop, attempt = asyncio.get_running_loop(), 0
        while True:
            start = loop.time()
            try:
                await self._connection()
            except aiohttp.WSServerHandshakeError as error:
                if error.status not in RETRIED_STATUSES:
                    raise ConnectionClosed(
                        error.status, f"{self._url} refuses: {error.status} {error.message}"
                    ) from error
                _log.info("%s is not ready: %d", self._url, error.status)
            except (_Lost, aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
                if isinstance(error, aiohttp.ClientConnectorError) and not self._welcomed.is_set():
                    raise ConnectionClosed("unreachable", f"nothing listens at {self._url}") from error
                _log.info("the connection to %s is lost: %s", self._url, error)
            except msgspec.DecodeError as error:
                raise ProtocolError(f"the server sent a bad frame: {error}") from error
            # Back off, too, from a server that accepts connections and drops them at once.
            attempt = 0 if loop.time() - start > BACKOFF_LIMIT_S else attempt + 1
            wait_s = self._reconnect_at - loop.time()
            await asyncio.sleep(wait_s if wait_s > 0 else backoff_s(attempt))

    async def _connection(self) -> None:
        token = self._token if isinstance(self._token, str) else self._token()
        if inspect.isawaitable(token):
            token = await token
        heartbeat = self.welcome.heartbeat_s if self.welcome is not None else HEARTBEAT_S
        writer: asyncio.Task[None] | None = None
        async with asyncio.timeout(HANDSHAKE_S) as limit:
            async with self._session.ws_connect(
                self._url,
                protocols=(SUBPROTOCOL,),
                heartbeat=heartbeat,
                max_msg_size=MAX_FRAME_BYTES,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
                decode_text=False,
            ) as ws:
                if ws.protocol != SUBPROTOCOL:
                    raise ProtocolError(f"{self._url} does not speak {SUBPROTOCOL}")
                after = self._acked
                hello = {"type": "hello", "token": token, "device": self._device}
                await ws.send_frame(_encode(hello if after is None else hello | {"after": after}), WSMsgType.TEXT)
                try:
                    while (message := await ws.receive()).type is WSMsgType.TEXT:
                        for frame in decode(message.data):
                            if isinstance(frame, Welcome):
                                limit.reschedule(None)
                                self._begin(frame, ws, after)
                                writer = self._start(self._write(ws))
                            else:
                                await self._take(frame)
                finally:
                    self._ws = None
                    self._connection_number += 1
                    self.caught_up.clear()
                    if writer is not None:
                        writer.cancel()
        code = ws.close_code or 1006
        reason = (
            self._last_error
            or (message.extra if message.type is WSMsgType.CLOSE else "")
            or CLOSES.get(code, "no reason given")
        )
        if is_final(code):
            raise ConnectionClosed(code, f"the server closed the connection: {reason} ({code})")
        raise _Lost(f"{reason} ({code})")

    def _begin(self, welcome: Welcome, ws: aiohttp.ClientWebSocketResponse[Any], after: str | None) -> None:
        self.welcome, self._ws, self._until, self._last_error = welcome, ws, welcome.after, ""
        self._ack_due = self._acked != after  # acknowledged while hello was under way
        self._queues.restart()
        self._control = deque(frame for frame, _ in self._requests.values())
        self._wake.set()
        self._welcomed.set()

    async def _take(self, frame: Any) -> None:
        kind = type(frame)
        if kind is Sent:
            self._settle(frame.id, frame)
        elif kind is _Messages or kind is _Missed:
            if frame.after != self._until:
                raise ChainBroken(self._until, frame.after)
            self._until = frame.until
            await self._deliveries.put((self._connection_number, frame))
        elif kind is _CaughtUp:
            await self._deliveries.put((self._connection_number, frame))
        elif kind is _Error:
            error = RequestRefused(frame.code, frame.message, frame.retry)
            if frame.id is not None:
                self._settle(frame.id, None if frame.retry else error, frame.retry_in_ms / 1000)
            elif frame.ref is not None:
                self._reply(frame.ref, error)
            else:
                self._last_error = str(error)
                _log.warning("the server says: %s", error)
        elif kind is _Goodbye:
            self._reconnect_at = asyncio.get_running_loop().time() + frame.reconnect_in_ms / 1000
        else:
            self._reply(frame.ref, frame)

    async def _write(self, ws: aiohttp.ClientWebSocketResponse[Any]) -> None:
        with contextlib.suppress(ConnectionError):  # the reader gets the error, too, and its reason
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._flush(ws)

    async def _flush(self, ws: aiohttp.ClientWebSocketResponse[Any]) -> None:
        # No await between taking a frame and writing it, so that two of these may run at once.
        while True:
            if self._ack_due:
                self._ack_due = False
                frame = _encode({"type": "ack", "pos": self._acked})
            elif self._control:
                frame = self._control.popleft()
            elif sends := self._queues.take():
                frame = sends[0] if len(sends) == 1 else b"[" + b",".join(sends) + b"]"
            else:
                return
            await ws.send_frame(frame, WSMsgType.TEXT)

    # Deliveries

    async def _deliver(self) -> None:
        while (delivery := await self._deliveries.get()) is not None:
            number, frame = delivery
            if number != self._connection_number:
                continue  # not acknowledged, so it comes again on the new connection
            if isinstance(frame, _CaughtUp):
                self.caught_up.set()
            elif isinstance(frame, _Messages):
                if self._on_messages is not None:
                    await self._hand_over(number, frame, self._on_messages)
            elif self._on_missed is not None:
                await self._on_missed(frame.after, frame.until)
                self._acknowledge(number, frame)
            else:
                _log.warning(
                    "messages after %s until %s left the inbox unread: history has them", frame.after, frame.until
                )
                self._acknowledge(number, frame)

    async def _hand_over(
        self, number: int, frame: _Messages, callback: Callable[[list[Message]], Awaitable[None]]
    ) -> None:
        messages = frame.messages
        if self._handled:
            messages = [message for message in messages if message.pos not in self._handled]
        if messages:
            await callback(messages)
        if not self._acknowledge(number, frame) and self._auto_ack:
            # The connection was lost during the callback: these messages come again, and it must not get them twice.
            self._handled.update(message.pos for message in frame.messages)
        elif self._handled:
            self._handled.difference_update(message.pos for message in frame.messages)

    def _acknowledge(self, number: int, frame: _Missed) -> bool:
        # It is cumulative: without a callback for messages, that of ``missed`` would acknowledge them, too.
        if not self._auto_ack or self._on_messages is None or number != self._connection_number:
            return False
        self._acked, self._ack_due = frame.until, True
        self._wake.set()
        return True
