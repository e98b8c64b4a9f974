"""The grouping of the messages of several records into batches for the inboxes."""

from __future__ import annotations

from chat_streams.model.position import Position
from chat_streams.model.records import LOGGED, Message, Messages, Record
from chat_streams.processing.grouping import APPEND_MESSAGES, by_recipient

WINDOW_S = 60


def record(offset: int, *messages: str, at: int = 1, partition: int = 0) -> Record[Messages]:
    """Return a record, appended ``at``, of messages to some recipients."""
    return Record(partition, offset, at, Messages(tuple(Message(to, "eve", "id", LOGGED, b"") for to in messages)))


def test_each_recipient_has_its_messages_in_order_with_their_positions() -> None:
    found = by_recipient([record(7, "bob", "al", "bob"), record(9, "bob")], 2, WINDOW_S)
    assert [(b.user, b.partition, [p for p, _, _ in b.messages]) for b in found] == [
        ("bob", 0, [Position.of(2, 7, 0), Position.of(2, 7, 2), Position.of(2, 9, 0)]),
        ("al", 0, [Position.of(2, 7, 1)]),
    ]


def test_a_batch_has_one_retry_window_and_is_not_too_large() -> None:
    edge = 1000 * WINDOW_S
    times = [edge - 1, edge, edge + 1, edge - 1]
    found = by_recipient([record(n, "bob", at=at) for n, at in enumerate(times)], 1, WINDOW_S)
    assert [[at for _, at, _ in b.messages] for b in found] == [[edge - 1], [edge, edge + 1], [edge - 1]]
    many = [record(n, *["bob"] * 400) for n in range(3)]
    assert [len(b.messages) for b in by_recipient(many, 1, WINDOW_S)] == [APPEND_MESSAGES, APPEND_MESSAGES, 200]
