"""The requests for pages that are worth an answer, and the log's time that their age is measured by.

Whoever asked for a page and got none asks again. Answering all that was asked during an outage would take longer than
the connections wait, who would go on asking: the outage would never end. No clock but the log's decides which of them
are outdated: a request is, once its partition has a record that was appended after the time it waits for an answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, Generic, NamedTuple, TypeVar

import structlog

from chat_streams.model.errors import KafkaUnavailable

log = structlog.get_logger()

T = TypeVar("T")

LOOK_SECONDS: Final = 1.0
"""Seconds between two looks at the ends of partitions."""
LOOK_WITHIN: Final = 5.0


class Asked(NamedTuple, Generic[T]):
    """A request of a connection, in a record of ``partition`` that was appended ``at`` (ms since the epoch)."""

    connection: bytes
    partition: int
    at: int
    timeout_ms: int
    wanted: T


def worth_answering(requests: Iterable[Asked[T]], newest: Mapping[int, int]) -> list[Asked[T]]:
    """Return the newest request of each connection, as far as it is not outdated.

    Args:
        requests: The requests in the order of the log.
        newest: The append time of the newest record that is known of each partition.
    """
    last = {request.connection: request for request in requests}
    return [r for r in last.values() if r.at + r.timeout_ms >= newest.get(r.partition, 0)]


class End(NamedTuple):
    """The newest record read of a partition, by offset and append time, and the offset at which the partition ends."""

    offset: int
    at: int
    highwater: int


class NewestTimes:
    """The append time of the newest record of the partitions of one topic, as far as it is known.

    It is that of the newest record read, also of those that wait for the agent. Where a worker is so far behind that
    the partition has more, the last record is looked at, at most once a second. Until then what is known is too early,
    and a request is answered that need not be.

    Args:
        read_to: Tells how far a partition was read.
        look: Returns the append time of the record at each (partition, offset); raises ``KafkaUnavailable``.
    """

    def __init__(
        self,
        read_to: Callable[[int], End | None],
        look: Callable[[Mapping[int, int]], Awaitable[Mapping[int, int]]],
    ) -> None:
        self._read_to = read_to
        self._look = look
        self._last: dict[int, tuple[int, int]] = {}
        self._looked_at: dict[int, float] = {}

    async def of(self, partitions: Iterable[int], now: float | None = None) -> dict[int, int]:
        """Return the time of each partition; ``now`` is in s of a monotonic clock."""
        now = time.monotonic() if now is None else now
        ends = {p: end for p in set(partitions) if (end := self._read_to(p)) is not None}
        far = {
            p: end.highwater - 1
            for p, end in ends.items()
            if end.highwater > end.offset + 1 and now - self._looked_at.get(p, -LOOK_SECONDS) >= LOOK_SECONDS
        }
        if far:
            self._looked_at |= dict.fromkeys(far, now)
            try:
                async with asyncio.timeout(LOOK_WITHIN):
                    self._last |= {p: (far[p], at) for p, at in (await self._look(far)).items()}
            except (KafkaUnavailable, TimeoutError) as error:
                log.warning("the ends of partitions are not known", error=repr(error))
        # By offset, not by time: where a broker's clock was set back, what comes now is not outdated.
        return {p: max((end.offset, end.at), self._last.get(p, (-1, 0)))[1] for p, end in ends.items()}
