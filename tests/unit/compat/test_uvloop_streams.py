"""A write to a connection that was reset is an ``OSError``, as asyncio's users expect, under uvloop as well."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from chat_streams.compat import uvloop_streams


async def closed_writer() -> asyncio.StreamWriter:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
        writer.transport.abort()
        # The transport's handle is closed in a later turn of the loop.
        while not _is_dead(writer.transport):
            await asyncio.sleep(0)
        return writer


def _is_dead(transport: Any) -> bool:
    return "closed=True" in repr(transport)


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install it for one test only."""
    monkeypatch.setattr(asyncio.StreamWriter, "write", asyncio.StreamWriter.write)
    monkeypatch.setattr(asyncio.StreamWriter, "writelines", asyncio.StreamWriter.writelines)
    monkeypatch.setattr(uvloop, "install", lambda: None)
    uvloop_streams.install()
    uvloop_streams.install()


def in_uvloop(test: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test())  # type: ignore[arg-type]


@pytest.mark.usefixtures("patched")
def test_a_write_to_a_closed_connection_is_an_os_error() -> None:
    async def test() -> None:
        writer = await closed_writer()
        with pytest.raises(ConnectionResetError):
            writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            writer.writelines([b"x"])

    in_uvloop(test)


def test_uvloop_still_needs_it() -> None:
    async def test() -> None:
        writer = await closed_writer()
        with pytest.raises(RuntimeError):
            writer.write(b"x")

    in_uvloop(test)
