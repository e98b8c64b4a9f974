"""Private members of aiokafka 0.14 that have no public counterpart (``tests/unit/compat/test_aiokafka.py``).

The overrides in ``processing/ordered.py`` and the look at a fetcher in ``gateway/slot_consumer.py`` are not here yet.
"""

from __future__ import annotations

from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient


async def send_to_any_broker(admin: AIOKafkaAdminClient, request: Any) -> Any:
    """Return a broker's answer to a request that aiokafka lacks, such as Metadata 10; raises ``KafkaError``."""
    return await admin._client.send(admin._client.get_random_node(), request)


async def send_to_broker(admin: AIOKafkaAdminClient, node: int, request: Any) -> Any:
    """Return the answer of one broker to a request, such as a group's heartbeat; raises ``KafkaError``."""
    return await admin._send_request_to_node(node, request)


async def fetch_metadata(consumer: AIOKafkaConsumer) -> Any:
    """Return the metadata of all topics, asked of Kafka now; raises ``KafkaError``.

    ``AIOKafkaConsumer.topics()`` asks for it, too, and returns the names only.
    """
    return await consumer._client.fetch_all_metadata()
