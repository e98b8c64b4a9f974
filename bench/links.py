"""The connection of a bare client, and the loops that drive one or many; shared by all systems.

Bodies are JSON text without anything to escape in JSON or XML. Each holds ``^`` once, which nothing else on a text
protocol's wire holds: messages are counted by that byte, wherever TCP cuts the stream. The number of a body stands
between two ``#``.
"""

from __future__ import annotations

import abc
import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

MARK = b"^"
HEAD = 13
"""Bytes of a body that its quotes, mark and number take."""
OUTSTANDING = 10_000
"""The largest number of messages written and not yet confirmed, over all senders of a workload."""
CHUNK_BYTES = 64 * 1024
BATCH = 200
_number = re.compile(rb"#(\d{8})#")


class LinkError(Exception):
    """An error for a request that the server refused, or for a closed connection; the text says which."""


def body(number: int, size: int) -> bytes:
    """Return a JSON string of ``size`` bytes (16 or more), quotes included."""
    return b'"^#%08d#%s"' % (number, b"x" * (size - HEAD))


class Numbers:
    """A parser that finds the numbers of bodies in a stream, however it is cut into pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def __call__(self, data: bytes) -> list[int]:
        """Return the numbers that this piece completes."""
        data = self._rest + data
        found, end = [], 0
        for match in _number.finditer(data):
            found.append(int(match[1]))
            end = match.end()
        # A number that is cut off is shorter than a whole one with its two marks.
        self._rest = data[max(end, len(data) - 9) :]
        return found


class Link(asyncio.Protocol, abc.ABC):
    """One connection: counts confirmations of what it sent and the messages it got, and acknowledges those.

    ``tap`` is called with each piece of data as it arrives.
    """

    def __init__(self) -> None:
        self.confirmed = 0
        self.received = 0
        self.tap: Callable[[bytes], None] | None = None
        self.watch: Watch | None = None
        self.failure: LinkError | None = None
        self.transport: asyncio.Transport
        self._closing = False
        self._handshake: asyncio.Queue[bytes] | None = asyncio.Queue()
        self._early = b""
        self._writable = asyncio.Event()
        self._writable.set()

    async def dial(self, port: int) -> None:
        """Connect to 127.0.0.1."""
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", port)

    async def expect(self, pattern: bytes, seconds: float = 30.0) -> re.Match[bytes]:
        """Wait for an answer of the handshake; bytes behind it are kept for the next one. Raises ``LinkError``."""
        assert self._handshake is not None
        try:
            async with asyncio.timeout(seconds):
                while (found := re.search(pattern, self._early, re.DOTALL)) is None:
                    if self.failure is not None:
                        raise self.failure
                    self._early += await self._handshake.get()
        except TimeoutError:
            raise LinkError(f"no answer like {pattern!r} after {seconds:g} s, but {self._early[:200]!r}") from None
        self._early = self._early[found.end() :]
        return found

    def ready(self) -> None:
        """End the handshake: from now on data goes to ``feed``."""
        assert self._handshake is not None
        data = self._early
        while not self._handshake.empty():
            data += self._handshake.get_nowait()
        self._handshake, self._early = None, b""
        if data:
            self.data_received(data)

    @abc.abstractmethod
    def feed(self, data: bytes) -> None:
        """Count what is in a piece of the stream, and answer it; may raise ``LinkError``."""

    @abc.abstractmethod
    def frame(self, to: str, number: int, content: bytes) -> bytes:
        """Return a message ready for ``write``; the numbers of one connection's frames are distinct, below 10^8."""

    def frames(self, messages: Sequence[tuple[str, int, bytes]], array: int = 1) -> list[bytes]:
        """Return the frames of several messages, ``array`` to a frame where the system has arrays."""
        assert array == 1, "this system has no arrays"
        return [self.frame(*message) for message in messages]

    def write(self, data: bytes) -> None:
        """Send bytes; raises the ``LinkError`` of a failed connection."""
        if self.failure is not None:
            raise self.failure
        self.transport.write(data)

    async def flow(self) -> None:
        """Wait while the transport's buffer of unsent bytes is full."""
        await self._writable.wait()

    def close(self) -> None:
        """Abort the connection."""
        self._closing = True
        self.transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]
        self.transport.set_write_buffer_limits(1024 * 1024)

    def data_received(self, data: bytes) -> None:
        """Pass the data to the handshake or to ``feed``."""
        if self._handshake is not None:
            self._handshake.put_nowait(data)
            return
        if self.tap is not None:
            self.tap(data)
        confirmed, received = self.confirmed, self.received
        try:
            self.feed(data)
        except LinkError as error:
            self._fail(error)
        if self.watch is not None:
            self.watch.note(self.confirmed - confirmed, self.received - received)

    def connection_lost(self, exc: Exception | None) -> None:
        """Record a failure, unless ``close`` was called."""
        if not self._closing:
            self._fail(LinkError(f"the server hung up: {exc or 'no reason given'}"))

    def pause_writing(self) -> None:
        """Make ``flow`` wait."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let ``flow`` return."""
        self._writable.set()

    def _fail(self, error: LinkError) -> None:
        self.failure = self.failure or error
        self._writable.set()
        if self._handshake is not None:
            self._handshake.put_nowait(b"")
        if self.watch is not None:
            self.watch.fail(self.failure)


class Watch:
    """Sums over several links, with a wait for a condition on them; a link belongs to one watch at a time."""

    def __init__(self, links: Iterable[Link]) -> None:
        self.confirmed = 0
        self.received = 0
        self._failure: LinkError | None = None
        self._changed = asyncio.Event()
        for link in links:
            self.add(link)

    def add(self, link: Link) -> None:
        """Include another link and what it has counted so far."""
        link.watch = self
        self.note(link.confirmed, link.received)
        if link.failure is not None:
            self.fail(link.failure)

    def note(self, confirmed: int, received: int) -> None:
        """Add to the sums."""
        self.confirmed += confirmed
        self.received += received
        self._changed.set()

    def fail(self, failure: LinkError) -> None:
        """End all waits with this failure."""
        self._failure = failure
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds; raises the ``LinkError`` of a link that failed."""
        while not condition():
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()


async def pump(link: Link, frames: Sequence[bytes], per_frame: int, room: Callable[[int], int]) -> None:
    """Write all frames, of ``per_frame`` messages each, in large pieces.

    ``room`` returns how many more messages may be unconfirmed, given the number written here.
    """
    assert link.watch is not None
    written, total = 0, len(frames)
    batch = max(1, min(BATCH // per_frame, CHUNK_BYTES // len(frames[0])))
    while written < total:
        least = min(batch, total - written) * per_frame
        done = written * per_frame
        await link.watch.until(lambda done=done, least=least: room(done) >= least)  # type: ignore[misc]
        end = min(total, written + room(done) // per_frame)
        for start in range(written, end, batch):
            link.write(b"".join(frames[start : min(start + batch, end)]))
            await link.flow()
        written = end


async def in_turn(actions: Sequence[Callable[[], Any]], at_once: int) -> list[Any]:
    """Run coroutine functions, ``at_once`` of them at the same time, and return their results in order."""
    results: list[Any] = [None] * len(actions)
    queue = iter(enumerate(actions))

    async def work() -> None:
        for index, action in queue:
            results[index] = await action()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(at_once, len(actions))):
            group.create_task(work())
    return results
