"""The notices about the log: each is told, a Kafka that is away is waited for, one that is no notice is passed over."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from aiokafka.errors import KafkaConnectionError

from chat_streams.kafka import log_notices
from chat_streams.kafka.generations import Generation
from chat_streams.kafka.log_notices import LogNotices
from chat_streams.kafka.names import GENERATIONS
from chat_streams.model.errors import ConsumerEnded
from chat_streams.runtime.settings import Settings

FIRST = Generation(1, "a", 8)
CLOSING = msgspec.structs.replace(FIRST, closing="attempt")
SECOND = Generation(2, "b", 16, 2)


class Kafka:
    """A Kafka with a topic of notices, whose clients may fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[bytes] = []
        self.failures: list[Exception] = []
        self.running = self.started = 0
        kafka = self

        class Consumer:
            def __init__(self, options: Mapping[str, Any], **more: Any) -> None:
                assert more["auto_offset_reset"] == "earliest"
                self._next = 0

            async def start(self) -> None:
                kafka.running += 1
                kafka.started += 1
                kafka.fail()

            async def stop(self) -> None:
                kafka.running -= 1

            def assign(self, topic: str, partition: int) -> None:
                assert (topic, partition) == (GENERATIONS, 0)

            async def poll(self, wait_s: float, most: int) -> dict[tuple[str, int], list[Any]]:
                await asyncio.sleep(0)
                kafka.fail()
                found, self._next = kafka.log[self._next :], len(kafka.log)
                return {(GENERATIONS, 0): [SimpleNamespace(value=value) for value in found]} if found else {}

        monkeypatch.setattr(log_notices, "Consumer", Consumer)
        monkeypatch.setattr(log_notices, "AGAIN_SECONDS", 0.001)

    def fail(self) -> None:
        if self.failures:
            raise self.failures.pop()

    def note(self, *notices: Generation) -> None:
        self.log += [msgspec.json.encode(notice) for notice in notices]


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Kafka:
    return Kafka(monkeypatch)


async def follow(told: list[str], count: int) -> None:
    async with asyncio.timeout(10):
        while len(told) < count:
            await asyncio.sleep(0.001)


async def test_each_notice_is_told_from_the_first_on(kafka: Kafka) -> None:
    told: list[str] = []
    kafka.note(FIRST)
    running = asyncio.create_task(LogNotices(Settings(), "a", told.append).run())
    await follow(told, 1)
    kafka.note(CLOSING)
    await follow(told, 2)
    kafka.note(FIRST)
    await follow(told, 3)
    kafka.note(CLOSING, SECOND)
    await follow(told, 5)
    running.cancel()
    assert [bool(reason) for reason in told] == [False, True, False, True, True]
    assert "CHAT_TOPICS_VERSION=2" in told[-1]


@pytest.mark.parametrize("error", [KafkaConnectionError("away"), ConsumerEnded("ended"), TimeoutError()])
async def test_a_kafka_that_is_away_is_waited_for(kafka: Kafka, error: Exception) -> None:
    told: list[str] = []
    kafka.failures = [error, error]
    kafka.note(CLOSING)
    running = asyncio.create_task(LogNotices(Settings(), "a", told.append).run())
    await follow(told, 1)
    assert kafka.started == 3
    running.cancel()
    await asyncio.wait([running])
    assert kafka.running == 0


async def test_a_record_that_is_no_notice_is_passed_over(kafka: Kafka) -> None:
    told: list[str] = []
    kafka.log = [b"{", b""]
    kafka.note(CLOSING)
    running = asyncio.create_task(LogNotices(Settings(), "a", told.append).run())
    await follow(told, 1)
    running.cancel()
    assert told[0]
