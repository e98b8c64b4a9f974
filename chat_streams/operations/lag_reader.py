"""Reading the end offsets of partitions and the committed offsets of the consumer groups."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import TopicPartition

from chat_streams.kafka.names import INBOX_REQUESTS, INCOMING_MESSAGES, SESSION_EVENTS
from chat_streams.operations.lag import Watermarks

LOOK_S: Final = 2.0
"""Seconds between two looks."""
GROUPS: Final = {
    "messaging": (INCOMING_MESSAGES, SESSION_EVENTS),
    "notification": (SESSION_EVENTS, INBOX_REQUESTS),
    "history": (INCOMING_MESSAGES,),
}
"""The topics that each consumer group reads."""


async def look(
    marks: Watermarks, consumer: AIOKafkaConsumer, admin: AIOKafkaAdminClient, tps: Sequence[TopicPartition]
) -> None:
    """Read the end offsets of ``tps`` and all groups' offsets, and add them to ``marks``; raises ``KafkaError``."""
    ends = await consumer.end_offsets(tps)
    committed = {}
    for group, of_group in GROUPS.items():
        wanted = [tp for tp in tps if tp.topic in of_group]
        found = await admin.list_consumer_group_offsets(group, partitions=wanted)
        committed[group] = {tp: found[tp].offset for tp in wanted if tp in found}
    marks.look(ends, committed, time.monotonic())
