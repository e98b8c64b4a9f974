"""The writer of a connection, with a socket that takes frames when it is told to."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any, cast

import pytest
from aiohttp import web

from gateway.writer import WRITE_BUFFER, Writer


class Socket:
    """Takes frames while ``open`` is set; raises ``failure`` if there is one."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.failure: Exception | None = None
        self.frames: list[bytes] = []

    async def send_frame(self, frame: bytes, opcode: Any) -> None:
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
        self.frames.append(frame)


class Connection:
    """The reading side, and the writer under test."""

    def __init__(self) -> None:
        self.socket = Socket()
        self.writer = Writer(cast("web.WebSocketResponse", self.socket), self)
        self.drained = self.lost = 0
        self.failures: list[BaseException] = []

    def on_drained(self) -> None:
        self.drained += 1

    def on_connection_lost(self) -> None:
        self.lost += 1

    def fail(self, error: BaseException) -> None:
        self.failures.append(error)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_frames_leave_in_order_and_then_there_is_no_task() -> None:
    connection = Connection()
    for n in range(3):
        connection.writer.put(b"%d" % n)
    await settle()
    assert connection.socket.frames == [b"0", b"1", b"2"]
    assert connection.drained == 1
    assert connection.writer._task is None


async def test_it_is_full_of_answers_but_not_of_messages_that_the_window_bounds() -> None:
    connection = Connection()
    connection.socket.open.clear()
    connection.writer.put(b"x" * WRITE_BUFFER)
    assert not connection.writer.is_full(0)
    connection.writer.put(b"x")
    assert connection.writer.is_full(0)
    assert not connection.writer.is_full(1)
    connection.socket.open.set()
    await settle()
    assert not connection.writer.is_full(0)
    assert connection.drained == 1


@pytest.mark.parametrize("failure", [ConnectionResetError("gone"), RuntimeError("closed")])
async def test_a_client_that_is_gone_ends_the_reading_and_its_frames_are_dropped(failure: Exception) -> None:
    connection = Connection()
    connection.socket.failure = failure
    connection.writer.put(b"0")
    connection.writer.put(b"1")
    await settle()
    assert (connection.lost, connection.drained, connection.writer._frames) == (1, 0, [])


async def test_a_fault_while_writing_ends_the_connection() -> None:
    connection = Connection()
    connection.socket.failure = ValueError("broken")
    connection.writer.put(b"0")
    connection.writer.put(b"1")
    await settle()
    assert [repr(error) for error in connection.failures] == ["ValueError('broken')"]
    assert (connection.lost, connection.writer._frames, connection.writer._task) == (0, [], None)


async def test_finish_lets_out_what_waits_and_drops_what_comes_later() -> None:
    connection = Connection()
    connection.writer.put(b"last")
    await connection.writer.finish()
    connection.writer.put(b"too late")
    await settle()
    assert connection.socket.frames == [b"last"]


async def test_finish_waits_no_longer_than_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.writer.CLOSE_SECONDS", 0.01)
    connection = Connection()
    connection.socket.open.clear()
    connection.writer.put(b"never")
    await connection.writer.finish()
    await settle()
    assert connection.writer._task is None


async def test_a_connection_that_has_ended_is_freed_without_the_garbage_collector() -> None:
    gc.disable()
    try:
        connection = Connection()
        freed = weakref.ref(connection)
        connection.writer.put(b"last")
        await connection.writer.finish()
        del connection
        await settle()
        assert freed() is None
    finally:
        gc.enable()
