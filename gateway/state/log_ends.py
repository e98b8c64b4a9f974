"""The ends of the partitions a gateway writes to: a log only grows, unless its topic was made anew or lost records."""

from __future__ import annotations


class LogEnds:
    """The highest offset that Kafka is known to have had in each partition."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, int], int] = {}

    def advance(self, topic: str, partition: int, offset: int) -> int | None:
        """Note that Kafka has a record at ``offset``; returns the last one known if the log went back to before it."""
        last = self._last.get((topic, partition), -1)
        if offset <= last:
            return last
        self._last[topic, partition] = offset
        return None
