"""A load that goes on until it is told to stop, and records the messages that were confirmed."""

from __future__ import annotations

import asyncio
from collections import Counter

from clients.python.client import all_sent
from docker.local.probes import Received, eventually, user
from docker.local.temporary_stack import Stack

USERS = 64
"""Recipients; so many that every partition has some."""
ARRAY = 50


class Load:
    """One sender and many recipients who are offline; the bodies to each are 0, 1, 2 and so on.

    Each recipient is sent ``array`` messages at once, ``pause_s`` seconds after the previous ones were confirmed.
    """

    def __init__(self, stack: Stack, array: int = ARRAY, pause_s: float = 0.0) -> None:
        self.recipients = [user("bob") for _ in range(USERS)]
        self.confirmed: Counter[str] = Counter()
        self._array = array
        self._pause_s = pause_s
        self._stack = stack
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self._stack.connect(user("alice"), device="sender") as client:
            n = 0
            while not self._stop.is_set():
                all_sent(await client.send_many([(to, n + i) for to in self.recipients for i in range(self._array)]))
                n += self._array
                for to in self.recipients:
                    self.confirmed[to] += self._array
                await asyncio.sleep(self._pause_s)

    def count(self) -> int:
        """The smallest number of messages that any recipient was sent."""
        return min(self.confirmed[to] for to in self.recipients)

    async def more(self, count: int) -> None:
        """Wait until each recipient was sent ``count`` more messages."""
        goal = self.count() + count
        await eventually(lambda: self._task.done() or self.count() >= goal, f"{goal} messages for each")
        if self._task.done():
            await self._task

    async def stop(self) -> None:
        """Stop once all messages that were sent are confirmed."""
        self._stop.set()
        await self._task

    async def cancel(self) -> None:
        """Stop at once, for a test that fails: the next one is not to run under this load."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def wait_stored(self) -> None:
        """Wait until each inbox holds exactly the messages confirmed for it."""

        async def complete() -> bool:
            stored = await asyncio.gather(*(self._stack.stored(to) for to in self.recipients))
            return stored == [self.confirmed[to] for to in self.recipients]

        await eventually(complete, "each inbox holds what was confirmed for it")

    async def drain(self, recipients: int = 4) -> None:
        """Connect some recipients and compare what each receives with what was confirmed for it."""
        await asyncio.gather(*(self._drain(to) for to in self.recipients[:recipients]))

    async def _drain(self, to: str) -> None:
        received = Received()
        async with self._stack.connect(to, received):
            await received.wait(self.confirmed[to])
        assert received.bodies() == list(range(self.confirmed[to]))
