"""A publisher between connections and a Kafka, in a loop whose clock jumps to the next timer instead of waiting."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

from chat_streams.kafka.names import partition_of
from chat_streams.model.position import Position
from chat_streams.model.records import (
    INCOMING,
    Acknowledge,
    Message,
)
from chat_streams.runtime.settings import Settings
from gateway.publisher import ITEM_BYTES, Accepted, Publisher

INTERVAL = 0.010
AT = 1_800_000_000_000
"""The time of all appends."""
EMPTY = len("bobalice") + ITEM_BYTES
"""The size that a message with no id and no JSON counts with."""


class _Jumping(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise AssertionError("it waits for what never comes")
            self.now += max(0.0, timeout)
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = _Jumping()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now


class Record:
    """A record given to Kafka, which has not answered yet."""

    def __init__(self, topic: str, partition: int, value: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.topic, self.partition, self.value, self.at = topic, partition, value, loop.time()
        self.answer: asyncio.Future[int | None] = loop.create_future()

    @property
    def ids(self) -> list[str]:
        return [m.id for m in INCOMING.decode(self.value).messages]


class Kafka:
    """The publisher under test, between connections that send and a Kafka that answers when it is told to."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(partitions=1, record_interval=INTERVAL, **settings)
        self.publisher = Publisher(self.settings)
        self.publisher.produce = self._produce  # type: ignore[method-assign]
        self.records: list[Record] = []
        self.answers_at_once: bool | None = None
        self.confirmed: list[str] = []
        self.failed: list[str] = []

    async def _produce(
        self, topic: str, partition: int, value: bytes, headers: list[tuple[str, bytes]] | None = None
    ) -> int | None:
        record = Record(topic, partition, value)
        self.records.append(record)
        if self.answers_at_once is None:
            return await record.answer
        return AT if self.answers_at_once else None

    def on_confirmed(self, accepted: list[Accepted], at: int | None) -> None:
        (self.failed if at is None else self.confirmed).extend(each.message.id for each in accepted)

    def on_too_large(self, accepted: list[Accepted]) -> None:
        raise AssertionError("no record is too large here")

    def acknowledge(self, offset: int, linger: float = 0.0, flush: bool = False, user: str = "bob") -> None:
        position = Position.of(1, offset, 0)
        self.publisher.publish_acknowledgement(Acknowledge(user, "phone", position), flush=flush, linger=linger)

    def send(self, *ids: str, to: str = "bob", size: int = 0) -> None:
        for id_ in ids:
            self.publisher.send(Accepted(Message(to, "alice", id_, 1, b"x" * size), self))

    async def answer(self, ok: bool = True) -> None:
        """Answer the latest record and let that have its effect."""
        self.records[-1].answer.set_result(AT if ok else None)
        await settle()

    @property
    def ids(self) -> list[list[str]]:
        return [record.ids for record in self.records]

    @property
    def is_empty(self) -> bool:
        return self.publisher._room == self.settings.produce_buffer


async def settle() -> None:
    """Let everything run that needs no time to pass."""
    loop = asyncio.get_running_loop()
    before = loop.time()
    for _ in range(20):
        await asyncio.sleep(0)
    assert loop.time() == before


def stand_still(seconds: float) -> None:
    """Let time pass without anything being run, as for a process that was paused."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _Loop)
    loop.jumping.now += seconds


async def until(now: float) -> None:
    """Let the clock go on to a time."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(now - loop.time())
    await settle()


def one_on_each(partitions: int) -> list[str]:
    """A user on each partition."""
    return [next(u for u in map(str, range(100)) if partition_of(u, partitions) == n) for n in range(partitions)]


Scenario = Callable[[], Coroutine[Any, Any, None]]


def run(scenario: Scenario) -> None:
    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(scenario())


def in_jumping_time(scenario: Scenario) -> Callable[[], None]:
    def test() -> None:
        run(scenario)

    test.__name__ = scenario.__name__
    return test
