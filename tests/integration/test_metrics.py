"""Each service exposes its metrics to Prometheus, and the gateway not on its public port."""

from __future__ import annotations

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from docker.local.layout import HOST
from docker.local.parts import Service
from docker.local.probes import Received, eventually, user
from docker.local.temporary_stack import Stack


async def value(stack: Stack, service: str, name: str) -> float:
    """Return the sum of a metric over its labels, from a scrape."""
    part = stack.running[service].part
    port = part.ports.get("gateway_metrics", part.port)
    async with aiohttp.ClientSession() as session, session.get(f"http://{HOST}:{port}/metrics") as response:
        assert response.status == 200
        text = await response.text()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == f"connect_chat_{name}")


async def test_a_message_is_counted_by_each_service(stack: Stack) -> None:
    counted = {
        ("gateway", "gateway_messages_accepted_total"): 4,
        ("gateway", "gateway_messages_forwarded_total"): 4,
        ("gateway", "gateway_messages_acknowledged_total"): 4,
        ("gateway", "gateway_delivery_seconds_count"): 3,
        ("gateway", "gateway_acknowledgement_seconds_count"): 3,
        ("gateway", "gateway_catch_up_seconds_count"): 1,
        ("messaging", "inbox_messages_appended_total"): 4,
        ("notification", "inbox_messages_removed_total"): 4,
        ("history", "history_messages_stored_total"): 4,
    }
    before = {key: await value(stack, *key) for key in counted}
    bob, received = user("bob"), Received()
    # One message waits in the inbox, and is not live; three come live.
    await stack.send(user("alice"), bob, ["stored"])
    await stack.wait_stored(bob, 1)
    async with stack.connect(bob, received) as client:
        await received.wait(1)
        await client.wait_caught_up()
        await stack.send(user("carol"), bob, ["live"] * 3)
        await received.wait(4)
        await stack.wait_stored(bob, 0)
    for key, more in counted.items():

        async def has_risen(key: tuple[str, str] = key, more: int = more) -> bool:
            return await value(stack, *key) >= before[key] + more

        await eventually(has_risen, what=f"{key} rises by {more}")
    assert await value(stack, "gateway", "gateway_produce_seconds_count") > 0

    async def has_committed() -> bool:
        return await value(stack, "messaging", "worker_commit_seconds_count") > 0

    # Once a second.
    await eventually(has_committed, what="messaging has committed")
    assert await value(stack, "gateway", "gateway_lease_held") == 1
    assert await value(stack, "messaging", "worker_partitions") == 2 * stack.settings.partitions


async def test_metrics_are_not_on_the_public_port(stack: Stack) -> None:
    gateway = stack.running["gateway"].part
    assert isinstance(gateway, Service)
    status, _ = await stack.get("/metrics", gateway)
    assert status == 404
