"""The time of the log, as a process knows it by the append times that Kafka returns; and how far its own clock is off.

All times that decide something are append times. The clock of the machine that a process runs on decides nothing; where
it differs, that is shown (``docs/runbook.md``, "A clock is wrong").
"""

from __future__ import annotations

import time
from typing import Any, Final

import structlog
from prometheus_client import Gauge

from chat_streams.runtime.metrics import REGISTRY

log = structlog.get_logger()

MOST_SKEW_S: Final = 2.0
"""Seconds by which a clock may be off before that is said."""
LOG_APPEND_TIME: Final = 1
"""Kafka's number for a timestamp that the broker set."""

SKEW_SECONDS: Final = Gauge(
    "connect_chat_clock_skew_seconds",
    "By how much this machine's clock is ahead of Kafka's (below 0: behind), at least; nothing goes by it.",
    registry=REGISTRY,
)


class LogClock:
    """Bounds for the log's time: a record was appended between the request and the answer that tells its append time.

    ``asked``, ``answered`` and ``monotonic`` are in s of one monotonic clock of this process. Bounds of several appends
    are met; one that contradicts those before it replaces them: a broker's clock was set, or another broker answers.
    """

    def __init__(self) -> None:
        self._bounds: tuple[float, float] | None = None
        """The lowest and the highest difference of log and monotonic clock, in s."""

    def observe(self, asked: float, answered: float, at_ms: int) -> None:
        """Note that a record which was sent and confirmed at these times was appended at ``at_ms`` by the log."""
        lowest, highest = at_ms / 1000 - answered, (at_ms + 1) / 1000 - asked
        if self._bounds is not None:
            low, high = max(lowest, self._bounds[0]), min(highest, self._bounds[1])
            if low <= high:
                lowest, highest = low, high
        self._bounds = lowest, highest

    def now_ms(self, monotonic: float) -> int | None:
        """Return the log's time, about, in ms since the epoch; ``None`` before the first append."""
        return None if self._bounds is None else int(1000 * (monotonic + sum(self._bounds) / 2))

    def skew_s(self, wall: float, monotonic: float) -> float:
        """Return by how many seconds a clock is ahead of the log's at least, below 0 if it is behind.

        ``wall`` is what it shows, in s since the epoch.
        """
        if self._bounds is None:
            return 0.0
        lowest, highest = self._bounds
        return max(0.0, wall - monotonic - highest) or min(0.0, wall - monotonic - lowest)


class SkewReport:
    """Shows by how much the clock of this machine is off: in a metric, and once in the log."""

    def __init__(self, clock: LogClock) -> None:
        self._clock = clock
        self._told = False

    def note(self, asked: float, metadata: Any) -> None:
        """Note the ``RecordMetadata`` of a record that was sent at ``asked`` (monotonic, s) and is confirmed now."""
        if metadata.timestamp_type == LOG_APPEND_TIME:
            now = time.monotonic()
            self._clock.observe(asked, now, metadata.timestamp)
            self.update(time.time(), now)

    def update(self, wall: float, monotonic: float) -> None:
        """Compare the machine's clock, which shows ``wall`` (s since the epoch), with the log's."""
        skew = self._clock.skew_s(wall, monotonic)
        SKEW_SECONDS.set(skew)
        if abs(skew) <= MOST_SKEW_S:
            self._told = False
        elif not self._told:
            self._told = True
            log.warning("the clock of this machine differs from Kafka's, nothing goes by it", ahead_s=round(skew, 1))
