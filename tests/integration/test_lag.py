"""The ``lag`` command: how far a service is behind."""

from __future__ import annotations

from typing import Any

from chat_streams.kafka.names import partition_of
from chat_streams.model.times import now_ms
from chat_streams.operations.lag_sampling import NEWEST
from clients.python.client import all_sent
from docker.local.probes import eventually, user
from docker.local.temporary_stack import Stack
from tests.integration.commands import call, run


async def test_lag_names_the_service_its_messages_and_seconds(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")

    async def history() -> dict[str, Any]:
        rows = (await run(stack, "lag", "--json")).json
        assert [row["group"] for row in rows] == ["messaging", "messaging", "notification", "notification", "history"]
        return dict(rows[-1])

    async def caught_up() -> bool:
        return bool((await history())["records"] == 0)

    # Where the newest records are large, as other tests leave them, only a part of a lag is sampled.
    partitions = stack.settings.partitions
    carols: dict[int, str] = {}
    while len(carols) < partitions:
        carol = user("carol")
        carols[partition_of(carol, partitions)] = carol
    async with stack.connect(alice) as client:
        # One after the other: messages sent at once to a partition may be one record.
        for n in range(NEWEST):
            all_sent(await client.send_many((carol, n) for carol in carols.values()))
    await eventually(caught_up)
    paused = stack.instance("history")
    paused.pause()
    try:
        await stack.send(alice, bob, range(7))
        sent = now_ms()
        await eventually(lambda: now_ms() > sent + 1_000, "what waits is older than a second")
        row = await history()
        assert (row["messages"], row["exact"], row["time_to_empty_s"]) == (7, True, None)
        assert row["seconds"] > 1
        late = await run(stack, "lag", "--most", 1, code=1)
        assert "history" in late.err
        assert "not catching up" in late.out
    finally:
        paused.resume()

    async def late_by_little() -> bool:
        return (await call(stack, ["lag", "--most", 5])).code == 0

    await eventually(late_by_little)
