"""The notes in ``log_losses``: the newest of a key counts, and one that cannot be read hides no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import cast

from structlog.testing import capture_logs

from chat_streams.kafka import losses
from chat_streams.kafka.log_reader import LogReader, LogRecord, Span
from chat_streams.kafka.names import LOSSES
from chat_streams.model.losses import Loss


class Reader:
    """A stand-in for the log: values with their keys."""

    def __init__(self, *found: tuple[bytes | None, bytes | None]) -> None:
        self._found = found

    async def spans(self, topic: str) -> list[Span]:
        return [Span(topic, 0, 0, len(self._found))]

    async def read(self, spans: list[Span]) -> AsyncIterator[LogRecord]:
        for offset, (key, value) in enumerate(self._found):
            yield LogRecord(LOSSES, 0, offset, 1_000 + offset, key, value, ())


async def read(*found: tuple[bytes | None, bytes | None]) -> list[Loss]:
    return await losses.read(cast(LogReader, Reader(*found)))


async def test_the_acknowledgement_takes_the_place_of_the_note() -> None:
    one, two = Loss("messaging", "incoming_messages", 1, 0, 5, 9), Loss("history", "incoming_messages", 1, 0, 5, 9)
    seen = one.dated(1_000).acknowledged("ann@host")
    found = await read((one.key, one.encode()), (two.key, two.encode()), (one.key, seen.encode()))
    assert found == [seen.dated(1_002), two.dated(1_001)]


async def test_a_note_that_cannot_be_read_hides_no_other() -> None:
    one = Loss("messaging", "incoming_messages", 1, 0, 5, 9)
    with capture_logs() as lines:
        assert await read((b"x", b"{"), (b"y", None), (one.key, one.encode())) == [one.dated(1_002)]
    assert [line["offset"] for line in lines] == [0, 1]
