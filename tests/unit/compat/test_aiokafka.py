"""What ``compat/aiokafka.py`` uses of aiokafka is still there, and still has no public counterpart."""

from __future__ import annotations

import inspect

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.metadata import MetadataRequest


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
