"""The slot of a gateway: a partition of ``outgoing_messages``, leased in Redis, with an epoch above any earlier one."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from typing import Final, NamedTuple

import structlog
from redis.exceptions import ResponseError

from chat_streams.model.errors import NoFreeSlot, RedisUnavailable
from chat_streams.runtime.settings import Settings
from tables.functions import function
from tables.redis_cluster import Cluster

log = structlog.get_logger()

RENEWALS: Final = 3


class Lease(NamedTuple):
    """The slot held, and since which epoch."""

    slot: int
    epoch: int


class Slots:
    """Leases one slot and keeps it."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._owner = secrets.token_hex(16)
        self._held_until = 0.0

    async def take(self) -> Lease:
        """A slot nobody holds; raises ``NoFreeSlot`` or ``RedisUnavailable``."""
        slots = list(range(self._settings.slots))
        # Gateways that start together would all try the same ones first.
        random.shuffle(slots)
        for slot in slots:
            if epoch := await self._lease(slot):
                return Lease(slot, epoch)
        raise NoFreeSlot(f"all {len(slots)} slots are taken: raise CHAT_SLOTS and the topic's partitions with it")

    async def keep(self, lease: Lease) -> None:
        """Renew a lease until it is lost; returns then."""
        interval = self._settings.lease / RENEWALS
        while True:
            await asyncio.sleep(interval)
            try:
                if await self._lease(lease.slot) != lease.epoch:
                    log.warning("lost the slot to another gateway", slot=lease.slot, epoch=lease.epoch)
                    return
            except RedisUnavailable as error:
                # Who could take it needs Redis, too. Until it is back, nobody is told that this one holds it.
                log.warning("the slot's lease is not renewed", slot=lease.slot, error=str(error))

    async def release(self, lease: Lease) -> None:
        """Let another gateway have the slot now."""
        await self._cluster.call(("FCALL", function("release"), 1, _key(lease.slot), self._owner))

    async def _lease(self, slot: int) -> int:
        answer = await self._cluster.call(
            ("FCALL", function("lease"), 2, _key(slot), f"{_key(slot)}:epoch", self._owner)
            + (int(self._settings.lease * 1000), time.time_ns() // 1_000_000)
        )
        if isinstance(answer, ResponseError):
            raise answer
        return int(answer)


def _key(slot: int) -> str:
    return f"{{slot:{slot}}}"
