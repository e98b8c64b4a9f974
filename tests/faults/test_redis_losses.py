"""A Redis that comes back with less than it had: the log brings the inboxes back, without a gap, a repeat or a swap."""

from __future__ import annotations

import shutil
from pathlib import Path

from chat_streams.kafka.log_reader import LogReader
from chat_streams.kafka.names import DEAD_LETTERS
from docker.local.part import Running
from docker.local.probes import Received, user
from docker.local.temporary_stack import Stack
from tests.faults.load import Load


def append_only_file(redis: Running) -> Path:
    """The file that the newest writes are at the end of."""
    return max((redis.part.folder / "appendonlydir").glob("*.incr.aof"), key=lambda path: path.stat().st_mtime)


async def dead_letters(stack: Stack) -> int:
    """How many there were."""
    async with LogReader(stack.settings) as reader:
        return sum((await reader.ends(DEAD_LETTERS, [0])).values())


async def test_the_newest_writes_are_lost_while_messages_keep_coming(stack: Stack) -> None:
    load = Load(stack, array=5, pause_s=0.1)
    await load.more(100)
    redis = stack.running["redis"]
    stack.forget(redis)
    file = append_only_file(redis)
    size = file.stat().st_size
    with file.open("r+b") as writable:
        writable.truncate(size * 2 // 3)
    await stack.start(redis.part)
    await load.more(50)
    await load.stop()
    await load.wait_stored()
    await load.drain()


async def test_everything_is_lost_while_messages_keep_coming(stack: Stack) -> None:
    bob, alice = user("bob"), user("alice")
    received = Received()
    load = Load(stack, array=5, pause_s=0.1)
    async with stack.connect(bob, received):
        await stack.send(alice, bob, range(100))
        await received.wait(100)
        await stack.wait_stored(bob, 0)
        await load.more(100)
        redis = stack.running["redis"]
        stack.forget(redis)
        shutil.rmtree(redis.part.folder)
        await stack.start(redis.part)
        await load.more(50)
        await stack.send(alice, bob, range(100, 150))
        await received.wait(150)
    await load.stop()
    await load.wait_stored()
    await load.drain()
    # What bob acknowledged before did not come back, neither to him nor into his inbox.
    assert received.bodies() == list(range(150))
    await stack.wait_stored(bob, 0)


async def test_a_full_redis_is_waited_for_and_emptied_by_those_who_come(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    received = Received()
    before = await dead_letters(stack)
    await stack.send(alice, bob, range(20))
    await stack.wait_stored(bob, 20)
    await stack.redis.config_set("maxmemory", 1)
    try:
        # Accepted as ever, and kept by the log.
        await stack.send(alice, bob, range(20, 40))
        async with stack.connect(bob, received):
            await received.wait(20)
            await stack.wait_stored(bob, 0)
        assert await dead_letters(stack) == before
    finally:
        await stack.redis.config_set("maxmemory", 0)
    async with stack.connect(bob, received):
        await received.wait(40)
    assert received.bodies() == list(range(40))
    assert await dead_letters(stack) == before
