"""Topics with their ids (KIP-516) and what we may do with them (KIP-430): Metadata 10, which aiokafka 0.14 has not."""

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
"""TOPIC_AUTHORIZATION_FAILED"""
OPERATIONS: Final = {"read": 3, "write": 4, "describe configs of": 10}
"""The numbers of Kafka's ``AclOperation``, and the bits in what is allowed."""


@dataclass(frozen=True)
class TopicMetadata:
    """A topic as the brokers have it."""

    id: str
    """In hexadecimal."""
    partitions: int
    replicas: int
    """Of the partition that has the fewest."""
    operations: int

    def allows(self, operation: str) -> bool:
        """Whether we may do one of ``OPERATIONS``; without an authorizer, the broker says yes to all."""
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
    """Those of the topics that exist, and the names of those we may not even see; raises ``KafkaError``."""
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
    """Whether we may be in a consumer group, None while its coordinator can't say; raises ``KafkaError``.

    The heartbeat of a member that there is not: what we may is looked at before who we are.
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
