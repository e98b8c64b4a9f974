"""Faust skips records when a rebalance finds a backlog; ``chat_streams/contiguous.py`` is there so that it doesn't."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.integration.support import Received, Stack, eventually, user

USERS = 64
"""On all partitions."""
ARRAY = 50


class Load:
    """A sender that goes on until told to stop, counting what was confirmed for each recipient."""

    def __init__(self, stack: Stack) -> None:
        self.recipients = [user("bob") for _ in range(USERS)]
        self.confirmed: Counter[str] = Counter()
        self._stack = stack
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self._stack.connect(user("alice"), device="sender") as client:
            n = 0
            while not self._stop.is_set():
                batch = [(to, n + i) for to in self.recipients for i in range(ARRAY)]
                await client.send_many(batch)
                n += ARRAY
                for to in self.recipients:
                    self.confirmed[to] += ARRAY

    async def reach(self, count: int) -> None:
        """Wait until each recipient was sent ``count`` messages."""
        await eventually(lambda: min((self.confirmed[to] for to in self.recipients), default=0) >= count, 60)

    async def stop(self) -> None:
        """Stop once all that was sent is confirmed."""
        self._stop.set()
        await self._task


async def test_no_record_is_skipped_when_workers_are_killed_and_started_under_load(stack: Stack) -> None:
    second = await stack.start(stack.service("messaging"))
    load = Load(stack)
    await load.reach(5 * ARRAY)
    stack.forget(second)
    # The survivor gets the dead worker's partitions when its session ends, with a backlog by then.
    await load.reach(load.confirmed[load.recipients[0]] + 60 * ARRAY)
    await stack.start(stack.service("messaging"))
    await load.reach(load.confirmed[load.recipients[0]] + 5 * ARRAY)
    await load.stop()

    async def complete() -> bool:
        stored = await asyncio.gather(*(stack.stored(to) for to in load.recipients))
        return stored == [load.confirmed[to] for to in load.recipients]

    await eventually(complete, 60, "each inbox holds what was confirmed for it")
    received = Received()
    bob = load.recipients[0]
    async with stack.connect(bob, received):
        await received.wait(load.confirmed[bob], 60)
        assert received.bodies() == list(range(load.confirmed[bob]))
