"""Hostile clients, each active until it is told to stop; the caller checks their effect on others."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from hypothesis import strategies as st

from clients.python.client import Client
from docker.local.probes import Closed, Received, eventually, user, websocket_frame
from docker.local.temporary_stack import Stack
from gateway import protocol

BODY = "x" * 40_000
ARRAY = 10
STEP_S = 0.02
AT_ONCE = 100
ESTABLISHED = "01"


UPGRADE = (
    f"GET {protocol.PATH} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    f"Sec-WebSocket-Protocol: {protocol.SUBPROTOCOL}\r\n\r\n"
).encode()


def port_of(url: str) -> int:
    """Return the port that a URL names."""
    port = urlsplit(url).port
    assert port is not None
    return port


def hello(token: str, device: str) -> bytes:
    """Return the frame with which a client begins."""
    return json.dumps({"type": "hello", "token": token, "device": device}).encode()


class Bystander:
    """A client that sends itself a message every 20 ms, through the gateway that others attack."""

    def __init__(self, stack: Stack, url: str | None = None) -> None:
        self.name = user("bystander")
        self.latencies: list[float] = []
        """Seconds from sending to receiving, of each message since the last ``mark``."""
        self._stack = stack
        self._url = url or stack.url
        self._sent = 0
        self._received = Received()
        self._stop = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Bystander]:
        """Send and receive meanwhile; at the end, nothing is missing and nothing is out of order."""
        async with self._stack.connect(self.name, self._received, url=self._url) as client:
            task = asyncio.create_task(self._run(client))
            try:
                yield self
            finally:
                self._stop.set()
                await task
            await self._received.wait(self._sent)
            assert self._received.bodies() == list(range(self._sent))

    async def _run(self, client: Client) -> None:
        while not self._stop.is_set():
            begin = time.perf_counter()
            await client.send(self.name, self._sent)
            self._sent += 1
            await self._received.wait(self._sent)
            took = time.perf_counter() - begin
            self.latencies.append(took)
            await asyncio.sleep(max(0.0, STEP_S - took))

    def mark(self) -> list[float]:
        """Return the latencies since the last call."""
        found, self.latencies = self.latencies, []
        return found


async def store(stack: Stack, to: str, mebibytes: int) -> None:
    """Send 40 KB messages of ``mebibytes`` MiB in all to an offline user, and wait until they are in the inbox."""
    count = mebibytes * 1024 * 1024 // len(BODY)
    await stack.send(user("alice"), to, [BODY] * count)
    await stack.wait_stored(to, count)


@contextlib.asynccontextmanager
async def one_byte_a_second(stack: Stack, name: str, url: str | None = None) -> AsyncIterator[int]:
    """Say hello and read the answers one byte a second; yields the client's port."""
    port = port_of(url or stack.url)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    client_port = writer.get_extra_info("sockname")[1]
    # Wait for this first: after the hello, the gateway may close the connection at any time.
    await eventually(lambda: is_held(port, client_port), "the kernel knows the connection")
    writer.write(UPGRADE + websocket_frame(hello(stack.token(name), "slow")))
    await writer.drain()

    async def read() -> None:
        with contextlib.suppress(OSError):
            while await reader.read(1):
                await asyncio.sleep(1)

    task = asyncio.create_task(read())
    try:
        yield client_port
    finally:
        task.cancel()
        writer.transport.abort()


def is_held(server_port: int, client_port: int) -> bool:
    """Return True while the server has not closed its end of a connection of 127.0.0.1."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state = line.split()[:4]
        if (local.endswith(f":{server_port:04X}"), remote.endswith(f":{client_port:04X}")) == (True, True):
            return state == ESTABLISHED
    return False


@contextlib.asynccontextmanager
async def connections(stack: Stack, name: str, count: int, url: str | None = None) -> AsyncIterator[list[int | None]]:
    """Open connections of one user, each of another device, and read from them; yields the close code of each."""
    codes: list[int | None] = [None] * count
    token = stack.token(name)
    places = asyncio.Semaphore(AT_ONCE)
    opened = asyncio.Event()
    greeted = itertools.count(1)

    async def one(number: int) -> None:
        async with places:
            ws = await session.ws_connect(url or stack.url, protocols=(protocol.SUBPROTOCOL,))
            await ws.send_json({"type": "hello", "token": token, "device": f"device-{number}"})
            await ws.receive()
        if next(greeted) == count:
            opened.set()
        async for _ in ws:
            pass
        codes[number] = ws.close_code

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        tasks = [asyncio.create_task(one(number)) for number in range(count)]
        try:
            await opened.wait()
            yield codes
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def flood(stack: Stack, name: str, to: str, url: str | None = None) -> AsyncIterator[asyncio.Task[None]]:
    """Send to an offline user as fast as the socket takes it, and never read an answer."""
    async with stack.raw(name, device="flood", url=url) as raw:

        async def send() -> None:
            number = 0
            with contextlib.suppress(Closed, ConnectionError):
                while True:
                    await raw.send(
                        *({"type": "send", "id": f"{number + n}", "to": to, "body": BODY} for n in range(ARRAY))
                    )
                    number += ARRAY
                    await asyncio.sleep(0)

        task = asyncio.create_task(send())
        try:
            yield task
        finally:
            task.cancel()


_ids = st.sampled_from(["alice", "a b", "", "x" * 65, "1-2-3", "0-0", "1-", "é"]) | st.text(max_size=5)
_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _ids
_values = _scalars | st.lists(_scalars, max_size=3) | st.dictionaries(st.text(max_size=3), _scalars, max_size=3)
_fields = ("id", "to", "body", "pos", "ref", "with", "after", "until", "limit", "token", "device", "before")
objects = (
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(_fields, _values)
        | {"type": st.sampled_from(["send", "ack", "history", "ping", "hello"]) | _values},
    )
    | _values
)
"""Values that might come as an object of a frame."""


def bad(fuzzed: list[object]) -> Iterator[object]:
    """Yield the values that are not valid frames by chance."""
    for value in fuzzed:
        (found,) = protocol.parse(json.dumps([value]), 1)
        if isinstance(found, protocol.InvalidFrame):
            yield value
