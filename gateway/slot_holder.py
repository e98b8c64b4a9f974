"""The loop that keeps this gateway in a slot: take one, read it, take another when the lease ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from prometheus_client import Gauge

from chat_streams.kafka.client import KAFKA_AWAY
from chat_streams.model.errors import NoFreeSlot, RedisUnavailable
from chat_streams.runtime.metrics import REGISTRY
from chat_streams.runtime.retry import retry_forever
from chat_streams.runtime.tasks import raise_if_cancelled, spawn
from tables.slots import Lease, Slots

log = structlog.get_logger()

_NO_SLOT_YET: Final = (RedisUnavailable, NoFreeSlot, *KAFKA_AWAY)

LEASE_HELD: Final = Gauge(
    "connect_chat_gateway_lease_held", "1 while it holds a slot: else it takes no connection.", registry=REGISTRY
)


class SlotHolder:
    """Keeps a slot leased; ``lease`` is ``None`` while none is held and read.

    ``open_slot`` begins to read a slot before anybody hears of it, ``on_taken`` is called once that is so.
    """

    def __init__(self, slots: Slots, open_slot: Callable[[int], Awaitable[None]], on_taken: Callable[[], None]) -> None:
        self._slots = slots
        self._open_slot = open_slot
        self._on_taken = on_taken
        self._leased: Lease | None = None
        self.lease: Lease | None = None
        LEASE_HELD.set_function(lambda: self.lease is not None)

    async def run(self) -> None:
        """Hold a slot until cancelled."""
        while True:
            self._leased = lease = await retry_forever("take a slot", _NO_SLOT_YET, self._slots.take)
            # What it awaited may have swallowed the cancellation.
            raise_if_cancelled(asyncio.CancelledError())
            # Renewed from now on: a Kafka that is away can keep a slot from being read for longer than a lease lasts.
            keeping = spawn("keep a lease", self._slots.keep(lease), None)
            try:
                await self._use(lease, keeping)
            finally:
                keeping.cancel()
                self.lease = None

    async def _use(self, lease: Lease, keeping: asyncio.Task[None]) -> None:
        """Read a slot until its lease is lost."""
        opening = spawn(
            "open a slot", retry_forever("open a slot", _NO_SLOT_YET, lambda: self._open_slot(lease.slot)), None
        )
        try:
            await asyncio.wait([keeping, opening], return_when=asyncio.FIRST_COMPLETED)
            if keeping.done():
                await keeping
                return
            opening.result()
        finally:
            opening.cancel()
            await asyncio.wait([opening])
        self.lease = lease
        log.info("slot taken", slot=lease.slot, epoch=lease.epoch)
        self._on_taken()
        await keeping

    async def release(self) -> None:
        """Let another gateway have the slot."""
        lease, self._leased, self.lease = self._leased, None, None
        if lease is not None:
            try:
                await self._slots.release(lease)
            except RedisUnavailable as error:
                log.warning("the slot is not given back, it will run out", slot=lease.slot, error=repr(error))
