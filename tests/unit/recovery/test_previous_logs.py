"""Previous logs: up to where messages to a user may be gone from what Kafka still has."""

from __future__ import annotations

import pytest

from chat_streams.kafka.names import partition_of
from chat_streams.model.position import MAX_INDEX, MAX_OFFSET, ORIGIN, Position
from chat_streams.recovery.previous_logs import KeptLog, gone_up_to

ALL = [0, 0, 0, 0]


def firsts(offset: int, partitions: int = 4) -> list[int]:
    """Return first offsets where only the partition of bob begins above 0."""
    return [offset if partition == partition_of("bob", partitions) else 0 for partition in range(partitions)]


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        ([KeptLog(1, ALL)], ORIGIN),
        ([KeptLog(1, firsts(9))], Position.of(1, 8, MAX_INDEX)),
        ([KeptLog(2, ALL), KeptLog(1, [0, 0])], ORIGIN),
        ([KeptLog(2, ALL), KeptLog(1, firsts(5, 2))], Position.of(1, 4, MAX_INDEX)),
        ([KeptLog(2, firsts(3)), KeptLog(1, [0, 0])], Position.of(2, 2, MAX_INDEX)),
        # A log before these is gone, or one between them.
        ([KeptLog(2, ALL)], Position.of(1, MAX_OFFSET, MAX_INDEX)),
        ([KeptLog(3, ALL), KeptLog(1, [0, 0])], Position.of(2, MAX_OFFSET, MAX_INDEX)),
    ],
)
def test_messages_may_be_gone_up_to_where_the_kept_logs_begin(logs: list[KeptLog], expected: Position) -> None:
    assert gone_up_to(logs, "bob") == expected


def test_another_partition_does_not_matter() -> None:
    other = [first + 1 if not first else 0 for first in firsts(1)]
    assert gone_up_to([KeptLog(1, other)], "bob") == ORIGIN
