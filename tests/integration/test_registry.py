"""The registry of connections survives the death of its worker."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from chat_streams.kafka.log_reader import LogReader
from chat_streams.kafka.names import OUTGOING_MESSAGES, REGISTRY_CHANGELOG
from chat_streams.model.position import ORIGIN
from chat_streams.model.records import OUTGOING, Delivery
from clients.python.client import all_sent
from docker.local.probes import Received, eventually, user
from docker.local.temporary_stack import Stack

USERS = 24


async def test_messages_go_on_after_a_sigkill_of_messaging(stack: Stack) -> None:
    alice, bobs = user("alice"), [user("bob") for _ in range(USERS)]
    offline = user("carla")
    received = {bob: Received() for bob in bobs}
    sent = 0
    async with AsyncExitStack() as connections:
        for bob in bobs:
            client = await connections.enter_async_context(stack.connect(bob, received[bob]))
            await client.wait_caught_up()
        sender = await connections.enter_async_context(stack.connect(alice))

        async def send_to_all() -> None:
            nonlocal sent
            all_sent(await sender.send_many((name, sent) for name in [*bobs, offline]))
            sent += 1

        async def write() -> None:
            while not restarted.done():
                await send_to_all()
                await asyncio.sleep(0.05)

        await send_to_all()
        old = stack.instance("messaging")
        another = stack.service("messaging")
        old.kill()
        del stack.running[old.part.name]
        restarted = asyncio.create_task(stack.start(another))
        await asyncio.gather(write(), restarted)
        await send_to_all()
        await asyncio.gather(*(r.wait(sent) for r in received.values()))
        # Delivery is live again: no message waits for its user's next request.
        for bob in bobs:
            await sender.send(bob, "live")
        await asyncio.gather(*(r.wait(sent + 1) for r in received.values()))
        await asyncio.gather(*(stack.wait_stored(bob, 0) for bob in bobs))
    assert {bob: r.bodies() for bob, r in received.items()} == {bob: [*range(sent), "live"] for bob in bobs}
    received[offline] = Received()
    async with stack.connect(offline, received[offline]) as client:
        await client.wait_caught_up()
    assert received[offline].bodies() == list(range(sent))


async def test_a_new_worker_restores_the_sessions_from_the_changelog(stack: Stack, small: str) -> None:
    """Even without an announcement by the gateway, the new worker knows its connections and pushes to them."""
    alice, bobs = user("alice"), [user("bob") for _ in range(USERS)]
    gateway = stack.running[next(name for name, r in stack.running.items() if r.part.url == small)]
    consumer = AIOKafkaConsumer(bootstrap_servers=stack.settings.kafka, enable_auto_commit=False)
    await consumer.start()
    consumer.assign([TopicPartition(OUTGOING_MESSAGES, slot) for slot in range(stack.settings.slots)])
    await consumer.seek_to_end()
    pushed: dict[str, Delivery] = {}

    async def all_pushed() -> bool:
        for records in (await consumer.getmany(timeout_ms=100)).values():
            for record in records:
                pushed.update({i.user: i for i in OUTGOING.decode(record.value) if isinstance(i, Delivery) and i.count})
        return pushed.keys() >= set(bobs)

    async def in_changelog() -> bool:
        async with LogReader(stack.settings) as reader:
            rows = [record.key async for record in reader.read(await reader.spans(REGISTRY_CHANGELOG))]
        return {bob.encode() for bob in bobs} <= set(rows)

    async with AsyncExitStack() as connections:
        sockets = [await connections.enter_async_context(stack.raw(bob, url=small)) for bob in bobs]
        for raw in sockets:
            await raw.next_of("caught_up")
        # Faust writes a table's changes in the background: a worker that is killed at once may lose some.
        await eventually(in_changelog, what="the registry's rows in its changelog")
        try:
            gateway.pause()
            old = stack.instance("messaging")
            another = stack.service("messaging")
            old.kill()
            del stack.running[old.part.name]
            await stack.start(another)
            async with stack.connect(alice) as sender:
                all_sent(await sender.send_many((bob, "hello") for bob in bobs))
            await eventually(all_pushed, "pushes for all connections of the paused gateway")
        finally:
            gateway.resume()
            await consumer.stop()
        for bob, raw in zip(bobs, sockets, strict=True):
            (message,) = await raw.messages(1)
            assert message["body"] == "hello"
            assert pushed[bob].after == ORIGIN
            await raw.ack(message["pos"])
            await stack.wait_stored(bob, 0)
