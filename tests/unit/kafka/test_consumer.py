"""The client that reads Kafka: starting and stopping it, and the errors that mean nothing more will come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import CommitFailedError, KafkaConnectionError, KafkaError, TopicAuthorizationFailedError
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from chat_streams.kafka import consumer as module
from chat_streams.kafka.consumer import Consumer
from chat_streams.model.errors import ConsumerEnded

TP = TopicPartition("t", 0)


class Client:
    """A stand-in for aiokafka's consumer: each of its coroutines does what ``during`` has for its name."""

    def __init__(self, **_: Any) -> None:
        self.story: list[str] = []
        self.during: dict[str, Callable[[], Any]] = {}
        self._fetcher = SimpleNamespace(error_future=asyncio.get_running_loop().create_future())
        self._client = SimpleNamespace(close=lambda: self._do("close"))

    async def _do(self, name: str) -> Any:
        found = self.during[name]() if name in self.during else None
        if asyncio.iscoroutine(found):
            await found
        self.story.append(name)

    async def start(self) -> None:
        await self._do("start")

    async def stop(self) -> None:
        await self._do("stop")

    async def getmany(self, *_: Any, **__: Any) -> dict[Any, Any]:
        await self._do("getmany")
        return {}

    async def commit(self, offsets: Any) -> None:
        await self._do("commit")


def fail(error: BaseException) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    found = Client()
    monkeypatch.setattr(module, "AIOKafkaConsumer", lambda **_: found)
    return found


@pytest.fixture
async def consumer(client: Client) -> Consumer:
    found = Consumer({}, group_id="g")
    await found.start()
    return found


@pytest.mark.parametrize("fails", [False, True])
async def test_one_that_is_starting_has_started_before_it_is_stopped(client: Client, fails: bool) -> None:
    connecting, connected = asyncio.Event(), asyncio.Event()

    async def connect() -> None:
        connecting.set()
        await connected.wait()
        if fails:
            client.story.append("start")
            raise ConnectionError

    client.during["start"] = connect
    starting = asyncio.create_task(Consumer({}).start())
    await connecting.wait()
    starting.cancel()
    await asyncio.sleep(0)
    connected.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert client.story == ["start", "stop"]


async def test_one_that_does_not_stop_is_disconnected(
    client: Client, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_SECONDS", 0.0)
    client.during["stop"] = lambda: asyncio.Event().wait()
    await consumer.stop()
    assert client.story == ["start", "close"]


async def test_a_cancellation_that_comes_out_of_its_stop_goes_no_further(client: Client, consumer: Consumer) -> None:
    # aiokafka cancels a fetch that waits to be made again, awaits it, and passes its cancellation on. A gateway whose
    # lease had run out ended its search for a slot by that, and nobody was told.
    client.during["stop"] = fail(asyncio.CancelledError())
    await consumer.stop()
    assert client.story == ["start", "close"]


async def test_an_ended_fetcher_is_noticed(client: Client, consumer: Consumer) -> None:
    assert await consumer.poll(0, 1) == {}
    client._fetcher.error_future.set_result(None)
    with pytest.raises(ConsumerEnded):
        await consumer.poll(0, 1)


async def test_an_ended_coordination_is_noticed(client: Client, consumer: Consumer) -> None:
    client.during["getmany"] = fail(KafkaError("Unexpected error during coordination"))
    with pytest.raises(ConsumerEnded):
        await consumer.poll(0, 1)


async def test_an_error_that_may_heal_is_no_end(client: Client, consumer: Consumer) -> None:
    client.during["getmany"] = fail(TopicAuthorizationFailedError("t"))
    with pytest.raises(TopicAuthorizationFailedError):
        await consumer.poll(0, 1)


@pytest.mark.parametrize("error", [CommitFailedError(), KafkaConnectionError(), TimeoutError()])
async def test_a_commit_that_kafka_does_not_take_is_told(
    client: Client, consumer: Consumer, error: BaseException
) -> None:
    offsets = {TP: OffsetAndMetadata(1, "")}
    assert await consumer.commit(offsets, 1.0)
    client.during["commit"] = fail(error)
    assert not await consumer.commit(offsets, 1.0)


async def test_what_a_coordinator_does_not_answer_is_not_taken_for_uncommitted(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # aiokafka's admin client answers with nothing where the whole request failed: a partition would begin anew.
    answers: list[dict[TopicPartition, OffsetAndMetadata]] = [{}, {TP: OffsetAndMetadata(-1, "")}]

    class Admin:
        def __init__(self, **_: Any) -> None: ...

        async def start(self) -> None: ...

        async def close(self) -> None: ...

        async def list_consumer_group_offsets(self, group: str, partitions: Any) -> Any:
            return answers.pop(0)

    monkeypatch.setattr(module, "AIOKafkaAdminClient", Admin)
    with pytest.raises(KafkaError):
        await consumer.committed([TP])
    assert await consumer.committed([TP]) == {}
