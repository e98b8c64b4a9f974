"""The hub's acknowledgements: one that Kafka did not take is written again, since its device has no reason to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from chat_streams.kafka.names import INBOX_REQUESTS
from chat_streams.model.position import ORIGIN, Position
from chat_streams.model.records import Acknowledge, Fetch
from chat_streams.runtime.settings import Settings
from gateway import hub as module
from gateway.hub import Hub
from gateway.publisher import Publisher
from tables.slots import Slots


class Log:
    """A publisher that keeps acknowledgements and says of each whether Kafka took it."""

    def __init__(self) -> None:
        self.on_logged: dict[str, Callable[[list[Any], bool], None]] = {}
        self.written: list[Acknowledge] = []
        self.takes = True

    def publish_acknowledgement(self, acknowledge: Acknowledge, *, flush: bool = False, linger: float = 0.0) -> None:
        self.written.append(acknowledge)
        self.on_logged[INBOX_REQUESTS]([acknowledge], self.takes)


class Holder:
    """The slots, of which none is held."""

    async def release(self, *_: object) -> None: ...


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    monkeypatch.setattr(module, "ACKNOWLEDGE_AGAIN", 0.001)
    return Log()


@pytest.fixture
async def hub(log: Log) -> Hub:
    return Hub(Settings(), cast(Publisher, log), cast(Slots, Holder()))


def ack(offset: int, user: str = "bob", device: str = "phone") -> Acknowledge:
    return Acknowledge(user, device, Position.of(1, offset, 0))


async def some_time() -> None:
    await asyncio.sleep(0.02)


async def test_acknowledgements_are_written_again_until_kafka_takes_them(hub: Hub, log: Log) -> None:
    log.takes = False
    fetch = Fetch("bob", b"c", 1, 1, 1, ORIGIN, 1, 1, 0)
    # The highest of a device covers the others.
    log.on_logged[INBOX_REQUESTS]([ack(5), fetch, ack(4), ack(1, "carla"), ack(3, device="tv")], False)
    await some_time()
    log.takes = True
    await some_time()
    log.written.clear()
    await some_time()
    assert log.written == [], "all are logged"
    log.takes = False
    log.on_logged[INBOX_REQUESTS]([ack(5), ack(4), ack(1, "carla"), ack(3, device="tv")], False)
    log.takes = True
    await some_time()
    assert sorted(log.written, key=lambda one: one.position) == [ack(1, "carla"), ack(3, device="tv"), ack(5)]


async def test_what_is_logged_is_not_written_again(hub: Hub, log: Log) -> None:
    log.on_logged[INBOX_REQUESTS]([ack(5)], True)
    await some_time()
    assert log.written == []


async def test_only_so_many_acknowledgements_wait(hub: Hub, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_UNLOGGED", 3)
    log.on_logged[INBOX_REQUESTS]([ack(n, str(n)) for n in range(10)], False)
    await some_time()
    assert log.written == [ack(n, str(n)) for n in (7, 8, 9)]


async def test_a_hub_that_is_closed_writes_nothing_more(hub: Hub, log: Log) -> None:
    log.on_logged[INBOX_REQUESTS]([ack(5)], False)
    await hub.close()
    await some_time()
    assert log.written == []
