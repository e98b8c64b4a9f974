"""No record is skipped when a rebalance finds a backlog, as Faust by itself does (``processing/ordered.py``)."""

from __future__ import annotations

from docker.local.temporary_stack import Stack
from tests.faults.load import Load


async def test_no_record_is_skipped_when_workers_are_killed_and_started_under_load(stack: Stack) -> None:
    second = await stack.start(stack.service("messaging"))
    load = Load(stack)
    await load.more(250)
    stack.forget(second)
    # The survivor gets the dead worker's partitions when its session ends, with a backlog by then.
    await load.more(1500)
    await stack.start(stack.service("messaging"))
    await load.more(250)
    await load.stop()
    await load.wait_stored()
    await load.drain()
