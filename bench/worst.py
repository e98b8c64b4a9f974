"""One client that does its worst, until SIGTERM: ``python -m bench.worst URL NAME``, with its token on stdin.

It sends to 10,000 recipients a second, on one connection that reads the answers and on one that does not, and opens
sockets on which half a frame comes, with and without a hello before it, or half a request, or no hello. Prints how
often it did what, as JSON. A process of its own: in that of a bystander it would hold up the bystander itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable

import aiohttp
import uvloop

from docker.local.hostile import UPGRADE, hello, port_of
from docker.local.layout import HOST
from docker.local.probes import Closed, Raw, websocket_frame
from gateway.protocol import SUBPROTOCOL

RATE, AT_ONCE = 10_000, 500
"""Messages a second, and in a frame."""
PAUSE_S = 1.0
BLOCKED_S = 1.0
"""Until a connection that takes nothing more is dropped for another one."""
HALF_FRAME = websocket_frame(b"x" * 500_000)[:400_000]
HALF_FRAMES_A_SECOND, SOCKETS_A_SECOND = 5.0, 50.0


class Worst:
    """The client; ``done`` counts what it did."""

    def __init__(self, url: str, name: str, token: str) -> None:
        self.done = Counter[str]()
        self._url, self._name, self._token = url, name, token
        self._numbers = itertools.count()

    async def run(self) -> None:
        """Do all of it at once, until cancelled."""
        greeted = UPGRADE + websocket_frame(hello(self._token, "half")) + HALF_FRAME
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            for work in (
                self._again(lambda: self._send(session, reads=True)),
                self._again(lambda: self._send(session, reads=False)),
                self._again(lambda: self._hold("half frames after a hello", greeted)),
                self._keep_opening("half frames", UPGRADE + HALF_FRAME, HALF_FRAMES_A_SECOND),
                self._keep_opening("half requests", UPGRADE[:50], SOCKETS_A_SECOND),
                self._keep_opening("silent connections", UPGRADE, SOCKETS_A_SECOND),
            ):
                group.create_task(work)

    async def _send(self, session: aiohttp.ClientSession, reads: bool) -> None:
        async with session.ws_connect(self._url, protocols=(SUBPROTOCOL,), max_msg_size=0) as ws:
            raw = Raw(ws)
            await raw.hello(self._token, f"reads-{reads}")
            reading = asyncio.create_task(raw.closed()) if reads else None
            try:
                while reading is None or not reading.done():
                    frames = [
                        {"type": "send", "id": f"{n}", "to": f"{self._name}-{n}", "body": "x"}
                        for n in itertools.islice(self._numbers, AT_ONCE)
                    ]
                    async with asyncio.timeout(BLOCKED_S):
                        await raw.send(*frames)
                    self.done["messages sent"] += len(frames)
                    await asyncio.sleep(AT_ONCE / RATE)
            finally:
                if reading is not None:
                    reading.cancel()
                raw.abort()

    async def _hold(self, kind: str, sent: bytes) -> None:
        """Open a socket, write, and hold it until the gateway closes it."""
        reader, writer = await asyncio.open_connection(HOST, port_of(self._url))
        try:
            writer.write(sent)
            await writer.drain()
            self.done[kind] += 1
            while await reader.read(65_536):
                pass
        finally:
            writer.transport.abort()

    async def _again(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            # A connect too many is refused, a socket that takes nothing any more is a TimeoutError.
            with contextlib.suppress(OSError, Closed, AssertionError, aiohttp.ClientError):
                await work()
            await asyncio.sleep(PAUSE_S)

    async def _keep_opening(self, kind: str, sent: bytes, rate: float) -> None:
        async def hold() -> None:
            with contextlib.suppress(OSError):
                await self._hold(kind, sent)

        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(hold())
                await asyncio.sleep(1 / rate)


async def main(url: str, name: str, token: str) -> None:
    """Do it until SIGTERM, and print what was done."""
    # It has a machine of its own elsewhere: here, it must not take the time of the gateway's processor.
    os.nice(19)
    client = Worst(url, name, token)
    running = asyncio.create_task(client.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running
    print(json.dumps(client.done))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], sys.stdin.readline().strip()))
