"""Reading a slot: which errors end the gateway, and which are waited out."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from chat_streams.model.errors import ConsumerEnded
from chat_streams.model.records import OUTGOING, Announce
from chat_streams.runtime.settings import Settings
from gateway import slot_consumer as module
from gateway.slot_consumer import SlotConsumer


class Kafka:
    """A stand-in for the client: its polls return, or raise, what the test puts in."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self.stopped = False

    async def start(self) -> None: ...

    async def stop(self) -> None:
        self.stopped = True
        self.answers.put_nowait(ConsumerEnded("stopped"))

    async def assign_end(self, topic: str, partition: int) -> None: ...

    async def poll(self, wait_s: float, most: int) -> Any:
        answer = await self.answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return {"tp": [SimpleNamespace(topic="t", partition=0, offset=0, value=value, headers=()) for value in answer]}


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[Kafka]:
    found: list[Kafka] = []

    def new(*_: Any, **__: Any) -> Kafka:
        found.append(Kafka())
        return found[-1]

    monkeypatch.setattr(module, "Consumer", new)
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.0)
    return found


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_cannot_be_read_is_passed_over_and_the_next_slot_read(clients: list[Kafka]) -> None:
    received: list[Any] = []
    consumer = SlotConsumer(Settings(), lambda items, _: received.append(items))
    reading = asyncio.create_task(consumer.run())
    await consumer.open(1)
    clients[0].answers.put_nowait(KafkaConnectionError())
    clients[0].answers.put_nowait([b"\xff", OUTGOING.encode((Announce((1,)),))])
    await turns()
    assert received == [(Announce((1,)),)]
    await consumer.open(2)
    assert clients[0].stopped
    clients[1].answers.put_nowait([OUTGOING.encode((Announce((2,)),))])
    await turns()
    assert received[1:] == [(Announce((2,)),)]
    assert not reading.done()
    reading.cancel()


async def test_a_record_that_cannot_be_taken_ends_no_reading(clients: list[Kafka]) -> None:
    received: list[Any] = []

    def receive(items: Any, _: Any) -> None:
        received.append(items)
        if len(received) == 1:
            raise ValueError("broken")

    consumer = SlotConsumer(Settings(), receive)
    reading = asyncio.create_task(consumer.run())
    await consumer.open(1)
    for number in (1, 2):
        clients[0].answers.put_nowait([OUTGOING.encode((Announce((number,)),))])
    await turns()
    assert received == [(Announce((1,)),), (Announce((2,)),)]
    assert not reading.done()
    reading.cancel()


async def test_a_consumer_that_can_receive_nothing_more_ends_the_reading(clients: list[Kafka]) -> None:
    consumer = SlotConsumer(Settings(), lambda *_: None)
    reading = asyncio.create_task(consumer.run())
    await consumer.open(1)
    clients[0].answers.put_nowait(ConsumerEnded("by an error"))
    with pytest.raises(ConsumerEnded):
        await reading
