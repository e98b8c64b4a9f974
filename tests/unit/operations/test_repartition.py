"""The limit that closes a log: what a look writes passes it, and no message does."""

from __future__ import annotations

from aiokafka.record.default_records import DefaultRecordBatchBuilder

from chat_streams.kafka.producer import ProducerRecord
from chat_streams.kafka.topics import CLOSED_BYTES
from chat_streams.model.records import INCOMING, Message, Messages
from chat_streams.operations.repartition import NOTHING, TOO_LARGE_IF_CLOSED


def batch_bytes(record: ProducerRecord) -> int:
    """Return the bytes of a record as Kafka compares them with ``max.message.bytes``."""
    builder = DefaultRecordBatchBuilder(2, 0, True, 1, 0, 0, 1024)
    builder.append(0, 1_800_000_000_000, record.key, record.value, list(record.headers))
    return len(builder.build())


def test_a_closed_log_takes_what_a_look_writes_and_no_message() -> None:
    smallest = Messages((Message("b", "a", "1", 0, b'"id":"1","from":"a","body":1}'),))
    assert batch_bytes(NOTHING) <= CLOSED_BYTES
    assert batch_bytes(ProducerRecord(None, INCOMING.encode(smallest))) > CLOSED_BYTES
    assert batch_bytes(TOO_LARGE_IF_CLOSED) > CLOSED_BYTES
