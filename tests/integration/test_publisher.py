"""The gateway's way to a real Kafka: a message that cannot be written, or told of, is in nobody's way."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from chat_streams.model.records import Message
from docker.local.probes import WITHIN_S, user
from docker.local.temporary_stack import Stack
from gateway.publisher import Accepted, Publisher


class Connection:
    """A connection that is told of its messages; it fails when told of ``deaf``."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()

    def on_confirmed(self, accepted: list[Accepted], at: int | None) -> None:
        for each in accepted:
            self.told.put_nowait((each.message.id, at is not None))
            if each.message.id == "deaf":
                raise RuntimeError("a fault of the connection")


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
