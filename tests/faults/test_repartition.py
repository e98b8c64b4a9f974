"""A repartition while people write and read: nothing is lost, swapped or repeated, and the audit is clean."""

from __future__ import annotations

import asyncio

import pytest

from tests.faults.crowd import Crowd, Phase
from tests.integration.commands import call, run
from tests.integration.support import Stack

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
