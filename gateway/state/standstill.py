"""The noticing that this process stood still: paused, or its machine was. No I/O."""

from __future__ import annotations

from typing import Final

BEAT_SECONDS: Final = 1.0
LEAST_SECONDS: Final = 10.0
"""The shortest standstill: a busy process may miss a few beats."""


class Standstill:
    """Tells which connections are from before a time in which this process ran nothing for longer than ``most_s``.

    What such a connection still brings was sent then: its client has sent it elsewhere since, and what is written now
    may be behind the retry window. Times are in seconds of a monotonic clock.
    """

    __slots__ = ("_beat", "_ended", "_most_s")

    def __init__(self, most_s: float, now: float) -> None:
        self._most_s = most_s
        self._beat = now
        self._ended = float("-inf")

    def beat(self, now: float) -> None:
        """Note that this process runs; to be called every ``BEAT_SECONDS``."""
        if now - self._beat > self._most_s:
            self._ended = now
        self._beat = now

    def is_behind(self, since: float, now: float) -> bool:
        """Return whether this process has stood still since a time; also before the first beat that notices it."""
        return since < self._ended or (now - self._beat > self._most_s and since <= self._beat)
