"""Which gateway holds which slot: their leases, as Redis has them. Only reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from redis.exceptions import ResponseError

from tables.redis_cluster import Cluster

_LOOK: Final = "return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}"


@dataclass(frozen=True)
class Slot:
    """A lease of a gateway: ``ttl_ms`` until it runs out unless it is renewed."""

    slot: int
    owner: str
    epoch: int
    ttl_ms: int


async def leases(cluster: Cluster, slots: int) -> list[Slot]:
    """The slots below ``slots`` that are leased; raises ``RedisUnavailable``."""
    commands = [("EVAL_RO", _LOOK, 1, f"{{slot:{slot}}}") for slot in range(slots)]
    found = []
    for number, answer in enumerate(await cluster.pipeline(commands)):
        if isinstance(answer, ResponseError) or not answer[0]:
            continue
        owner, _, epoch = answer[0].decode().partition(" ")
        found.append(Slot(number, owner, int(epoch or 0), answer[1]))
    return found
