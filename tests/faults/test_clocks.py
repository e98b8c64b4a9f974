"""A gateway whose clock is an hour wrong: it delivers like any other, and what differs is shown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from chat_streams.model.times import now_ms
from docker.local.layout import HOST
from docker.local.probes import Received, eventually, user
from docker.local.temporary_stack import Stack
from tests.faults.clocks import HOUR, set_clock

pytestmark = pytest.mark.long
CLOSE_MS = 60_000
"""Far less than an hour, and more than a test takes."""


@pytest_asyncio.fixture(params=[HOUR, -HOUR], ids=["ahead", "behind"])
async def wrong(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Stack, str, int]]:
    """Start a stack with a second gateway; the URL of that, and by how much its clock is ahead."""
    async with Stack(tmp_path) as stack:
        gateway = stack.service("gateway")
        set_clock(gateway, request.param)
        await stack.start(gateway)
        yield stack, gateway.url, request.param


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


async def test_a_gateway_with_a_wrong_clock_delivers_like_any_other(wrong: tuple[Stack, str, int]) -> None:
    stack, url, _ = wrong
    alice, bob = user("alice"), user("bob")
    live, stored, sent = Received(), Received(), []
    async with stack.connect(alice) as near, stack.connect(alice, url=url, device="desk") as far:
        # Live, by either gateway and in turns.
        async with stack.connect(bob, live, url=url):
            sent += [await (far, near)[n % 2].send(bob, n) for n in range(10)]
            await live.wait(10)
            # Again by the other gateway, under the same id: once.
            await far.send(bob, "again", id="twice")
            await near.send(bob, "again", id="twice")
            await near.send(bob, "last")
            await live.wait(12)
        assert live.bodies() == [*range(10), "again", "last"]
        await stack.wait_stored(bob, 0)
        # Stored, and read through the gateway that is wrong.
        await near.send_many((bob, n) for n in range(100))
        await stack.wait_stored(bob, 100)
        async with stack.connect(bob, stored, url=url):
            await stored.wait(100)
        assert stored.bodies() == list(range(100))

        async def is_whole() -> bool:
            return len((await far.history(bob, limit=200)).messages) >= 112

        await eventually(is_whole, "history has all")
        found = [m.body for m in (await far.history(bob, limit=200)).messages]
        assert [body for body in found if body != "again"] == [*range(10), "last", *range(100)]
    # All times are the log's.
    times = [ms(m.at) for m in (*live.messages, *stored.messages)] + [ms(each.at) for each in sent]
    assert all(abs(now_ms() - at) < CLOSE_MS for at in times)
    assert [m.at for m in live.messages[:10]] == [each.at for each in sent]


async def test_a_wrong_clock_is_shown(wrong: tuple[Stack, str, int]) -> None:
    stack, url, ahead = wrong
    alice, bob = user("alice"), user("bob")
    async with stack.connect(alice, url=url) as client:
        await client.send(bob, 1)
    gateway = stack.running["gateway-2"].part

    port = gateway.ports["gateway_metrics"]
    async with aiohttp.ClientSession() as session, session.get(f"http://{HOST}:{port}/metrics") as response:
        lines = (await response.text()).splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith("connect_chat_clock_skew_seconds ")]
    assert abs(float(value) - ahead) < CLOSE_MS / 1000
    lines = [line for line in gateway.log.read_text().splitlines() if "differs from Kafka" in line]
    assert len(lines) == 1
