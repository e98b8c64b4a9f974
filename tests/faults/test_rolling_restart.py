"""A deploy: each service is stopped with SIGTERM and started again, one after the other, under load."""

from __future__ import annotations

import asyncio

import pytest

from docker.local.probes import Received, user
from docker.local.temporary_stack import Stack

PAIRS = 8
INTERVAL_S = 0.2


class Pair:
    """Two users: one goes on sending, the other is connected."""

    def __init__(self, stack: Stack, url: str) -> None:
        self.alice, self.bob = user("alice"), user("bob")
        self.received = Received()
        self.under_way = asyncio.Event()
        self._stack = stack
        self._url = url

    async def run(self, stop: asyncio.Event) -> None:
        """Send a number every 200 ms until told to stop; return once the last one has arrived."""
        async with (
            self._stack.connect(self.bob, self.received, url=self._url),
            self._stack.connect(self.alice, device="sender", url=self._url) as sender,
        ):
            number = 0
            sending = []
            while not stop.is_set():
                sending.append(asyncio.create_task(sender.send(self.bob, number)))
                number += 1
                await asyncio.sleep(INTERVAL_S)
                if self.received.messages:
                    self.under_way.set()
            await asyncio.gather(*sending)
            await self.received.wait(number)
        assert self.received.bodies() == list(range(number))


@pytest.mark.long
async def test_a_rolling_restart_of_everything_loses_nothing(stack: Stack) -> None:
    names = ("gateway", "messaging", "notification", "history")
    for name in names:
        await stack.start(stack.service(name))
    urls = [stack.running[name].part.url for name in ("gateway", "gateway-2")]
    pairs = [Pair(stack, urls[n % 2]) for n in range(PAIRS)]
    stop = asyncio.Event()
    running = asyncio.gather(*(pair.run(stop) for pair in pairs))
    await asyncio.gather(*(pair.under_way.wait() for pair in pairs))
    for name in names:
        for instance in (name, f"{name}-2"):
            part = stack.running[instance]
            await asyncio.to_thread(part.stop)
            assert part.process.returncode in (0, -15), f"{instance} ended with {part.process.returncode}"
            await stack.start(part.part)
    stop.set()
    await running
