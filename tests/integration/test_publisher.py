"""The gateway's way to a real Kafka: a message that cannot be written, or told of, is in nobody's way."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from chat_streams.kafka.names import INCOMING_MESSAGES
from chat_streams.kafka.topics import of_users
from chat_streams.model.records import Message
from clients.python.errors import RequestRefused
from docker.local.probes import WITHIN_S, eventually, user
from docker.local.temporary_stack import Stack
from gateway.publisher import Accepted, Publisher
from tests.integration.commands import call


class Connection:
    """A connection that is told of its messages; it fails when told of ``deaf``."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()

    def on_confirmed(self, accepted: list[Accepted], at: int | None) -> None:
        for each in accepted:
            self.told.put_nowait((each.message.id, at is not None))
            if each.message.id == "deaf":
                raise RuntimeError("a fault of the connection")

    def on_too_large(self, accepted: list[Accepted]) -> None:
        raise AssertionError("no record is too large here")


class Broken:
    """A body whose bytes cannot be made."""

    def __len__(self) -> int:
        return 2


async def test_an_exception_in_a_batcher_leaves_its_partition_usable(stack: Stack) -> None:
    publisher, connection, bob = Publisher(stack.settings), Connection(), user("bob")

    async def outcome_of(id_: str, body: Any = b"{}") -> bool:
        publisher.send(Accepted(Message(bob, user("alice"), id_, 1, body), connection))
        async with asyncio.timeout(WITHIN_S):
            told, ok = await connection.told.get()
        assert told == id_
        return ok

    await publisher.start()
    try:
        assert await outcome_of("first")
        assert not await outcome_of("broken", cast(bytes, Broken()))
        assert await outcome_of("deaf")
        assert await outcome_of("last")
    finally:
        await publisher.stop(WITHIN_S)


async def set_limit(stack: Stack, largest: int | None) -> None:
    """Set the largest record that ``incoming_messages`` takes; ``None`` for what it has else."""
    topic = of_users(stack.settings, 1, stack.settings.partitions)[0]
    config = topic.config | ({} if largest is None else {"max.message.bytes": str(largest)})
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.settings.kafka)
    await admin.start()
    try:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic.name, config)])
    finally:
        await admin.close()


async def test_a_message_above_a_lowered_limit_fails_alone_with_a_final_error(stack: Stack) -> None:
    alice, bob, carol = user("alice"), user("bob"), user("carol")
    large = "x" * 10_000
    async with stack.connect(alice) as client:

        async def is_refused() -> bool:
            try:
                await client.send(bob, large)
            except RequestRefused as error:
                return (error.code, error.retry) == ("too_large", False)
            return False

        await client.send(bob, "before")
        await set_limit(stack, 5_000)
        try:
            await eventually(is_refused, "the leader of the partition has the limit")
            sends = [client.send(bob, n) for n in range(5)] + [client.send(bob, large)]
            sends += [client.send(to, n) for n in range(5, 10) for to in (bob, carol)]
            results = await asyncio.gather(*sends, return_exceptions=True)
            check = await call(stack, ["topics", "check"])
        finally:
            await set_limit(stack, None)
        assert [isinstance(result, RequestRefused) for result in results] == [n == 5 for n in range(16)]
        assert check.code == 1
        assert f"topic {INCOMING_MESSAGES} takes records of 5000 bytes only" in check.err

        async def is_taken() -> bool:
            return not await is_refused()

        await eventually(is_taken, "the leader of the partition has the limit of before")
    log = stack.running["gateway"].part.log.read_text()
    assert "a record is too large" in log
    assert "max.message.bytes=5000" in log
