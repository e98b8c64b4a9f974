"""The look at what Redis does when its memory is full: a server that evicts keys loses inboxes."""

from __future__ import annotations

from typing import Final

import structlog
from prometheus_client import Gauge

from chat_streams.model.errors import RedisUnavailable
from chat_streams.runtime.metrics import REGISTRY
from tables.redis_cluster import NOEVICTION, Cluster

log = structlog.get_logger()

EVICTS: Final = Gauge(
    "connect_chat_redis_evicts", "1 where maxmemory-policy is not noeviction.", ["server"], registry=REGISTRY
)
EVICTED_KEYS: Final = Gauge(
    "connect_chat_redis_evicted_keys", "Keys it has evicted since its start.", ["server"], registry=REGISTRY
)


class EvictionWatch:
    """A watch over what the Redis primaries do when their memory is full.

    With a policy that evicts, but nothing evicted yet, all goes on: the error in the log, the metrics and a worker that
    is not ready ask for an operator. Once keys were evicted, or a server has lost its fencing tokens, ``demand`` holds
    the appends up until the policy is right, since what is restored would be evicted again.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.warnings: list[str] = []
        """A line for each server whose policy was wrong at the last look."""

    async def look(self) -> None:
        """Look at all primaries; raises ``RedisUnavailable``."""
        found = await self._cluster.evictions()
        wrong = [eviction for eviction in found if eviction.warning]
        warnings = [eviction.warning for eviction in wrong]
        if warnings != self.warnings:
            for eviction in wrong:
                log.error("redis evicts", server=eviction.server, policy=eviction.policy, wanted=NOEVICTION)
            if not wrong:
                log.info("redis evicts no more")
        self.warnings = warnings
        # A server that is gone is shown no more.
        EVICTS.clear()
        EVICTED_KEYS.clear()
        for eviction in found:
            EVICTS.labels(eviction.server).set(bool(eviction.warning))
            EVICTED_KEYS.labels(eviction.server).set(eviction.evicted)

    async def demand(self) -> None:
        """Raise ``RedisUnavailable`` while a primary may evict what is appended."""
        await self.look()
        if self.warnings:
            raise RedisUnavailable(self.warnings[0])
