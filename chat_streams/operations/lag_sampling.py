"""Estimates from a few records of each partition: messages and bytes per record, messages in a lag, and its age."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from aiokafka.structs import TopicPartition

from chat_streams.kafka.log_reader import LogReader, Span
from chat_streams.kafka.names import INCOMING_MESSAGES
from chat_streams.model.records import MAGIC
from chat_streams.operations.lag import Lag, Watermarks

NEWEST: Final = 3
"""The number of records read from the end of a partition, as a sample of what it carries now."""
OLDEST: Final = 50
"""The number of records read from the start of a lag, fewer if they are large."""
OLDEST_BYTES: Final = 64 * 1024
"""The number of bytes that are read from the start of a lag, about."""
_TAG: Final = b"\xa8messages"


class Sample(NamedTuple):
    """The average content of a topic's record: its messages (or other items) and bytes, over ``records`` of them."""

    records: int
    messages: float
    size: float


def count_of(topic: str, value: bytes | None) -> int:
    """Return the number of items in a record, such as messages, by its first bytes; 1 if they don't tell."""
    if value is None or value[:2] != MAGIC:
        return 1
    at = 3
    if topic == INCOMING_MESSAGES:
        if value[at : at + 10] != b"\x92" + _TAG:
            return 1
        at += 10
    head = value[at] if len(value) > at else 0
    if head & 0xF0 == 0x90:
        return head & 0x0F
    if head == 0xDC:
        return int.from_bytes(value[at + 1 : at + 3], "big")
    if head == 0xDD:
        return int.from_bytes(value[at + 1 : at + 5], "big")
    return 1


async def sample(
    reader: LogReader, marks: Watermarks, known: Mapping[str, Sample] = MappingProxyType({})
) -> tuple[dict[str, Sample], dict[tuple[str, str, int], Lag]]:
    """Read the newest records of each partition and the oldest of each lag; raises ``KafkaUnavailable``.

    Returns a sample of each topic, and the lags by group, topic and partition. A topic that receives nothing keeps its
    ``known`` sample.
    """
    totals: dict[str, list[float]] = {}
    spans = [
        Span(tp.topic, tp.partition, max(0, end - NEWEST), end)
        for tp, end in marks.ends.items()
        if tp.topic not in known or marks.rate(tp)
    ]
    async for record in reader.read(spans):
        total = totals.setdefault(record.topic, [0, 0, 0])
        total[0] += 1
        total[1] += count_of(record.topic, record.value)
        total[2] += len(record.value or b"")
    samples = {**known, **{topic: Sample(int(n), m / n, s / n) for topic, (n, m, s) in totals.items()}}
    lags: dict[tuple[str, str, int], Lag] = {}
    now = await reader.now_ms()
    for group, committed in marks.committed.items():
        heads = {tp: max(0, offset) for tp, offset in committed.items() if marks.behind(group, tp)}
        wanted = [
            Span(tp.topic, tp.partition, offset, min(marks.ends[tp], offset + _oldest(samples.get(tp.topic))))
            for tp, offset in heads.items()
        ]
        seen: dict[TopicPartition, list[float]] = {}
        async for record in reader.read(wanted):
            counts = seen.setdefault(TopicPartition(record.topic, record.partition), [0, 0, record.at])
            counts[0] += 1
            counts[1] += count_of(record.topic, record.value)
        for tp, (records, messages, oldest_at) in seen.items():
            behind = marks.behind(group, tp)
            exact = records >= behind
            lags[group, tp.topic, tp.partition] = Lag(
                int(messages if exact else behind * messages / records), max(0.0, (now - oldest_at) / 1000), exact
            )
    return samples, lags


def _oldest(of_topic: Sample | None) -> int:
    return OLDEST if of_topic is None else max(1, min(OLDEST, int(OLDEST_BYTES / max(1.0, of_topic.size))))
