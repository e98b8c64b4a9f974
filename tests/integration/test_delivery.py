"""Messages that were accepted arrive, in each sender's order, once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
from typing import Any

from chat_streams.kafka.log_reader import LogReader
from chat_streams.kafka.names import OUTGOING_MESSAGES, partition_of
from chat_streams.model.records import OUTGOING, PUSH, Delivery, InboxAdvanced
from clients.python.client import Message, all_sent
from docker.local.probes import Received, abort_client, eventually, user
from docker.local.temporary_stack import Stack

BODIES: tuple[Any, ...] = (
    "plain",
    "Übermorgen, Завтра, غدا, 明日, 👩🏽‍🚀👨‍👩‍👧‍👦",
    'quotes " and \\ and \n and \t and \u2028 and \x7f',
    {"nested": {"list": [1, -2.5, True, None, {}], "pos": "0-1", "": ""}},
    [],
    0,
    False,
    None,
    9_007_199_254_740_993,
    "x" * 60_000,
)


def same_partition(stack: Stack, *names: str) -> bool:
    return len({partition_of(name, stack.settings.partitions) for name in names}) == 1


def by_sender(messages: list[Message]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for message in messages:
        found.setdefault(message.sender, []).append(message.body)
    return found


async def test_what_was_sent_to_an_offline_user_arrives_on_connecting(stack: Stack) -> None:
    bob, senders = user("bob"), [user("sender") for _ in range(3)]
    bodies = {sender: [*BODIES, *(f"{sender} {n}" for n in range(90))] for sender in senders}
    await asyncio.gather(*(stack.send(sender, bob, bodies[sender]) for sender in senders))
    await stack.wait_stored(bob, 300)
    received = Received()
    async with stack.connect(bob, received) as client:
        await client.wait_caught_up()
        assert by_sender(received.messages) == bodies
        await stack.wait_stored(bob, 0)
        await stack.send(senders[0], bob, ["live"])
        await received.wait(301)
    assert received.messages[-1].body == "live"
    assert len(received.messages) == 301


async def test_a_body_reaches_the_recipient_as_the_same_text(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    body = '{"b": 1.10, "a":1e2,  "big":123456789012345678901234567890, "a":"\\u00e9"}'
    async with stack.raw(alice) as sender, stack.socket() as raw:
        await sender.send_text(f'{{"type":"send","id":"m","to":"{bob}","body":{body}}}')
        await sender.next_of("sent")
        await raw.hello(stack.token(bob))
        frame = await raw.next_of("messages")
    assert frame["messages"][0]["body"] == json.loads(body)


async def test_the_unacknowledged_rest_comes_again_after_a_death(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    await stack.send(alice, bob, range(30))
    await stack.wait_stored(bob, 30)
    async with stack.raw(bob) as raw:
        first = await raw.messages(30)
        await raw.ack(first[11]["pos"])
        await stack.wait_stored(bob, 18)
        raw.abort()
    # The gateway may still consider the dead connection alive.
    await stack.send(alice, bob, range(30, 35))
    async with stack.raw(bob) as raw:
        assert raw.until == first[11]["pos"]
        again = await raw.messages(23)
    assert [m["body"] for m in again] == list(range(12, 35))
    assert again[:18] == first[12:]


async def test_a_cursor_kept_by_the_client_stands_in_for_a_lost_ack(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    await stack.send(alice, bob, range(30))
    await stack.wait_stored(bob, 30)
    async with stack.raw(bob) as raw:
        first = await raw.messages(30)
        raw.abort()
    async with stack.raw(bob, after=first[19]["pos"]) as raw:
        assert raw.until == first[19]["pos"]
        assert [m["body"] for m in await raw.messages(10)] == list(range(20, 30))


async def test_an_inbox_of_100_000_messages_is_delivered(stack: Stack) -> None:
    bob, senders, count = user("bob"), [user("alice"), user("carla")], 50_000
    await asyncio.gather(*(stack.send(sender, bob, range(count)) for sender in senders))
    await stack.wait_stored(bob, 2 * count)
    received = Received()
    async with stack.connect(bob, received) as client:
        await received.wait(2 * count)
        await client.wait_caught_up()
        await stack.wait_stored(bob, 0)
    assert len(received.messages) == 2 * count
    for sender in senders:
        assert received.bodies(sender) == list(range(count))


async def test_each_sender_keeps_its_order_while_the_recipient_comes_and_goes(stack: Stack) -> None:
    bob, senders, count = user("bob"), [user("sender") for _ in range(3)], 400
    received = Received()
    done = asyncio.Event()
    turns = 0
    sent: dict[str, int] = {}

    async def write(sender: str) -> None:
        async with stack.connect(sender) as client:
            for start in itertools.count(0, 8):
                if start >= count and turns > 10:
                    break
                all_sent(await client.send_many((bob, n) for n in range(start, start + 8)))
                sent[sender] = start + 8
                await asyncio.sleep(random.uniform(0, 0.1))

    async def come_and_go() -> None:
        # The program on the device ends each time, and keeps the position of the last message it received.
        nonlocal turns
        while not done.is_set():
            after = received.messages[-1].pos if received.messages else None
            async with stack.connect(bob, received, after=after) as client:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(random.uniform(0, 0.15)):
                        await done.wait()
                if turns % 2:
                    abort_client(client)
            turns += 1

    going = asyncio.create_task(come_and_go())
    try:
        await asyncio.gather(*map(write, senders))
    finally:
        done.set()
        await going
    after = received.messages[-1].pos if received.messages else None
    async with stack.connect(bob, received, after=after) as client:
        await client.wait_caught_up()
        await stack.wait_stored(bob, 0)
    assert by_sender(received.messages) == {sender: list(range(sent[sender])) for sender in senders}


async def test_a_client_that_loses_its_connection_gets_each_message_once(stack: Stack) -> None:
    alice, bob, count = user("alice"), user("bob"), 300
    received = Received()
    async with stack.connect(alice) as sender, stack.connect(bob, received) as client:
        for start in range(0, count, 75):
            all_sent(await sender.send_many((bob, n) for n in range(start, start + 75)))
            abort_client(client)
            abort_client(sender)
        await received.wait(count)
        await stack.wait_stored(bob, 0)
    assert received.bodies() == list(range(count))


async def test_a_message_sent_again_is_confirmed_again_and_delivered_once(stack: Stack) -> None:
    alice, bob, carla = user("alice"), user("bob"), user("carla")
    received = Received()
    async with stack.connect(alice) as sender, stack.connect(carla) as other:
        # While bob is offline, while he is online, and after he has acknowledged it.
        first = await sender.send(bob, "one", id="same")
        assert (await sender.send(bob, "one", id="same")).id == first.id
        async with stack.connect(bob, received) as client:
            await client.wait_caught_up()
            await stack.wait_stored(bob, 0)
            await sender.send(bob, "one", id="same")
            # The same id of another sender is another message.
            await other.send(bob, "other", id="same")
            await sender.send(bob, "end")
            await eventually(lambda: "end" in received.bodies())
            assert received.bodies() == ["one", "other", "end"]
        async with stack.raw(alice, "second") as raw:
            frame = {"type": "send", "id": "twice", "to": bob, "body": "twice"}
            await raw.send(frame, frame)
            assert [(await raw.next_of("sent"))["id"] for _ in range(2)] == ["twice", "twice"]
        async with stack.connect(bob, received) as client:
            await client.wait_caught_up()
            await stack.wait_stored(bob, 0)
    assert received.bodies() == ["one", "other", "end", "twice"]


async def test_a_window_that_is_never_acknowledged_stops_the_forwarding(stack: Stack, small: str) -> None:
    alice, bob, window = user("alice"), user("bob"), 50
    carol = next(name for name in iter(user, "") if same_partition(stack, name, bob))
    await stack.send(alice, bob, range(600))
    await stack.wait_stored(bob, 600)
    async with stack.raw(bob, url=small) as raw, stack.raw(carol, url=small) as other:
        got = await raw.messages(window)
        # Live messages must not pass the closed window either.
        await stack.send(alice, bob, range(600, 620))
        await stack.wait_stored(bob, 620)
        # Carol's message was behind bob's all the way, and the pong is behind all the gateway has for bob.
        await stack.send(alice, carol, ["behind"])
        await other.messages(1)
        await raw.ping()
        got = [m for frame in raw.seen if frame["type"] == "messages" for m in frame["messages"]]
        assert len(got) <= 2 * window
        assert [m["body"] for m in got] == list(range(len(got)))
        await raw.ack(got[-1]["pos"])
        while len(got) < 620:
            frame = await raw.next_of("messages")
            got += frame["messages"]
            await raw.ack(frame["until"])
        assert [m["body"] for m in got] == list(range(620))
        await stack.wait_stored(bob, 0)


async def test_what_is_too_large_for_one_delivery_is_pushed_in_several(stack: Stack) -> None:
    """Messages come while messaging is busy: fetched in pages, they would go through Redis and Kafka a second time."""
    alice, bob, count = user("alice"), user("bob"), 30
    bodies = [f"{n} {'x' * 60_000}" for n in range(count)]
    received = Received()
    messaging = stack.instance("messaging")
    async with stack.connect(bob, received) as client, LogReader(stack.settings) as reader:
        await client.wait_caught_up()
        spans = await reader.spans(OUTGOING_MESSAGES)
        messaging.pause()
        try:
            await stack.send(alice, bob, bodies)
        finally:
            messaging.resume()
        await received.wait(count)
        ends = await reader.ends(OUTGOING_MESSAGES, [s.partition for s in spans])
        written = [
            item
            async for record in reader.read([s._replace(first=s.end, end=ends[s.partition]) for s in spans])
            for item in OUTGOING.decode(record.value)
            if isinstance(item, Delivery | InboxAdvanced) and item.user == bob
        ]
    assert received.bodies() == bodies
    assert len(written) > 1
    assert all(isinstance(item, Delivery) and item.request == PUSH for item in written), written
    assert sum(item.count for item in written if isinstance(item, Delivery)) == count


async def test_a_user_may_write_to_himself(stack: Stack) -> None:
    bob = user("bob")
    received = Received()
    async with stack.connect(bob, received) as client:
        all_sent(await client.send_many((bob, n) for n in range(10)))
        await received.wait(10)
    assert received.bodies() == list(range(10))
