"""A replica takes over that never got its primary's newest writes: the log brings them back before the next append."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from docker.local.engines import RedisNode
from docker.local.layout import HOST
from docker.local.part import Part
from docker.local.probes import eventually
from docker.local.temporary_stack import Stack, aws_of
from tests.faults.load import Load


class ReplicatedStack(Stack):
    """A stack whose Redis primary has a replica."""

    async def _start_all(self) -> None:
        # Services learn of the replica while the primary is there.
        primary, replica = RedisNode(self.layout), RedisNode(self.layout, 2)
        for part in (primary, replica):
            await self.start(part)
        async with client(replica) as redis:
            await command(redis, "CLUSTER", "MEET", HOST, primary.port, primary.ports["redis_bus"])
            async with client(primary) as of_primary:
                identity = await command(of_primary, "CLUSTER", "MYID")
                await eventually(lambda: knows(redis, identity), what="the nodes know each other")
                await command(redis, "CLUSTER", "REPLICATE", identity)
                await eventually(lambda: linked(redis), what="the replica is in step")
                # A replica is announced to clients once it has something, be it a ping.
                await of_primary.config_set("repl-ping-replica-period", "1")
                await eventually(lambda: is_announced(of_primary), what="clients learn of the replica")
        # As do we.
        await self.redis.initialize()
        await super()._start_all()

    async def start(self, part: Part) -> Any:
        """As ever, but not a second Redis where the first one runs already."""
        if part.name == "redis" and part.name in self.running and self.running[part.name].alive:
            return self.running[part.name]
        return await super().start(part)


def client(node: Part) -> Redis:
    return Redis(host=HOST, port=node.port, decode_responses=True)


async def command(redis: Redis, *words: object) -> Any:
    return await redis.execute_command(*words)  # type: ignore[no-untyped-call]


async def knows(redis: Redis, identity: str) -> bool:
    return identity in str(await command(redis, "CLUSTER", "NODES"))


async def replication(redis: Redis) -> dict[str, Any]:
    found: dict[str, Any] = await redis.info("replication")
    return found


async def linked(redis: Redis) -> bool:
    return (await replication(redis)).get("master_link_status") == "up"


async def is_announced(redis: Redis) -> bool:
    ((_, _, *nodes),) = await command(redis, "CLUSTER", "SLOTS")
    return len(nodes) == 2


@pytest_asyncio.fixture
async def replicated(tmp_path: Path) -> AsyncIterator[ReplicatedStack]:
    stack = ReplicatedStack(tmp_path)
    with aws_of(stack.layout):
        async with stack:
            yield stack


@pytest.mark.long
async def test_a_replica_without_the_newest_writes_takes_over_under_load(replicated: ReplicatedStack) -> None:
    stack = replicated
    load = Load(stack, array=5, pause_s=0.1)
    await load.more(50)
    primary, replica = stack.running["redis"], stack.running["redis-2"]
    async with client(replica.part) as redis, client(primary.part) as of_primary:
        # A password that the primary does not know: the replica does not come back once it is disconnected.
        await redis.config_set("primaryauth", "another")
        await command(of_primary, "CLIENT", "KILL", "TYPE", "REPLICA")
        await eventually(lambda: is_cut_off(redis), what="the replica gets nothing more")
        behind = (await replication(redis))["slave_repl_offset"]
        await load.more(50)
        assert (await replication(redis))["slave_repl_offset"] == behind
        assert (await replication(of_primary))["master_repl_offset"] > behind
        stack.forget(primary)
        await command(redis, "CLUSTER", "FAILOVER", "TAKEOVER")
        await load.more(50)
        await load.stop()
        assert (await replication(redis))["role"] == "master"
    await load.wait_stored()
    await load.drain()


async def is_cut_off(redis: Redis) -> bool:
    return not await linked(redis)
