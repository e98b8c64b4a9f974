"""Hash slots move between three Redis primaries while messages come and go: nothing is lost, swapped or repeated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from redis.crc import key_slot

from docker.local.engines import RedisNode
from docker.local.layout import HOST
from docker.local.part import Part
from docker.local.probes import eventually
from docker.local.temporary_stack import Stack, aws_of
from tables.inbox import keys
from tables.redis_cluster import SLOTS
from tests.faults.crowd import Crowd, Phase
from tests.faults.test_failover import client, command
from tests.integration.commands import run

MOVED = 8
"""Slots, each with the inbox of a user."""
MOVE_MS = 5_000
KEYS_AT_ONCE = 2
"""So that some keys of a user are moved and others are not."""


class ThreePrimaries(Stack):
    """A stack whose Redis cluster has three primaries, each with a third of the slots."""

    @property
    def nodes(self) -> list[Part]:
        """The primaries."""
        return [self.running[name].part for name in ("redis", "redis-2", "redis-3")]

    async def _start_all(self) -> None:
        for number in (1, 2, 3):
            await self.start(RedisNode(self.layout, number))
        first, *others = self.nodes
        third = SLOTS // 3
        async with client(first) as redis:
            # It took all of them when it started.
            await command(redis, "CLUSTER", "DELSLOTSRANGE", third, SLOTS - 1)
            for begin, end, node in ((third, 2 * third, others[0]), (2 * third, SLOTS, others[1])):
                async with client(node) as other:
                    await command(other, "CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
                    await command(redis, "CLUSTER", "MEET", HOST, node.port, node.ports["redis_bus"])
        for node in self.nodes:
            await eventually(lambda: self.owners(node), what=f"{node.name} knows who has which slots")  # noqa: B023
        await self.redis.initialize()
        await super()._start_all()

    async def start(self, part: Part) -> Any:
        """As ever, but not a second Redis where the first one runs already."""
        if part.name == "redis" and part.name in self.running:
            return self.running[part.name]
        return await super().start(part)

    async def owners(self, node: Part) -> dict[int, int]:
        """By slot, the port of its primary, as a node sees it; empty while some have none."""
        async with client(node) as redis:
            found: dict[int, int] = {}
            for first, last, (_, port, *_), *_ in await command(redis, "CLUSTER", "SLOTS"):
                found |= dict.fromkeys(range(first, last + 1), port)
            return found if len(found) == SLOTS else {}

    async def move(self, slot: int) -> int:
        """Move a slot to the next primary as ``redis-cli --cluster reshard`` does; returns how many keys it had."""
        port = (await self.owners(self.nodes[0]))[slot]
        place = next(n for n, node in enumerate(self.nodes) if node.port == port)
        source, target = self.nodes[place], self.nodes[(place + 1) % 3]
        moved = 0
        async with client(source) as giving, client(target) as taking:
            source_id, target_id = [await command(redis, "CLUSTER", "MYID") for redis in (giving, taking)]
            await command(taking, "CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
            await command(giving, "CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
            while names := await command(giving, "CLUSTER", "GETKEYSINSLOT", slot, KEYS_AT_ONCE):
                await command(giving, "MIGRATE", HOST, target.port, "", 0, MOVE_MS, "KEYS", *names)
                moved += len(names)
                await asyncio.sleep(0)
            for redis in (taking, giving):
                await command(redis, "CLUSTER", "SETSLOT", slot, "NODE", target_id)
        return moved


@pytest_asyncio.fixture
async def sharded(tmp_path: Path) -> AsyncIterator[ThreePrimaries]:
    stack = ThreePrimaries(tmp_path)
    with aws_of(stack.layout):
        async with stack:
            yield stack


@pytest.mark.long
async def test_slots_move_under_load(sharded: ThreePrimaries) -> None:
    stack = sharded
    crowd = Crowd(stack, [stack.url], Phase.LIVE, "resharding")
    slots = sorted({key_slot(keys(user)[0].encode()) for user in crowd.users})[:MOVED]
    before = await stack.owners(stack.nodes[0])
    try:
        await crowd.prepare()
        crowd.start()
        await crowd.until_confirmed(300)
        moved = 0
        for slot in slots:
            moved += await stack.move(slot)
            await crowd.until_confirmed(crowd.confirmed + 20)
        await crowd.until_confirmed(crowd.confirmed + 200)
        outcome = await crowd.finish(60, lambda _: None)
    finally:
        await crowd.cancel()
    assert moved >= len(slots)
    after = await stack.owners(stack.nodes[0])
    assert all(before[slot] != after[slot] for slot in slots)
    assert (outcome.lost, outcome.swapped, outcome.repeated, outcome.problems) == (0, 0, 0, []), outcome
    # Each primary knew the workers before: nobody took a moved inbox for one that has lost something.
    assert "redis refused to append" not in stack.running["messaging"].part.log.read_text()
    assert (await run(stack, "audit", "--json")).json["clean"]
