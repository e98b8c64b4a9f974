"""Several devices of one user, and several connections of one device."""

from __future__ import annotations

import asyncio

import pytest

from clients.python.client import all_sent
from clients.python.errors import ConnectionClosed
from docker.local.probes import WITHIN_S, Received, user
from docker.local.temporary_stack import Stack


async def test_each_device_gets_everything_and_the_inbox_waits_for_both(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    async with stack.raw(bob, "laptop") as laptop:
        await laptop.next_of("caught_up")
    async with stack.raw(bob, "phone") as phone:
        await stack.send(alice, bob, range(20))
        got = await phone.messages(20)
        assert [m["body"] for m in got] == list(range(20))
        await phone.ack(got[-1]["pos"])
        # The laptop acknowledges less, so the inbox shows when the phone's acknowledgement is applied.
        async with stack.raw(bob, "laptop") as laptop:
            assert await laptop.messages(20) == got
            assert await stack.stored(bob) == 20
            await laptop.ack(got[4]["pos"])
            await stack.wait_stored(bob, 15)
            # Both get live messages, in the same order.
            await stack.send(alice, bob, range(20, 30))
            assert await phone.messages(10) == await laptop.messages(10)
            await laptop.ack(laptop.until)
            # The messages that the phone has acknowledged are removed now, and no others.
            await stack.wait_stored(bob, 10)
            await phone.ack(phone.until)
            await stack.wait_stored(bob, 0)


async def test_a_new_device_starts_with_all_that_is_kept(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    await stack.send(alice, bob, range(10))
    async with stack.raw(bob, "phone") as phone:
        got = await phone.messages(10)
        await phone.ack(got[2]["pos"])
        await stack.wait_stored(bob, 7)
    async with stack.raw(bob, "laptop") as laptop:
        assert laptop.until == got[2]["pos"]
        assert await laptop.messages(7) == got[3:]
        await laptop.next_of("caught_up")
        assert not [f for f in laptop.seen if f["type"] == "missed"]


async def test_a_newer_connection_takes_over(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    async with stack.raw(bob) as old:
        await old.next_of("caught_up")
        await stack.send(alice, bob, range(5))
        got = await old.messages(5)
        await old.ack(got[1]["pos"])
        await stack.wait_stored(bob, 3)
        async with stack.raw(bob) as new:
            assert (await old.closed()).code == 4510
            assert await new.messages(3) == got[2:]
            await new.ack(new.until)
            await stack.send(alice, bob, [5])
            assert (await new.messages(1))[0]["body"] == 5
            await new.ack(new.until)
            await stack.wait_stored(bob, 0)
            # A device of the same name belongs to another user.
            async with stack.raw(alice) as other:
                await other.next_of("caught_up")
            await new.ping()


async def test_a_newer_connection_on_another_gateway_takes_over(stack: Stack, small: str) -> None:
    alice, bob = user("alice"), user("bob")
    async with stack.raw(bob) as old:
        await old.next_of("caught_up")
        async with stack.raw(bob, url=small) as new:
            assert (await old.closed()).code == 4510
            await stack.send(alice, bob, range(5))
            assert [m["body"] for m in await new.messages(5)] == list(range(5))
        async with stack.raw(bob) as back:
            assert [m["body"] for m in await back.messages(5)] == list(range(5))
            await back.ack(back.until)
            await stack.wait_stored(bob, 0)


async def test_what_a_device_says_it_has_when_it_comes_back_leaves_the_inbox(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    async with stack.raw(bob, "laptop") as raw:
        await raw.next_of("caught_up")
    async with stack.raw(bob) as raw:
        await raw.next_of("caught_up")
        await stack.send(alice, bob, range(5))
        await raw.messages(5)
        position = raw.until
    # Its acknowledgement was lost with the connection, and no new message comes that it could acknowledge.
    async with stack.raw(bob, after=position) as raw:
        await raw.next_of("caught_up")
        assert await stack.stored(bob) == 5
        async with stack.raw(bob, "laptop", after=position) as laptop:
            await laptop.next_of("caught_up")
            await stack.wait_stored(bob, 0)


async def test_a_client_that_is_taken_over_does_not_fight_back(stack: Stack) -> None:
    bob = user("bob")
    old, new = stack.connect(bob, Received()), stack.connect(bob, Received())
    await old.__aenter__()
    async with new:
        with pytest.raises(ConnectionClosed) as caught:
            await asyncio.wait_for(old.wait_closed(), WITHIN_S)
        assert caught.value.code == 4510
        await old.close()
        await new.ping()


async def test_takeovers_under_load_lose_nothing(stack: Stack, small: str) -> None:
    alice, bob, count = user("alice"), user("bob"), 400
    got: list[int] = []
    done = asyncio.Event()

    async def write() -> None:
        async with stack.connect(alice) as sender:
            for start in range(0, count, 4):
                all_sent(await sender.send_many((bob, n) for n in range(start, start + 4)))
                await asyncio.sleep(0.01)
        done.set()

    async def take_over(number: int, after: str | None) -> str:
        # The previous connection is still open when this one says hello.
        async with stack.raw(bob, after=after, url=(stack.url, small)[number % 2]) as raw:
            await raw.next_of("caught_up")
            got.extend(m["body"] for f in raw.seen if f["type"] == "messages" for m in f["messages"])
            position = raw.until
            raw.seen.clear()
            if not done.is_set() and number < 40:
                return await take_over(number + 1, position)
            await raw.ack(position)
            while len(got) < count:
                frame = await raw.next_of("messages")
                got.extend(m["body"] for m in frame["messages"])
                await raw.ack(frame["until"])
            return raw.until

    writing = asyncio.create_task(write())
    await take_over(0, None)
    await writing
    assert got == list(range(count))
    await stack.wait_stored(bob, 0)


async def test_names_with_every_allowed_character_work(stack: Stack) -> None:
    alice, bob = user("a._~@:-") + "x" * 100, user("B") + ":@~"
    async with stack.raw(bob, "._~@:-" + "d" * 122) as raw:
        await raw.next_of("caught_up")
        await stack.send(alice, bob, [1])
        (message,) = await raw.messages(1)
        assert message["from"] == alice
        await raw.ack(message["pos"])
        await stack.wait_stored(bob, 0)
