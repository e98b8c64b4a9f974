"""A record of a newer version ends a worker, and nothing behind the record counts as done."""

from __future__ import annotations

import asyncio

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import TopicPartition

from chat_streams.kafka.names import INBOX_REQUESTS, INCOMING_MESSAGES, partition_of
from chat_streams.model.records import MAGIC, VERSION
from clients.python.client import all_sent
from docker.local.probes import Received, eventually, user
from docker.local.temporary_stack import Stack
from tests.integration.test_dead_letters import produce

NEWER = MAGIC + bytes([VERSION + 1]) + b"\x90"


async def committed(stack: Stack, group: str, topic: str, partition: int) -> int:
    """Return the offset that a group has committed, or -1."""
    client = AIOKafkaAdminClient(bootstrap_servers=stack.settings.kafka)
    await client.start()
    try:
        found = await client.list_consumer_group_offsets(group)
        value = found.get(TopicPartition(topic, partition))
        return -1 if value is None else int(value.offset)
    finally:
        await client.close()


async def test_a_record_of_a_newer_version_ends_the_worker_and_nothing_behind_it_is_committed(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    partition = partition_of(bob, stack.settings.partitions)
    received = Received()
    async with stack.connect(alice) as sender, stack.connect(bob, received):
        all_sent(await sender.send_many((bob, n) for n in range(100)))
        await received.wait(100)
        reads = {"messaging": INCOMING_MESSAGES, "history": INCOMING_MESSAGES, "notification": INBOX_REQUESTS}
        for name, topic in reads.items():

            async def has_committed(name: str = name, topic: str = topic) -> bool:
                return await committed(stack, name, topic, partition) > 0

            await eventually(has_committed, f"{name} commits")
        # Stopped, they find the record and what is behind it in one fetch when they go on.
        workers = {name: stack.running[name] for name in ("messaging", "notification", "history")}
        for worker in workers.values():
            worker.pause()
        newer = {topic: await produce(stack, topic, partition, NEWER) for topic in (INCOMING_MESSAGES, INBOX_REQUESTS)}
        all_sent(await sender.send_many((bob, n) for n in range(100, 200)))
        await produce(stack, INBOX_REQUESTS, partition, b"behind it")
        for _ in ("the first time", "started again"):
            for name, worker in workers.items():
                worker.resume()
                await eventually(lambda: not worker.alive, f"{name} ends")  # noqa: B023
                assert worker.process.returncode != 0, name
                assert await committed(stack, name, reads[name], partition) <= newer[reads[name]], name
            for name, worker in workers.items():
                workers[name] = await asyncio.to_thread(worker.part.start)
                stack.running[name] = workers[name]
        for name in workers:
            stack.forget(workers[name])
    assert received.bodies() == list(range(100))
