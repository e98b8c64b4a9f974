"""The history of conversations, and of messages that an inbox has lost."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import pytest

from chat_streams.model.codes import ErrorCode
from chat_streams.model.position import Position
from chat_streams.model.records import Message
from chat_streams.model.times import now_ms
from clients.python import client as sdk
from clients.python.client import Client, all_sent
from clients.python.errors import RequestRefused
from docker.local.probes import Received, eventually, user
from docker.local.temporary_stack import Stack
from gateway.protocol import at_text
from tables.chat_history import ChatHistory, Entry
from tables.inbox import keys

LAST = f"{(1 << 64) - 1}-0"


async def all_pages(client: Client, other: str, limit: int) -> list[sdk.Message]:
    """Return a whole conversation, read page by page, backwards."""
    messages: list[sdk.Message] = []
    cursor = None
    while True:
        page = await client.history(other, cursor, limit)
        assert len(page.messages) <= limit
        messages = page.messages + messages
        if (cursor := page.before) is None:
            return messages
        assert len(page.messages) == limit


async def wait_kept(client: Client, other: str, count: int) -> None:
    async def is_so() -> bool:
        return len(await all_pages(client, other, 200)) == count

    await eventually(is_so, what=f"{count} messages with {other} in history")


async def test_a_conversation_is_the_same_from_both_sides_page_by_page(stack: Stack) -> None:
    alice, bob, carla = user("alice"), user("bob"), user("carla")
    sent: list[tuple[str, int]] = []
    async with stack.connect(alice) as a, stack.connect(bob, Received()) as b, stack.connect(carla) as c:
        for number in range(45):
            sender, client, to = ((alice, a, bob), (bob, b, alice))[number % 3 == 0]
            await client.send(to, number)
            sent.append((sender, number))
            if number % 5 == 0:
                await c.send(bob, number)
        await asyncio.gather(wait_kept(a, bob, 45), wait_kept(b, carla, 9))
        for limit in (1, 7, 9, 45, 200):
            views = await all_pages(a, bob, limit), await all_pages(b, alice, limit)
            assert views[0] == views[1]
            # Each was sent when the one before was in the log.
            assert [(m.sender, m.body) for m in views[0]] == sent
            assert [m.at for m in views[0]] == sorted(m.at for m in views[0])
        latest = await a.history(bob, limit=10)
        assert [m.body for m in latest.messages] == list(range(35, 45))
        assert (await all_pages(c, alice, 10)) == []


async def test_messages_of_one_millisecond_are_in_the_order_of_the_log(stack: Stack) -> None:
    alice, bob, received = user("alice"), user("bob"), Received()
    count = 600
    async with stack.connect(alice) as client, stack.connect(bob, received):
        all_sent(await client.send_many((bob, n) for n in range(count)))
        await received.wait(count)
        await eventually_last(client, bob, count - 1)
        times = {m.at for m in received.messages}
        assert len(times) < count // 4, "many have the same time"
        for limit in (7, 200):
            found = await all_pages(client, bob, limit)
            assert [m.body for m in found] == list(range(count))
            assert [(m.pos, m.at) for m in found] == [(m.pos, m.at) for m in received.messages]


async def test_rows_of_before_are_read_among_new_ones(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    async with stack.connect(alice) as client:
        first = await client.send(bob, "first")
        old = first_ms = int(datetime.fromisoformat(first.at).timestamp() * 1000)
        await eventually(lambda: now_ms() > first_ms + 10)
        history = ChatHistory(stack.settings)
        try:
            json_ = b',"id":"old-%d","from":"%b","at":"%b","body":%d}'
            entries = [
                Entry(
                    Position.of(1, 7, n),
                    old + 9,
                    Message(bob, alice, f"old-{n}", at, json_ % (n, alice.encode(), at_text(at).encode(), n)),
                )
                for n, at in ((1, old + 1), (2, old + 2), (0, old - 1))
            ]
            await history.put(entries)
            # Written again, as after a restart of the worker, they are the same rows.
            await history.put(entries[::-1])
            assert await history.missing(entries) == []
        finally:
            await history.close()
        await client.send(bob, "last")
        await eventually_last(client, bob, "last")
        for limit in (1, 2, 200):
            assert [m.body for m in await all_pages(client, bob, limit)] == [0, "first", 1, 2, "last"]


async def test_a_cursor_that_no_page_returned_is_refused(stack: Stack) -> None:
    alice, bob, carol = user("alice"), user("bob"), user("carol")
    async with stack.connect(alice) as client:
        for to in (bob, carol):
            all_sent(await client.send_many((to, n) for n in range(3)))
            await wait_kept(client, to, 3)
        given = (await client.history(bob, None, 1)).before
        assert given is not None
        assert [m.body for m in (await client.history(bob, given, 5)).messages] == [0, 1]
        ms, rest = given[:13], given[13:]
        wrong = ["x", given[:-1], f"{int(ms) + 1}{rest}", f"{ms}#m#{alice}", "0" * 13 + "#m#n", "9" * 13 + rest]
        for cursor in wrong:
            with pytest.raises(RequestRefused, match="cursor") as refused:
                await client.history(bob, cursor, 5)
            assert refused.value.code == ErrorCode.BAD_FRAME
        with pytest.raises(RequestRefused, match="cursor"):
            await client.history(carol, given, 5)
    await stack.wait_stored(bob, 3)
    until = str(await stack.top(bob))
    async with stack.connect(bob) as client:
        page = await client.history_range("0-0", until, None, 1)
        assert page.before is not None
        assert [m.body for m in (await client.history_range("0-0", until, page.before, 5)).messages] == [0, 1]
        for cursor in ("0-0", "5-5", LAST, "x"):
            with pytest.raises(RequestRefused, match=r"cursor|position"):
                await client.history_range("0-0", until, cursor, 5)
        # One of another range.
        with pytest.raises(RequestRefused, match="cursor"):
            await client.history_range(page.before, until, page.before, 5)


async def test_a_message_sent_again_is_in_history_once(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    async with stack.connect(alice) as client:
        first = await client.send(bob, 1, id="same")
        await eventually(lambda: at_text(now_ms()) > first.at, "the next one is accepted at another time")
        await client.send(bob, 1, id="same")
        await client.send(bob, 2)
        await eventually_last(client, bob, 2)
        assert [m.body for m in await all_pages(client, bob, 10)] == [1, 2]


async def eventually_last(client: Client, other: str, body: Any) -> None:
    async def is_so() -> bool:
        messages = await all_pages(client, other, 200)
        return bool(messages) and messages[-1].body == body

    await eventually(is_so, what=f"{body} is the last message with {other}")


async def test_a_range_of_positions_returns_its_messages(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    await stack.send(alice, bob, range(30))
    async with stack.raw(bob) as raw:
        got = await raw.messages(30)
    async with stack.connect(bob) as client:
        await wait_kept(client, alice, 30)
        whole = await client.history_range("0-0", got[-1]["pos"], limit=200)
        assert [(m.pos, m.id, m.body, m.at, m.sender) for m in whole.messages] == [
            (m["pos"], m["id"], m["body"], m["at"], m["from"]) for m in got
        ]
        assert whole.before is None
        # A position that no message has yet is nothing to wait for.
        with pytest.raises(RequestRefused) as refused:
            await client.history_range(got[19]["pos"], LAST)
        assert (refused.value.code, refused.value.retry) == ("bad_frame", False)
        # Half-open: (after, until].
        some = await client.history_range(got[4]["pos"], got[9]["pos"])
        assert [m.body for m in some.messages] == [5, 6, 7, 8, 9]
        assert (await client.history_range(got[4]["pos"], got[4]["pos"])).messages == []
        assert (await client.history_range(got[9]["pos"], got[4]["pos"])).messages == []
        pages, cursor = [], None
        while True:
            page = await client.history_range(got[4]["pos"], got[27]["pos"], cursor, limit=5)
            pages.append([m.body for m in page.messages])
            if (cursor := page.before) is None:
                break
        assert pages == [
            [23, 24, 25, 26, 27],
            [18, 19, 20, 21, 22],
            [13, 14, 15, 16, 17],
            [8, 9, 10, 11, 12],
            [5, 6, 7],
        ]


async def expire(stack: Stack, name: str) -> None:
    """Expire the inbox of a user now, as Redis does when nobody touched it for 30 days."""
    key = keys(name)[0]
    await stack.redis.pexpire(key, 1)

    async def is_gone() -> bool:
        return not await stack.redis.exists(key)

    await eventually(is_gone)


async def test_what_an_expired_inbox_held_is_announced_and_in_history(stack: Stack) -> None:
    alice, bob, received = user("alice"), user("bob"), Received()
    async with stack.connect(alice) as sender:
        await sender.send(bob, 0)
        async with stack.connect(bob, received) as client:
            await received.wait(1)
            await stack.wait_stored(bob, 0)
        all_sent(await sender.send_many((bob, n) for n in range(1, 6)))
        await stack.wait_stored(bob, 5)
        await wait_kept(sender, bob, 6)
        await expire(stack, bob)
        missed: list[tuple[str, str]] = []

        async def on_missed(after: str, until: str) -> None:
            missed.append((after, until))

        kept = received.messages[0].pos
        async with stack.connect(bob, received, after=kept, on_missed=on_missed) as client:
            assert client.welcome is not None
            assert client.welcome.after == kept
            await eventually(lambda: missed)
            assert missed[0][0] == kept
            page = await client.history_range(*missed[0])
            assert [m.body for m in page.messages] == [1, 2, 3, 4, 5]
            # The very next record of the log is not among the messages missed.
            await sender.send(bob, 6)
            await received.wait(2)
        assert received.bodies() == [0, 6]
        assert len(missed) == 1
