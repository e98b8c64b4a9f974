"""The report of the last whole audit, kept in Redis: what the guarantee panel shows beside the live counters."""

from __future__ import annotations

import json
from typing import Any, Final

from redis.exceptions import ResponseError

from tables.redis_cluster import Cluster

_KEY: Final = "{audit}:last"


async def save(cluster: Cluster, report: dict[str, Any]) -> None:
    """Keep a report; ``at`` in it is when it was made. Raises ``RedisUnavailable``."""
    await cluster.call(("EVAL", "return redis.call('SET', KEYS[1], ARGV[1])", 1, _KEY, json.dumps(report)))


async def load(cluster: Cluster) -> dict[str, Any] | None:
    """The report that was kept last, if any; raises ``RedisUnavailable``."""
    answer = await cluster.call(("EVAL_RO", "return redis.call('GET', KEYS[1])", 1, _KEY))
    if answer is None or isinstance(answer, ResponseError):
        return None
    found: dict[str, Any] = json.loads(answer)
    return found
