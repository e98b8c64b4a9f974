"""The schedule by which records of one topic leave: when those that are not full may, and with which others."""

from __future__ import annotations

import math
from typing import Final

TOGETHER: Final = 0.001
"""Seconds after a record left in which others of its topic leave with it: Kafka and workers take them in one go."""


class FlushSchedule:
    """Lets records that are not full leave once per ``interval`` s, those of all partitions of the topic together.

    Times are in seconds of a monotonic clock.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._left_at = -math.inf
        self._linger_until = -math.inf

    def linger(self, now: float, linger: float) -> float:
        """The time when an item that may wait up to ``linger`` s must leave: with those of other partitions."""
        if not now < self._linger_until <= now + linger:
            self._linger_until = now + linger
        return self._linger_until

    def next_flush(self, now: float, left_at: float) -> float:
        """The time when a record of a partition may leave whose last one left at ``left_at``."""
        joins = left_at < self._left_at and now - self._left_at <= TOGETHER
        return now if joins else self._left_at + self._interval

    def on_flush(self, now: float) -> None:
        """Note that a record leaves now."""
        if now - self._left_at > TOGETHER:
            self._left_at = now
