"""The output of one connection, in order; tells the session when a slow client has too much waiting."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from aiohttp import WSMsgType, web

from chat_streams.runtime.tasks import spawn

WRITE_BUFFER: Final = 256 * 1024
"""Bytes of answers waiting for a slow client; past it, its frames are not read."""
CLOSE_SECONDS: Final = 5.0


class Reader(Protocol):
    """The reading side of the same connection."""

    def on_drained(self) -> None:
        """Note that all frames have left."""

    def on_connection_lost(self) -> None:
        """Note that the client is gone, which the writer met first."""

    def fail(self, error: BaseException) -> None:
        """End the connection because of a fault of this program."""


class Writer:
    """Writes the frames of one connection; there is a task only while some wait.

    Its bound is kept by the reading side: it reads on only while ``is_full`` says no.
    """

    __slots__ = ("_bytes", "_frames", "_reader", "_task", "_ws")

    def __init__(self, ws: web.WebSocketResponse, reader: Reader) -> None:
        self._ws = ws
        self._reader: Reader | None = reader
        self._frames: list[bytes] = []
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None

    def put(self, frame: bytes) -> None:
        """Write a frame behind those that wait; after ``finish`` it is dropped."""
        if self._reader is None:
            return
        self._frames.append(frame)
        self._bytes += len(frame)
        if self._task is None:
            # It fails with nothing: a callback for each would take a tenth of the time of a delivery.
            self._task = spawn("write frames", self._write(), None)

    def is_full(self, unacknowledged: int) -> bool:
        """Return whether too many answers wait, beside bytes not acknowledged: those are bounded by the window."""
        return self._bytes - unacknowledged > WRITE_BUFFER

    async def finish(self) -> None:
        """Let what waits out, for ``CLOSE_SECONDS`` at most."""
        try:
            if (task := self._task) is not None:
                await asyncio.wait({task}, timeout=CLOSE_SECONDS)
                task.cancel()
        finally:
            # Reading and writing side know each other: without a cycle both are freed at once.
            self._reader = None

    async def _write(self) -> None:
        try:
            while self._frames:
                frames, self._frames = self._frames, []
                for frame in frames:
                    await self._ws.send_frame(frame, WSMsgType.TEXT)
                    self._bytes -= len(frame)
            if self._reader is not None:
                self._reader.on_drained()
        except (ConnectionError, RuntimeError):
            # The client is gone: reading ends, too.
            self._frames.clear()
            if self._reader is not None:
                self._reader.on_connection_lost()
        except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this connection
            self._frames.clear()
            if self._reader is not None:
                self._reader.fail(error)
        finally:
            self._task = None
