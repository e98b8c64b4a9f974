"""The records that retention removed from a topic before a service had applied them, as notes of ranges. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from chat_streams.model.times import utc

MOST_SHOWN: Final = 100
"""The largest number of ranges in a report."""


class Loss(msgspec.Struct, frozen=True):
    """A range of offsets, ``[first, end)`` of a partition, that is gone and was not applied by the service ``app``.

    Times are the log's, in ms since the epoch. They are those of the note's records, so a note that is being written
    has none: ``dated`` puts them in.
    """

    app: str
    topic: str
    generation: int
    partition: int
    first: int
    end: int
    at: int = 0
    acknowledged_by: str = ""
    acknowledged_at: int = 0

    @property
    def key(self) -> bytes:
        """The key of the note: the same range noted again, after a crash, replaces the note."""
        return f"{self.app}/{self.topic}/{self.generation}/{self.partition}/{self.first}-{self.end}".encode()

    def encode(self) -> bytes:
        """Return the value of the note."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, value: bytes | None) -> Loss:
        """Return the note that the bytes encode; raises ``msgspec.DecodeError``."""
        return msgspec.json.decode(value or b"", type=cls)

    def dated(self, at: int) -> Loss:
        """Return the note with the time of its record: that of the loss, or of its acknowledgement."""
        if self.acknowledged_by:
            return msgspec.structs.replace(self, acknowledged_at=at)
        return msgspec.structs.replace(self, at=at)

    def acknowledged(self, who: str) -> Loss:
        """Return the note that ``who`` has acknowledged this loss."""
        return msgspec.structs.replace(self, acknowledged_by=who)

    def as_json(self) -> dict[str, Any]:
        """Return the note as JSON values; times in RFC 3339."""
        return {
            "app": self.app,
            "topic": self.topic,
            "generation": self.generation,
            "partition": self.partition,
            "first": self.first,
            "end": self.end,
            "records": self.end - self.first,
            "at": utc(self.at) if self.at else None,
            "acknowledged_by": self.acknowledged_by or None,
            "acknowledged_at": utc(self.acknowledged_at) if self.acknowledged_at else None,
        }


class Losses(NamedTuple):
    """The losses that nobody has acknowledged yet, and the others; the oldest first."""

    open: list[Loss]
    acknowledged: list[Loss]

    @classmethod
    def of(cls, losses: Iterable[Loss], partitions: Sequence[int] | None = None) -> Losses:
        """Divide the losses of some partitions (``None`` for all)."""
        wanted = [loss for loss in losses if partitions is None or loss.partition in partitions]
        return cls([x for x in wanted if not x.acknowledged_by], [x for x in wanted if x.acknowledged_by])

    def as_json(self) -> dict[str, Any]:
        """Return the number of records of both as JSON values, and the first ranges that are not acknowledged."""
        return {
            "lost_records": records_of(self.open),
            "acknowledged_records": records_of(self.acknowledged),
            "ranges": [loss.as_json() for loss in self.open[:MOST_SHOWN]],
        }


def unnoted(
    app: str, generation: int, committed: Mapping[tuple[str, int], int], firsts: Mapping[tuple[str, int], int]
) -> list[Loss]:
    """Return what is gone and was not applied by a service that has not been back to note it.

    Args:
        app: The service.
        generation: Generation of the log.
        committed: The offset that the service applies next, by topic and partition; below 0 if it never ran.
        firsts: The first offset that the log still has; for what it names only.
    """
    return [
        Loss(app, topic, generation, partition, max(0, committed.get((topic, partition), 0)), first)
        for (topic, partition), first in firsts.items()
        if max(0, committed.get((topic, partition), 0)) < first
    ]


def records_of(losses: Iterable[Loss]) -> int:
    """Return the number of records that are lost to a service; those in several ranges count once."""
    total = until = 0
    place: tuple[str, str, int, int] | None = None
    for loss in sorted(losses, key=lambda x: (x.app, x.topic, x.generation, x.partition, x.first)):
        here = loss.app, loss.topic, loss.generation, loss.partition
        if here != place:
            place, until = here, 0
        total += max(0, loss.end - max(until, loss.first))
        until = max(until, loss.end)
    return total
