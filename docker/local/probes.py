"""A bare WebSocket client for tests and measurements, and helpers that wait for a condition."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import aiohttp
from aiohttp import WSMsgType

from clients.python.client import Client, Message

WITHIN_S: Final = 120.0
"""The limit of everything that waits: only what never comes takes so long, also on one busy core."""
Frame = dict[str, Any]
_numbers = itertools.count()


def websocket_frame(content: bytes, opcode: int = 1) -> bytes:
    """Return a client's frame, masked (RFC 6455, 5.3) with zeros: its payload is the same on the wire as here."""
    size = len(content)
    if size < 126:
        head = bytes([0x80 | opcode, 0x80 | size])
    elif size < 65_536:
        head = bytes([0x80 | opcode, 0xFE]) + size.to_bytes(2, "big")
    else:
        head = bytes([0x80 | opcode, 0xFF]) + size.to_bytes(8, "big")
    return head + b"\0\0\0\0" + content


def user(name: str = "user") -> str:
    """Make a user id that no other test has."""
    return f"{name}-{secrets.token_hex(5)}"


async def eventually(condition: Callable[[], Any], what: str = "", within_s: float = WITHIN_S) -> Any:
    """Ask until the answer, possibly awaited, is true, and return it; fails with the last one when the time is up.

    ``within_s`` is for the fault matrix, whose limits are promises.
    """
    deadline = time.monotonic() + within_s
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what or inspect.getsource(condition).strip()}: {answer!r} after {within_s:g} s")
        await asyncio.sleep(0.02)


class Closed(Exception):
    """The server closed a raw connection."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code, self.reason = code, reason


class Raw:
    """A bare WebSocket: each frame by hand, with the chain of positions checked."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse[Any]) -> None:
        self.until = ""
        self.seen: list[Frame] = []
        """Every object that ``next`` has returned."""
        self._ws = ws
        self._frames: deque[Frame] = deque()

    async def hello(self, token: str, device: str = "phone", after: str | None = None) -> Frame:
        """Say hello and return the welcome."""
        frame = {"type": "hello", "token": token, "device": device}
        await self.send(frame if after is None else frame | {"after": after})
        welcome = await self.next()
        assert welcome["type"] == "welcome", welcome
        self.until = welcome["after"]
        return welcome

    async def send(self, *frames: Frame) -> None:
        """Send one object, or several as an array."""
        await self.send_text(json.dumps(frames[0] if len(frames) == 1 else frames))

    async def send_text(self, text: str) -> None:
        """Send anything."""
        await self._ws.send_str(text)

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary frame."""
        await self._ws.send_bytes(data)

    async def ack(self, pos: str) -> None:
        """Acknowledge everything up to a position."""
        await self.send({"type": "ack", "pos": pos})

    async def next(self) -> Frame:
        """Return the next object; raises ``Closed`` when there is none any more."""
        while not self._frames:
            async with asyncio.timeout(WITHIN_S):
                message = await self._ws.receive()
            if message.type is not WSMsgType.TEXT:
                assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.CLOSING, WSMsgType.ERROR), message
                raise Closed(self._ws.close_code or 1006, str(message.extra or ""))
            found = json.loads(message.data)
            self._frames.extend(found if isinstance(found, list) else [found])
        frame = self._frames.popleft()
        self.seen.append(frame)
        if frame["type"] in ("messages", "missed"):
            assert frame["after"] == self.until, f"{frame['after']} follows {self.until}"
            self.until = frame["until"]
        return frame

    async def next_of(self, kind: str) -> Frame:
        """Return the next object of a type, leaving out others."""
        async with asyncio.timeout(WITHIN_S):
            while (frame := await self.next())["type"] != kind:
                pass
        return frame

    async def messages(self, count: int) -> list[Frame]:
        """Return the next ``count`` messages (or more, where one delivery has more), leaving out other objects."""
        found: list[Frame] = []
        async with asyncio.timeout(WITHIN_S):
            while len(found) < count:
                found += (await self.next_of("messages"))["messages"]
        return found

    async def closed(self) -> Closed:
        """Wait for the end of the connection, leaving out what comes before."""
        try:
            async with asyncio.timeout(WITHIN_S):
                while True:
                    await self.next()
        except Closed as closed:
            return closed

    async def ping(self) -> None:
        """Return once the gateway has worked through all frames sent so far."""
        ref = f"ping-{next(_numbers)}"
        await self.send({"type": "ping", "ref": ref})
        while (await self.next_of("pong"))["ref"] != ref:
            pass

    async def close(self) -> None:
        """Say goodbye as a client does."""
        await self._ws.close()

    def abort(self) -> None:
        """Drop the TCP connection without a word, as a phone in a tunnel does."""
        abort(self._ws)


def abort(ws: aiohttp.ClientWebSocketResponse[Any]) -> None:
    """Drop the TCP connection of a WebSocket: no close frame, and what waits to be sent is gone."""
    connection = ws._response.connection  # noqa: SLF001 - aiohttp has no public way to abort a WebSocket
    transport: Any = connection.transport if connection is not None else None
    if transport is not None:
        transport.abort()


def abort_client(client: Client) -> bool:
    """Drop the TCP connection of a client, if it has one now."""
    ws = client._ws  # noqa: SLF001 - no user of the client drops its connection like this
    if ws is None:
        return False
    abort(ws)
    return True


class Received:
    """Everything a client's ``on_messages`` was given."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._news = asyncio.Event()

    async def __call__(self, messages: list[Message]) -> None:
        """Take messages as ``on_messages`` of a client."""
        self.messages += messages
        self._news.set()

    async def wait(self, count: int) -> list[Message]:
        """Wait until there are ``count`` messages; fails saying how many there are."""
        try:
            async with asyncio.timeout(WITHIN_S):
                while len(self.messages) < count:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"{len(self.messages)} of {count} messages after {WITHIN_S:g} s") from None
        return self.messages

    def bodies(self, sender: str | None = None) -> list[Any]:
        """Return all bodies, or those of one sender, as they came."""
        return [m.body for m in self.messages if sender in (None, m.sender)]
