from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import structlog

from chat_streams.runtime.descriptors import reserve
from gateway import listener
from gateway.listener import ANSWER, LINGERING, Doorkeeper

REQUEST = b"GET /v1/connect HTTP/1.1\r\nHost: x\r\n\r\n"


class Echo(asyncio.Protocol):
    """Stands for the protocol of a connection that was let in."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"let in")
        transport.close()


class Open:
    """A doorkeeper on a port, and a limit that can be moved to where the descriptors of this process are."""

    def __init__(self) -> None:
        self.doorkeeper = Doorkeeper(Echo, 1_000_000)
        self.port = 0

    def shorten(self) -> None:
        """Make as if the last descriptor were in use."""
        self.doorkeeper.most = 0

    def lengthen(self) -> None:
        """Make as if there were enough again."""
        self.doorkeeper.most = 1_000_000

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self) -> bytes:
        reader, writer = await self.connect()
        writer.write(REQUEST)
        answer = await reader.read()
        writer.close()
        return answer


@pytest_asyncio.fixture
async def opened() -> AsyncIterator[Open]:
    structlog.reset_defaults()
    opened = Open()
    server = await asyncio.get_running_loop().create_server(opened.doorkeeper, "127.0.0.1", 0)
    opened.port = server.sockets[0].getsockname()[1]
    yield opened
    server.close()
    opened.doorkeeper.close()


async def test_a_connection_is_let_in_while_there_are_descriptors(opened: Open) -> None:
    assert await opened.ask() == b"let in"


async def test_without_descriptors_the_answer_is_503_and_a_line_in_the_log(opened: Open) -> None:
    opened.shorten()
    before = listener.REFUSED._value.get()
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            assert await opened.ask() == ANSWER
    assert ANSWER.startswith(b"HTTP/1.1 503 ")
    assert listener.REFUSED._value.get() == before + 3
    (line,) = lines
    assert "for want of file descriptors" in line["event"]
    assert line["limit"] == 1_000_000
    opened.lengthen()
    assert await opened.ask() == b"let in"


async def test_one_that_asks_nothing_is_closed(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "LINGER_S", 0.01)
    opened.shorten()
    reader, writer = await opened.connect()
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()
    assert not opened.doorkeeper._lingering


async def test_so_many_at_most_are_waited_for(opened: Open) -> None:
    opened.shorten()
    silent = [await opened.connect() for _ in range(LINGERING)]
    while len(opened.doorkeeper._lingering) < LINGERING:
        await asyncio.sleep(0)
    reader, writer = await opened.connect()
    assert await reader.read() == ANSWER
    for _, each in [*silent, (reader, writer)]:
        each.close()


def test_descriptors_are_short_when_those_that_are_kept_back_would_be_used() -> None:
    free = os.dup(0)
    os.close(free)
    for limit in (free + 100, free + 1_000):
        doorkeeper = Doorkeeper(Echo, limit)
        held = []
        while not doorkeeper.is_short():
            held.append(os.dup(0))
        assert held[-1] + 1 == limit - reserve(limit)
        for descriptor in held:
            os.close(descriptor)
        assert not doorkeeper.is_short()
        doorkeeper.close()
