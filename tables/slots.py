"""The leases on slots (partitions of ``outgoing_messages``), in Redis: each has an epoch above all earlier ones."""

from __future__ import annotations

import asyncio
import random
import secrets
from typing import Final, NamedTuple

import structlog
from redis.exceptions import ResponseError

from chat_streams.model.errors import NoFreeSlot, RedisUnavailable
from chat_streams.runtime.settings import Settings
from tables.functions import function
from tables.redis_cluster import Cluster

log = structlog.get_logger()

RENEWALS: Final = 3
"""The number of renewals within the duration of a lease."""


class Lease(NamedTuple):
    """A lease on a slot, and its epoch: higher than that of every earlier holder."""

    slot: int
    epoch: int


class Slots:
    """The slots of all gateways, of which this process leases one."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._owner = secrets.token_hex(16)
        self._held_until = 0.0

    async def take(self) -> Lease:
        """Lease a free slot; raises ``NoFreeSlot`` or ``RedisUnavailable``."""
        slots = list(range(self._settings.slots))
        # In random order, since gateways that start together would all try the same slots first.
        random.shuffle(slots)
        for slot in slots:
            if epoch := await self._lease(slot):
                return Lease(slot, epoch)
        raise NoFreeSlot(f"all {len(slots)} slots are taken: raise CHAT_SLOTS and the topic's partitions with it")

    async def keep(self, lease: Lease) -> None:
        """Renew a lease periodically; returns when it is lost."""
        interval = self._settings.lease / RENEWALS
        while True:
            await asyncio.sleep(interval)
            try:
                if await self._lease(lease.slot) != lease.epoch:
                    log.warning("lost the slot to another gateway", slot=lease.slot, epoch=lease.epoch)
                    return
            except RedisUnavailable as error:
                # Another gateway needs Redis to take the slot, too, so this one keeps it until Redis is back.
                log.warning("the slot's lease is not renewed", slot=lease.slot, error=repr(error))

    async def release(self, lease: Lease) -> None:
        """Release the slot, so that another gateway can lease it at once; raises ``RedisUnavailable``."""
        try:
            await self._cluster.call(("FCALL", function("release"), 1, _key(lease.slot), self._owner))
        except ResponseError as error:
            raise RedisUnavailable(f"slot {lease.slot} was not released: {error}") from error

    async def _lease(self, slot: int) -> int:
        answer = await self._cluster.call(
            ("FCALL", function("lease"), 2, _key(slot), f"{_key(slot)}:epoch", self._owner)
            + (int(self._settings.lease * 1000),)
        )
        return int(answer)


def _key(slot: int) -> str:
    return f"{{slot:{slot}}}"
