"""The grouping of the messages of some records into batches, in order, one or more for each recipient. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

from chat_streams.model.position import Position
from chat_streams.model.records import Message, Messages, Record
from tables.inbox import Batch

APPEND_MESSAGES: Final = 500
"""The largest number of messages appended to one inbox in one call; Redis does nothing else meanwhile."""


def by_recipient(records: Iterable[Record[Messages]], generation: int, window_s: int) -> list[Batch]:
    """Group all messages of some records by recipient; the batches of one recipient follow one another.

    Args:
        records: Decoded records of ``incoming_messages``.
        generation: Generation of the log they are in.
        window_s: Length of a retry window in seconds; a batch never spans two windows of the log's time.
    """
    by_user: defaultdict[tuple[str, int], list[tuple[Position, int, Message]]] = defaultdict(list)
    for record in records:
        entry, _ = Position.of(generation, record.offset, 0)
        for index, message in enumerate(record.value.messages):
            by_user[message.to, record.partition].append((Position(entry, index), record.at, message))
    return [
        Batch(user, partition, part)
        for (user, partition), messages in by_user.items()
        for part in _within_window(messages, 1000 * window_s)
    ]


def _within_window(
    messages: list[tuple[Position, int, Message]], window_ms: int
) -> Iterator[list[tuple[Position, int, Message]]]:
    start = 0
    for end in range(1, len(messages) + 1):
        if (
            end == len(messages)
            or end - start == APPEND_MESSAGES
            or messages[end][1] // window_ms != messages[start][1] // window_ms
        ):
            yield messages[start:end]
            start = end
