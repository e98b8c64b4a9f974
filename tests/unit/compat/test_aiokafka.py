"""The members that ``compat/aiokafka.py`` uses of aiokafka still exist, and still have no public counterpart."""

from __future__ import annotations

import asyncio
import inspect
import re

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest

from chat_streams.compat.aiokafka import cut_off, make_severable
from tests.unit.kafka.fake_broker import NOT_ENOUGH_REPLICAS, TOPIC, FakeBroker, fake_broker


def test_an_admin_client_sends_requests_by_these_members() -> None:
    assert list(inspect.signature(AIOKafkaClient.send).parameters)[:3] == ["self", "node_id", "request"]
    assert callable(AIOKafkaClient.get_random_node)
    assert list(inspect.signature(AIOKafkaAdminClient._send_request_to_node).parameters)[:3] == [
        "self",
        "node_id",
        "request",
    ]


def test_aiokafka_has_no_metadata_with_the_ids_of_topics_yet() -> None:
    # Once this fails, kafka/metadata.py needs no request of its own.
    assert max(request.API_VERSION for request in MetadataRequest._CLASSES) < 10


def test_a_consumer_tells_the_names_of_topics_only() -> None:
    assert callable(AIOKafkaClient.fetch_all_metadata)
    assert "partitions" not in inspect.signature(AIOKafkaConsumer.topics).parameters


async def started(broker: FakeBroker) -> AIOKafkaProducer:
    sizes = {"max_batch_size": 16_000_000, "max_request_size": 16_000_000}
    producer = AIOKafkaProducer(bootstrap_servers=broker.address, enable_idempotence=True, **sizes)
    make_severable(producer)
    await producer.start()
    await producer.send_and_wait(TOPIC, b"before", partition=0)
    return producer


@pytest.mark.parametrize("when", ["half sent", "tried again", "not connected", "connecting"])
async def test_a_producer_that_is_cut_off_writes_nothing_more_and_stops(when: str) -> None:
    async with fake_broker() as broker:
        producer = await started(broker)
        if when == "tried again":
            broker.refuse = lambda topic, partition, values: NOT_ENOUGH_REPLICAS
        elif when == "half sent":
            broker.reads.clear()
        else:
            await broker.go_away()
        written = await producer.send(TOPIC, b"x" * 12_000_000, partition=0)
        await asyncio.sleep(0.05)
        if when == "connecting":
            broker.reads.clear()
            await broker.come_back()
            while not broker.connections:
                await asyncio.sleep(0.005)
        cut_off(producer)
        if when == "not connected":
            await broker.come_back()
        broker.reads.set()
        broker.refuse = lambda topic, partition, values: 0
        with pytest.raises(KafkaError):
            await written
        await producer.stop()
        while broker.connections:
            await asyncio.sleep(0.005)
        assert broker.log[TOPIC, 0] == [b"before"]
        assert max(broker.received) < 12_000_000 or when == "tried again"


def test_stopping_a_producer_has_no_limit_of_time_yet() -> None:
    # Once this fails, cut_off may have a public counterpart.
    assert list(inspect.signature(AIOKafkaProducer.stop).parameters) == ["self"]
    assert not hasattr(AIOKafkaProducer, "abort")


def test_a_consumer_still_says_nothing_when_its_fetcher_has_ended() -> None:
    assert isinstance(inspect.getattr_static(Fetcher, "error_future"), property)
    assert "self._fetcher = Fetcher(" in inspect.getsource(AIOKafkaConsumer.start)
    # Once this fails, getmany may tell, and the look at the fetcher can go.
    assert "error_future" not in inspect.getsource(AIOKafkaConsumer.getmany)


def test_a_consumer_that_stops_still_passes_on_the_cancellation_of_a_fetch() -> None:
    # Once this fails, ``disconnect`` can go.
    assert re.search(r"x\.cancel\(\)\s+await x", inspect.getsource(Fetcher.close))
