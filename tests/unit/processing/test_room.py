"""The bound of the bytes under way: readers wait at it, and go on below it."""

from __future__ import annotations

import asyncio

from chat_streams.processing.room import Room


async def test_a_reader_waits_at_the_limit_and_goes_on_below_it() -> None:
    room = Room(100)
    await room.wait()
    give_back = room.take(99)
    await room.wait()
    give_more_back = room.take(50)
    waiting = asyncio.create_task(room.wait())
    await asyncio.sleep(0)
    assert (waiting.done(), room.held) == (False, 149)
    give_more_back(None)
    await waiting
    give_back(None)
    assert room.held == 0
