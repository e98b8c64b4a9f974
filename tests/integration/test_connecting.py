"""The moments around a connection's beginning and end, in which messages are lost most easily."""

from __future__ import annotations

import asyncio
import contextlib
import random

import aiohttp
import pytest

from chat_streams.model.position import Position
from clients.python.client import SUBPROTOCOL
from docker.local.layout import HOST
from docker.local.probes import WITHIN_S, Closed, Received, eventually, user
from docker.local.temporary_stack import Stack

MOMENTS = 200
COME_AT_ONCE = 400


async def test_a_message_sent_in_the_very_moment_of_connecting(stack: Stack) -> None:
    async def meet(number: int) -> None:
        bob, received = user("bob"), Received()
        await asyncio.sleep(number * 0.02)

        async def write() -> None:
            await asyncio.sleep(random.uniform(0, 0.05))
            await sender.send(bob, number)

        writing = asyncio.create_task(write())
        async with stack.connect(bob, received) as client:
            await writing
            await received.wait(1)
            await client.wait_caught_up()
            await stack.wait_stored(bob, 0)
        assert received.bodies() == [number]

    async with stack.connect(user("alice")) as sender, asyncio.TaskGroup() as group:
        for number in range(MOMENTS):
            group.create_task(meet(number))


async def test_all_who_come_at_once_are_let_in_though_the_gateway_is_slow(stack: Stack) -> None:
    # A test before this one may have started another gateway.
    gateway = stack.running["gateway"]
    gateway.pause()
    try:
        async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as group:
            # The kernel lets them in; those it has no room for would get no answer until the gateway goes on.
            tasks = [
                group.create_task(asyncio.open_connection(HOST, stack.layout.gateway)) for _ in range(COME_AT_ONCE)
            ]
    finally:
        gateway.resume()
    for task in tasks:
        _, writer = task.result()
        writer.close()


async def test_caught_up_comes_once_and_after_what_was_stored(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    async with stack.raw(bob) as raw:
        await raw.next_of("caught_up")
        assert [f["type"] for f in raw.seen] == ["welcome", "caught_up"]
    # More than one page.
    await stack.send(alice, bob, range(3_000))
    await stack.wait_stored(bob, 3_000)
    async with stack.raw(bob) as raw:
        found = await raw.messages(3_000)
        caught_up = await raw.next()
        assert caught_up == {"type": "caught_up", "pos": found[-1]["pos"]}
        await raw.ack(found[-1]["pos"])
        await stack.send(alice, bob, ["live"])
        assert (await raw.messages(1))[0]["body"] == "live"
        await raw.ping()
        assert sum(f["type"] == "caught_up" for f in raw.seen) == 1


async def test_a_position_from_beyond_the_log_moves_no_cursor_there(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    async with stack.raw(bob, after="18446744073709551615-0") as raw:
        claimed = Position.parse(raw.until)
        await raw.next_of("caught_up")
        assert claimed < Position.of(2, 0, 0)
        await stack.send(alice, bob, [1])
        (message,) = await raw.messages(1)
        assert Position.parse(message["pos"]) > claimed


async def test_another_subprotocol_is_refused(stack: Stack) -> None:
    async with aiohttp.ClientSession() as session:
        for protocols in ((), ("chat.v2",)):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await session.ws_connect(stack.url, protocols=protocols)
            assert caught.value.status == 400
        async with session.ws_connect(stack.url, protocols=("chat.v2", SUBPROTOCOL)) as ws:
            assert ws.protocol == SUBPROTOCOL


async def test_sigterm_says_goodbye_and_loses_nothing_it_confirmed(stack: Stack) -> None:
    bob, received = user("bob"), Received()
    gateway = await stack.start(stack.service("gateway"))
    confirmed: set[str] = set()
    delays: list[int] = []
    codes: set[int] = set()

    async def write(name: str) -> None:
        async with stack.raw(name, url=gateway.part.url) as raw:
            with contextlib.suppress(Closed, ConnectionError):
                for number in range(1_000_000):
                    frames = [{"type": "send", "id": f"{name}-{number}-{i}", "to": bob, "body": i} for i in range(20)]
                    await raw.send(*frames)
                    for _ in frames:
                        confirmed.add((await raw.next_of("sent"))["id"])
            codes.add((await raw.closed()).code)
            confirmed.update(f["id"] for f in raw.seen if f["type"] == "sent")
            (goodbye,) = [f for f in raw.seen if f["type"] == "goodbye"]
            delays.append(goodbye["reconnect_in_ms"])

    async with stack.connect(bob, received) as client, asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(write(user("sender")))
        await eventually(lambda: len(confirmed) > 2_000)
        gateway.process.terminate()
        await eventually(lambda: not gateway.alive)
        await eventually(lambda: len(delays) == 20)
        await eventually(lambda: confirmed <= {m.id for m in received.messages})
        await client.ping()
    del stack.running[gateway.part.name]
    assert gateway.process.returncode == 0
    assert codes == {4000}
    ids = [m.id for m in received.messages]
    assert len(ids) == len(set(ids))
    # All at once would be a stampede.
    assert all(0 <= delay <= 3_000 for delay in delays)
    assert len(set(delays)) > 10


async def test_messages_for_a_user_of_a_stopped_gateway_wait_for_him(stack: Stack) -> None:
    alice, bob, received = user("alice"), user("bob"), Received()
    gateway = await stack.start(stack.service("gateway"))
    async with stack.connect(alice) as sender:
        async with stack.raw(bob, url=gateway.part.url) as raw:
            await sender.send(bob, 1)
            (first,) = await raw.messages(1)
            await raw.ack(first["pos"])
            gateway.process.terminate()
            assert (await raw.closed()).code == 4000
            await sender.send(bob, 2)
        await eventually(lambda: not gateway.alive)
        del stack.running[gateway.part.name]
        async with stack.connect(bob, received) as client:
            await client.wait_caught_up()
            await received.wait(1)
            await sender.send(bob, 3)
            await received.wait(2)
    assert received.bodies() == [2, 3]
