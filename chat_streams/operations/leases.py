"""The slots that gateways lease, read from Redis; nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from redis.exceptions import ResponseError

from tables.redis_cluster import Cluster

_LOOK: Final = "return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}"


@dataclass(frozen=True)
class Slot:
    """A slot that ``owner``, a gateway, leases in ``epoch``; the lease runs out in ``ttl_ms`` unless it is renewed."""

    slot: int
    owner: str
    epoch: int
    ttl_ms: int


async def leases(cluster: Cluster, slots: int) -> list[Slot]:
    """Return those of the slots ``[0, slots)`` that are leased; raises ``RedisUnavailable``."""
    commands = [("EVAL_RO", _LOOK, 1, f"{{slot:{slot}}}") for slot in range(slots)]
    found = []
    for number, answer in enumerate(await cluster.each(commands)):
        if isinstance(answer, ResponseError) or not answer[0]:
            continue
        owner, _, epoch = answer[0].decode().partition(" ")
        found.append(Slot(number, owner, int(epoch or 0), answer[1]))
    return found
