"""The watch on topics: it ends by one that was made anew, and by nothing that passes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from structlog.testing import capture_logs

from chat_streams.kafka import topic_watch
from chat_streams.kafka.metadata import TopicMetadata
from chat_streams.kafka.names import DEAD_LETTERS, INCOMING_MESSAGES, OUTGOING_MESSAGES, SERVICE_STATS, SESSION_EVENTS
from chat_streams.kafka.topic_watch import TopicWatch, made_anew
from chat_streams.kafka.topics import NEEDS
from chat_streams.model.errors import TopicsError
from chat_streams.runtime.settings import Settings

IDS = {name: f"id of {name}" for name in {name for needs in NEEDS.values() for name in needs}}


def topic(id_: str) -> TopicMetadata:
    return TopicMetadata(id_, 8, 1, 0)


class Kafka:
    """A Kafka that answers with the topics it has, or with an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.topics = dict(IDS)
        self.error: Exception | None = None
        self.asked: list[list[str]] = []
        self.clients = self.closed = 0
        kafka = self

        class Client:
            def __init__(self, **options: Any) -> None:
                kafka.clients += 1

            async def start(self) -> None:
                if kafka.error is not None:
                    raise kafka.error

            async def close(self) -> None:
                kafka.closed += 1

        monkeypatch.setattr(topic_watch, "AIOKafkaAdminClient", Client)
        monkeypatch.setattr(topic_watch, "topics_of", self._topics_of)
        monkeypatch.setattr(topic_watch, "LOOK_SECONDS", 0.001)
        monkeypatch.setattr(topic_watch, "AGAIN_SECONDS", 0.001)

    async def _topics_of(self, client: Any, names: Sequence[str]) -> tuple[dict[str, TopicMetadata], set[str]]:
        self.asked.append(list(names))
        if self.error is not None:
            raise self.error
        return {name: topic(self.topics[name]) for name in names if name in self.topics}, set()

    async def looks(self, count: int) -> None:
        """Wait for so many looks more."""
        wanted = len(self.asked) + self.clients + count
        async with asyncio.timeout(10):
            while len(self.asked) + self.clients < wanted:
                await asyncio.sleep(0.001)


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Kafka:
    return Kafka(monkeypatch)


def test_only_a_topic_that_exists_under_another_id_was_made_anew() -> None:
    ids = {"a": "1", "b": "2", "c": "3"}
    assert made_anew(ids, {"a": topic("1"), "b": topic("4")}) == ["b"]
    assert made_anew(ids, {}) == []


async def during(work: Callable[[], Awaitable[None]], watch: TopicWatch) -> asyncio.Task[Any]:
    """Do work while a watch runs; returns the task of the watch."""
    running = asyncio.create_task(watch.run())
    await work()
    return running


async def test_the_watch_ends_with_a_clear_error_when_a_topic_is_made_anew(kafka: Kafka) -> None:
    async def make_anew() -> None:
        await kafka.looks(2)
        kafka.topics[INCOMING_MESSAGES] = "another id"

    running = await during(make_anew, TopicWatch(Settings(), "gateway", IDS))
    with pytest.raises(TopicsError, match=f"topic {INCOMING_MESSAGES} was deleted and made anew.*topics create"):
        await asyncio.wait_for(running, 10)
    assert (kafka.clients, kafka.closed) == (1, 1)
    assert kafka.asked[0] == sorted(NEEDS["gateway"].keys() - {SERVICE_STATS})


async def test_a_service_watches_what_it_reads_or_writes_to_and_no_log_without_offsets(kafka: Kafka) -> None:
    await TopicWatch(Settings(), "history", IDS).look()
    assert kafka.asked == [[INCOMING_MESSAGES]]
    kafka.topics[DEAD_LETTERS] = kafka.topics[SERVICE_STATS] = kafka.topics[SESSION_EVENTS] = "another id"
    await TopicWatch(Settings(), "history", IDS).look()


async def test_a_kafka_that_is_away_and_a_topic_that_is_missing_for_a_moment_end_nothing(kafka: Kafka) -> None:
    async def go_away_and_come_back() -> None:
        await kafka.looks(2)
        kafka.error = KafkaConnectionError("away")
        await kafka.looks(4)
        kafka.error = None
        del kafka.topics[OUTGOING_MESSAGES]
        await kafka.looks(3)
        kafka.topics[OUTGOING_MESSAGES] = IDS[OUTGOING_MESSAGES]
        await kafka.looks(2)

    with capture_logs() as lines:
        running = await during(go_away_and_come_back, TopicWatch(Settings(), "gateway", IDS))
    assert not running.done()
    running.cancel()
    assert [line["topics"] for line in lines if line["event"] == "a topic is missing"] == [[OUTGOING_MESSAGES]]
    assert kafka.clients > 2


async def test_a_suspicion_is_looked_into_at_once_and_kept_while_kafka_is_away(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_watch, "LOOK_SECONDS", 3600.0)
    watch = TopicWatch(Settings(), "gateway", IDS)

    async def suspect() -> None:
        await asyncio.sleep(0.01)
        assert kafka.asked == []
        kafka.error = KafkaConnectionError("away")
        watch.suspect("records were lost")
        await kafka.looks(3)
        kafka.error = None

    running = await during(suspect, watch)
    with pytest.raises(TopicsError, match="records were lost"):
        await asyncio.wait_for(running, 10)


async def test_the_limit_of_a_topic_is_asked_for_once_in_a_while(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {INCOMING_MESSAGES: 1_000}
    asked: list[Sequence[str]] = []

    async def largest_records(client: Any, names: Sequence[str]) -> dict[str, int]:
        asked.append(names)
        return limits

    monkeypatch.setattr(topic_watch, "largest_records", largest_records)
    watch = TopicWatch(Settings(), "gateway", IDS)
    assert [await watch.largest_record(INCOMING_MESSAGES) for _ in range(3)] == [1_000] * 3
    assert asked == [[INCOMING_MESSAGES]]
    monkeypatch.setattr(topic_watch, "LIMIT_SECONDS", 0.0)
    limits[INCOMING_MESSAGES] = 2_000
    assert await watch.largest_record(INCOMING_MESSAGES) == 2_000
    with pytest.raises(TopicsError, match=f"says nothing of the configuration of topic {OUTGOING_MESSAGES}"):
        await watch.largest_record(OUTGOING_MESSAGES)


async def test_a_suspicion_that_is_explained_names_the_topic(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_watch, "LOOK_SECONDS", 3600.0)
    watch = TopicWatch(Settings(), "gateway", IDS)
    kafka.topics[INCOMING_MESSAGES] = "another id"
    watch.suspect("records were lost")
    with pytest.raises(TopicsError, match="made anew"):
        await asyncio.wait_for(watch.run(), 10)
