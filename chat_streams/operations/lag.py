"""Consumer lag: the distance of the services from the end of the log, and the time until they catch up (pure)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from aiokafka.structs import TopicPartition

LOOKS: Final = 8
"""The number of looks that a rate is computed over: 16 s."""
KEEPS_UP_S: Final = 3.0
"""A lag that takes no longer than this to apply, in seconds, counts as keeping up."""


class Lag(NamedTuple):
    """The lag of a group on a partition: the messages it is behind, and for how long (s) the oldest has waited.

    With ``exact`` the messages of all those records were counted, otherwise estimated from a sample.
    """

    messages: int
    seconds: float
    exact: bool


class _Look(NamedTuple):
    at: float
    ends: Mapping[TopicPartition, int]
    committed: Mapping[str, Mapping[TopicPartition, int]]


class Watermarks:
    """The end offsets and committed offsets of the last few looks; times in s of a monotonic clock."""

    def __init__(self) -> None:
        self._looks: deque[_Look] = deque(maxlen=LOOKS)

    def look(
        self,
        ends: Mapping[TopicPartition, int],
        committed: Mapping[str, Mapping[TopicPartition, int]],
        at: float,
    ) -> None:
        """Record a look: end offsets, and each group's committed offsets, at a time."""
        self._looks.append(_Look(at, ends, committed))

    @property
    def ends(self) -> Mapping[TopicPartition, int]:
        """The end offset of each partition."""
        return self._looks[-1].ends if self._looks else {}

    @property
    def committed(self) -> Mapping[str, Mapping[TopicPartition, int]]:
        """The committed offset of each group, which it applies next; -1 if it never ran."""
        return self._looks[-1].committed if self._looks else {}

    def rate(self, tp: TopicPartition) -> float:
        """Return the records written per second."""
        return self._rise(lambda look: look.ends.get(tp))

    def behind(self, group: str, tp: TopicPartition) -> int:
        """Return the number of records on a partition that a group has not committed."""
        return max(0, self.ends.get(tp, 0) - max(0, self.committed.get(group, {}).get(tp, 0)))

    def lag(self, group: str) -> int:
        """Return the number of records that a group is behind, over all its partitions."""
        return sum(self.behind(group, tp) for tp in self.committed.get(group, {}))

    def time_to_empty(self, group: str, tp: TopicPartition) -> float | None:
        """Return the seconds until the group has caught up at the present rates; ``None`` while it does not catch up.

        A group that applies its whole lag in ``KEEPS_UP_S`` keeps up, since offsets are committed once a second only:
        for it, new records are not counted.
        """
        behind = self.behind(group, tp)
        if not behind:
            return 0.0
        applied = self._rise(lambda look: look.committed.get(group, {}).get(tp))
        if applied > 0 and behind / applied <= KEEPS_UP_S:
            return behind / applied
        speed = applied - self.rate(tp)
        return behind / speed if speed > 0 else None

    def _rise(self, offset_in: Callable[[_Look], int | None]) -> float:
        if len(self._looks) < 2:
            return 0.0
        first, last = self._looks[0], self._looks[-1]
        before, after = offset_in(first), offset_in(last)
        if before is None or after is None or last.at <= first.at:
            return 0.0
        return float(max(0, after - before) / (last.at - first.at))


def summary(
    marks: Watermarks, lags: Mapping[tuple[str, str, int], Lag], groups: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Return the lag of each group on each topic, in total and by partition, as JSON values; times in s.

    ``messages`` is ``None`` until a sample was taken, ``time_to_empty_s`` while the group does not catch up.
    """
    found = []
    for group, topics in groups.items():
        for topic in topics:
            tps = sorted(tp for tp in marks.committed.get(group, {}) if tp.topic == topic)
            rows = [_partition(marks, lags, group, tp) for tp in tps]
            behind = [row for row in rows if row["records"]]
            empty = [row["time_to_empty_s"] for row in behind]
            messages = [row["messages"] for row in behind]
            found.append(
                {
                    "group": group,
                    "topic": topic,
                    "records": sum(row["records"] for row in rows),
                    "messages": None if None in messages else sum(messages),
                    "exact": all(row["exact"] for row in behind),
                    "seconds": max((row["seconds"] for row in behind if row["seconds"] is not None), default=0.0),
                    "time_to_empty_s": None if None in empty else max(empty, default=0.0),
                    "partitions": rows,
                }
            )
    return found


def _partition(
    marks: Watermarks, lags: Mapping[tuple[str, str, int], Lag], group: str, tp: TopicPartition
) -> dict[str, Any]:
    behind = marks.behind(group, tp)
    lag = lags.get((group, tp.topic, tp.partition)) if behind else Lag(0, 0.0, True)
    return {
        "partition": tp.partition,
        "committed": marks.committed[group][tp],
        "end": marks.ends.get(tp, 0),
        "records": behind,
        "messages": lag.messages if lag else None,
        "exact": lag.exact if lag else False,
        "seconds": lag.seconds if lag else None,
        "time_to_empty_s": marks.time_to_empty(group, tp),
    }
