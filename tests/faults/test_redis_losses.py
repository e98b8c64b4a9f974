"""A Redis that comes back with less than it had: the log brings the inboxes back, without a gap, a repeat or a swap."""

from __future__ import annotations

import shutil
from pathlib import Path

from docker.local.part import Running
from tests.faults.load import Load
from tests.integration.support import Received, Stack, user


def append_only_file(redis: Running) -> Path:
    """The file that the newest writes are at the end of."""
    return max((redis.part.folder / "appendonlydir").glob("*.incr.aof"), key=lambda path: path.stat().st_mtime)


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
        await received.wait(150, 100)
    await load.stop()
    await load.wait_stored()
    await load.drain()
    # What bob acknowledged before did not come back, neither to him nor into his inbox.
    assert received.bodies() == list(range(150))
    await stack.wait_stored(bob, 0)
