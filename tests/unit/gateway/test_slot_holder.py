"""Holding a slot: its lease is renewed while it is opened, and another one is taken when it is lost."""

from __future__ import annotations

import asyncio
from typing import cast

from aiokafka.errors import KafkaConnectionError

from gateway.slot_holder import SlotHolder
from tables.slots import Lease, Slots


class Store:
    """A stand-in for the slots: a lease is kept until ``lost`` is set."""

    def __init__(self) -> None:
        self.taken = 0
        self.keeping = 0
        self.released: list[Lease] = []
        self.lost = asyncio.Event()

    async def take(self) -> Lease:
        self.taken += 1
        return Lease(self.taken, self.taken)

    async def keep(self, lease: Lease) -> None:
        self.keeping += 1
        try:
            await self.lost.wait()
            self.lost.clear()
        finally:
            self.keeping -= 1

    async def release(self, lease: Lease) -> None:
        self.released.append(lease)


class Kafka:
    """A stand-in for the slot's consumer: opening fails ``failures`` times, then waits for ``is_there``."""

    def __init__(self) -> None:
        self.failures = 0
        self.is_there = asyncio.Event()
        self.opened: list[int] = []

    async def open(self, slot: int) -> None:
        if self.failures:
            self.failures -= 1
            raise KafkaConnectionError
        await self.is_there.wait()
        self.opened.append(slot)


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def holder(store: Store, kafka: Kafka) -> SlotHolder:
    return SlotHolder(cast(Slots, store), kafka.open, lambda: None)


async def test_a_lease_is_renewed_while_its_slot_is_opened() -> None:
    store, kafka = Store(), Kafka()
    kafka.failures = 1
    held = holder(store, kafka)
    running = asyncio.create_task(held.run())
    await turns()
    assert (store.taken, store.keeping, held.lease) == (1, 1, None)
    kafka.is_there.set()
    await turns()
    assert (store.taken, held.lease, kafka.opened) == (1, Lease(1, 1), [1])
    running.cancel()
    await asyncio.wait([running])
    assert store.keeping == 0
    await held.release()
    assert store.released == [Lease(1, 1)]


async def test_a_lease_that_is_lost_before_its_slot_is_open_is_replaced() -> None:
    store, kafka = Store(), Kafka()
    held = holder(store, kafka)
    running = asyncio.create_task(held.run())
    await turns()
    store.lost.set()
    await turns()
    assert (store.taken, held.lease) == (2, None)
    kafka.is_there.set()
    await turns()
    assert (held.lease, kafka.opened) == (Lease(2, 2), [2])
    store.lost.set()
    await turns()
    assert (held.lease, kafka.opened) == (Lease(3, 3), [2, 3])
    running.cancel()
