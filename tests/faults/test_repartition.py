"""A repartition while people write and read: nothing is lost, swapped or repeated, and the audit is clean."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from docker.local.probes import Received, user
from docker.local.temporary_stack import Stack
from tests.faults.crowd import Crowd, Phase
from tests.integration.commands import call, run

PARTITIONS = 16
NEW = {"topics_version": 2, "partitions": PARTITIONS}
SERVICES = ("messaging", "notification", "history", "gateway")


async def restart(stack: Stack, name: str) -> None:
    """As a deploy does: SIGTERM, then the service with the new settings."""
    running = stack.running[name]
    await asyncio.to_thread(running.stop)
    running.part.environment |= {f"CHAT_{key.upper()}": str(value) for key, value in NEW.items()}
    await stack.start(running.part)


@pytest.mark.long
async def test_repartitioning_under_load_loses_nothing(stack: Stack) -> None:
    fewer = await run(stack, "topics", "repartition", "--partitions", 8, code=1)
    assert "more are wanted" in fewer.err
    alice, bob, carol = user("alice"), user("bob"), user("carol")
    # To bob, who is away, and to carol, who reads it.
    await stack.send(alice, bob, range(30))
    carols = Received()
    async with stack.connect(carol, carols):
        await stack.send(alice, carol, range(20))
        await carols.wait(20)
        await stack.wait_stored(carol, 0)
    crowd = Crowd(stack, [stack.url], Phase.LIVE, "repartition")
    try:
        await crowd.prepare()
        crowd.start()
        await crowd.until_confirmed(500)
        dry = await run(stack, "topics", "repartition", "--partitions", PARTITIONS, "--dry-run")
        assert "nothing is changed" in dry.out
        done = await run(stack, "topics", "repartition", "--partitions", PARTITIONS)
        assert "generation 2 with 16 partitions" in done.out
        assert "CHAT_TOPICS_VERSION=2 CHAT_PARTITIONS=16" in done.out
        closed = crowd.confirmed
        # Gateways of the old settings can write no message any more, and say so to those who ask.
        stale = await call(stack, ["topics", "check"])
        assert stale.code == 1
        assert "set CHAT_TOPICS_VERSION=2 and CHAT_PARTITIONS=16" in stale.err
        await asyncio.gather(*(restart(stack, name) for name in SERVICES))
        await crowd.until_confirmed(closed + 500)
        outcome = await crowd.finish(30, lambda _: None)
    finally:
        await crowd.cancel()
    assert (outcome.lost, outcome.swapped, outcome.repeated, outcome.problems) == (0, 0, 0, [])
    report = await run(stack, "audit", "--json", **NEW)
    assert report.json["clean"]
    assert report.json["messages"] > 0
    # Redis loses everything: what waited from before the repartition comes from the old log, and before what is new.
    redis = stack.running["redis"]
    stack.forget(redis)
    shutil.rmtree(redis.part.folder)
    await stack.start(redis.part)
    await stack.wait_stored(bob, 30)
    for name in (bob, carol):
        await stack.send(alice, name, range(30, 40))
    bobs = Received()
    async with stack.connect(bob, bobs), stack.connect(carol, carols):
        await bobs.wait(40)
        await carols.wait(30)
        await stack.wait_stored(bob, 0)
        await stack.wait_stored(carol, 0)
    assert bobs.bodies() == list(range(40))
    assert carols.bodies() == [*range(20), *range(30, 40)]
