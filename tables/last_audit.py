"""The report of the last complete audit, kept in Redis; the guarantee panel shows it beside the live counters."""

from __future__ import annotations

import json
from typing import Any, Final

from redis.exceptions import ResponseError

from chat_streams.model.errors import RedisUnavailable
from tables.redis_cluster import Cluster

_KEY: Final = "{audit}:last"


async def save(cluster: Cluster, report: dict[str, Any]) -> None:
    """Store a report; its ``at`` is the time at which it was made. Raises ``RedisUnavailable``."""
    command = ("EVAL", "return redis.call('SET', KEYS[1], ARGV[1])", 1, _KEY, json.dumps(report))
    try:
        await cluster.call(command)
    except ResponseError as error:
        raise RedisUnavailable(f"the report was not stored: {error}") from error


async def load(cluster: Cluster) -> dict[str, Any] | None:
    """Return the report that was stored last, if any; raises ``RedisUnavailable``."""
    (answer,) = await cluster.each([("EVAL_RO", "return redis.call('GET', KEYS[1])", 1, _KEY)])
    if answer is None or isinstance(answer, ResponseError):
        return None
    found: dict[str, Any] = json.loads(answer)
    return found
