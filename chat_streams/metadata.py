"""Kafka's ids of topics (KIP-516), for which aiokafka 0.14 has no request: Metadata in version 10."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)


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
        return request_struct_class([(bytes(16), name, {}) for name in self._names], False, False, False, {})


async def topic_ids(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, str]:
    """The id of each topic that exists, in hexadecimal; raises ``KafkaError``."""
    answer: Any = await admin._client.send(admin._client.get_random_node(), _MetadataRequest(names))
    topics = answer.to_object()["topics"]
    return {t["topic"]: uuid.UUID(bytes=t["topic_id"]).hex for t in topics if t["error_code"] == 0}
