"""The decisions of a repartition, from what was seen of the log: when to close it, and when it has ended. Pure.

The log may go over into another one once nothing comes into it any more and all of it is applied. That nothing comes is
not seen at one look: a record may be on its way into the log, or in it and not yet on all replicas, where its end does
not show it. So each look writes a record without messages to each partition and waits until Kafka has it (``wrote``):
what was in front of it is then seen by all, and what came between two of them shows in their offsets.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Final

QUIET_LOOKS: Final = 2
"""The number of looks in a row that must find nothing new, and all of it applied."""

Partition = tuple[str, int]


class Stage(enum.StrEnum):
    """The stages of a repartition."""

    OPEN = "open"
    ANNOUNCED = "announced"
    """Gateways write nothing more to the log, as soon as they have heard of it."""
    CLOSED = "closed"
    """Kafka takes nothing for it from anyone, but what a look writes."""
    ENDED = "ended"
    """The next log has begun: there is no way back."""


class Action(enum.Enum):
    """The next thing to do."""

    ANNOUNCE = "tell the gateways"
    LOOK = "look whether anything comes, and what is applied"
    CLOSE = "have Kafka refuse records"
    OPEN = "have Kafka take records again: something had come"
    END = "begin the next log"


class Ends:
    """The ends of partitions, as they are moved by us alone, unless something else comes."""

    def __init__(self) -> None:
        self._ends: dict[Partition, int] = {}
        self._has_moved = False

    def wrote(self, partition: Partition, offset: int) -> None:
        """Note that Kafka has our record at ``offset``."""
        self.saw(partition, offset)
        self._ends[partition] = offset + 1

    def saw(self, partition: Partition, end: int) -> None:
        """Note that a partition ends at ``end``."""
        self._has_moved |= self._ends.get(partition) != end
        self._ends[partition] = end

    def are_applied(self, partitions: Iterable[Partition], committed: Mapping[Partition, int]) -> bool:
        """Return whether a reader's committed offsets are at these ends, or above; empty partitions need no offset."""
        return all(committed.get(partition, 0) >= self._ends[partition] for partition in partitions)

    def take_moved(self) -> bool:
        """Return whether anything but our own records has come since this was called last."""
        has_moved, self._has_moved = self._has_moved, False
        return has_moved


class Steps:
    """The steps of one run of a repartition; one that was killed is followed by another, from the beginning.

    A run does not need to know where the one before was killed: it announces again, and a log that is closed already is
    as quiet as one that is only announced.
    """

    def __init__(self) -> None:
        self.stage = Stage.OPEN
        self._quiet = 0

    def begin(self) -> Action:
        """Return the first action."""
        self.stage = Stage.ANNOUNCED
        return Action.ANNOUNCE

    def after_look(self, has_moved: bool, is_applied: bool) -> Action:
        """Return the action after a look.

        Args:
            has_moved: Whether anything came since the look before, that before the closing among them.
            is_applied: Whether all readers have applied all that there was.
        """
        if has_moved:
            self._quiet = 0
            if self.stage is Stage.CLOSED:
                self.stage = Stage.ANNOUNCED
                return Action.OPEN
            return Action.LOOK
        if not is_applied:
            self._quiet = 0
            return Action.LOOK
        self._quiet += 1
        if self._quiet < QUIET_LOOKS:
            return Action.LOOK
        self._quiet = 0
        if self.stage is Stage.ANNOUNCED:
            self.stage = Stage.CLOSED
            return Action.CLOSE
        return Action.END
