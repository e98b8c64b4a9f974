"""Topics with ids (KIP-516) and allowed operations (KIP-430), by Metadata version 10, which aiokafka 0.14 lacks."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    NotCoordinatorForGroupError,
)
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.group import HeartbeatRequest
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from chat_streams.compat.aiokafka import send_to_any_broker, send_to_broker

_UNSETTLED: Final = (GroupCoordinatorNotAvailableError, GroupLoadInProgressError, NotCoordinatorForGroupError)
NOT_ALLOWED: Final = 29
"""Kafka's error code TOPIC_AUTHORIZATION_FAILED."""
OPERATIONS: Final = {"read": 3, "write": 4, "describe configs of": 10}
"""Operations on a topic, with the numbers of Kafka's ``AclOperation``: their bits in ``TopicMetadata.operations``."""


@dataclass(frozen=True)
class TopicMetadata:
    """A topic as the brokers describe it."""

    id: str
    """Kafka's id of the topic, in hexadecimal."""
    partitions: int
    replicas: int
    """The number of replicas of the partition that has the fewest."""
    operations: int
    """The bits of the operations that the Kafka user may do."""

    def allows(self, operation: str) -> bool:
        """Return whether the Kafka user may do one of ``OPERATIONS``; without an authorizer, brokers allow all."""
        return bool(self.operations >> OPERATIONS[operation] & 1)


class _Uuid:
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


_TEXT = CompactString("utf-8")
_PARTITION = (
    *(("error_code", Int16), ("partition", Int32), ("leader", Int32), ("leader_epoch", Int32)),
    *(("replicas", CompactArray(Int32)), ("isr", CompactArray(Int32)), ("offline", CompactArray(Int32))),
    ("tags", TaggedFields),
)


class _Metadata10Response(Response):
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(("node_id", Int32), ("host", _TEXT), ("port", Int32), ("rack", _TEXT), ("tags", TaggedFields)),
        ),
        ("cluster_id", _TEXT),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                *(("error_code", Int16), ("topic", _TEXT), ("topic_id", _Uuid), ("is_internal", Boolean)),
                *(("partitions", CompactArray(*_PARTITION)), ("operations", Int32), ("tags", TaggedFields)),
            ),
        ),
        ("operations", Int32),
        ("tags", TaggedFields),
    )


class _Metadata10(RequestStruct):
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Metadata10Response
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("topic", _TEXT), ("tags", TaggedFields))),
        *(("create", Boolean), ("cluster_operations", Boolean), ("topic_operations", Boolean)),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[_Metadata10]):
    API_KEY = 3

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def build(self, request_struct_class: type[_Metadata10]) -> _Metadata10:
        return request_struct_class([(bytes(16), name, {}) for name in self._names], False, False, True, {})


async def topics_of(admin: AIOKafkaAdminClient, names: Sequence[str]) -> tuple[dict[str, TopicMetadata], set[str]]:
    """Return the topics that exist, by name, and the names that the Kafka user may not see; raises ``KafkaError``."""
    answer: Any = await send_to_any_broker(admin, _MetadataRequest(names))
    topics = answer.to_object()["topics"]
    found = {
        t["topic"]: TopicMetadata(
            uuid.UUID(bytes=t["topic_id"]).hex,
            len(t["partitions"]),
            min(len(p["replicas"]) for p in t["partitions"]),
            t["operations"],
        )
        for t in topics
        if t["error_code"] == 0
    }
    return found, {t["topic"] for t in topics if t["error_code"] == NOT_ALLOWED}


async def may_join(admin: AIOKafkaAdminClient, group: str) -> bool | None:
    """Return whether the Kafka user may join a consumer group; ``None`` while its coordinator is not available.

    This sends the heartbeat of a member that does not exist: Kafka checks the rights before the member. Raises
    ``KafkaError``.
    """
    try:
        node = await admin.find_coordinator(group)
        answer: Any = await send_to_broker(admin, node, HeartbeatRequest(group, -1, ""))
    except GroupAuthorizationFailedError:
        return False
    except _UNSETTLED:
        return None
    if answer.error_code in {error.errno for error in _UNSETTLED}:
        return None
    return bool(answer.error_code != GroupAuthorizationFailedError.errno)
