"""The look at Redis' policy when memory is full."""

from __future__ import annotations

from typing import cast

import pytest
from redis.exceptions import ResponseError

from chat_streams.model.errors import RedisUnavailable
from chat_streams.recovery.eviction import EVICTED_KEYS, EVICTS, EvictionWatch
from tables.redis_cluster import Cluster, Eviction, parse_eviction


class Servers:
    """A stand-in for the cluster."""

    def __init__(self) -> None:
        self.found: list[Eviction] = []

    async def evictions(self) -> list[Eviction]:
        return self.found


def values(gauge: object) -> dict[str, float]:
    return {s.labels["server"]: s.value for metric in gauge.collect() for s in metric.samples}  # type: ignore[attr-defined]


async def test_a_server_that_evicts_is_shown_and_holds_appends_up_until_it_does_not() -> None:
    servers = Servers()
    watch = EvictionWatch(cast(Cluster, servers))
    servers.found = [Eviction("a:1", "noeviction", 0), Eviction("b:2", "allkeys-lru", 7)]
    with pytest.raises(RedisUnavailable, match=r"b:2: maxmemory-policy is allkeys-lru.*must be noeviction"):
        await watch.demand()
    assert len(watch.warnings) == 1
    assert (values(EVICTS), values(EVICTED_KEYS)) == ({"a:1": 0, "b:2": 1}, {"a:1": 0, "b:2": 7})
    servers.found = [Eviction("b:2", "noeviction", 7)]
    await watch.demand()
    assert watch.warnings == []
    assert (values(EVICTS), values(EVICTED_KEYS)) == ({"b:2": 0}, {"b:2": 7})


def test_policy_and_count_are_read_from_info() -> None:
    memory = b"# Memory\r\nused_memory:1\r\nmaxmemory_policy:volatile-ttl\r\nx:y\r\n"
    stats = b"# Stats\r\nexpired_keys:3\r\nevicted_keys:12\r\n"
    assert parse_eviction("a:1", memory, stats) == Eviction("a:1", "volatile-ttl", 12)
    for answers in ((b"", stats), (memory, ResponseError("unknown"))):
        with pytest.raises(RedisUnavailable, match="a:1: INFO does not say"):
            parse_eviction("a:1", *answers)
