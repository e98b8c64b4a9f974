"""How much one user may do here: token buckets for messages, bytes and connects, for each user of a gateway."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from chat_streams.runtime.settings import Settings

MOST_USERS: Final = 50_000
"""Remembered; who was longest without doing anything is forgotten first, by when his buckets are full again."""


REOPENED: Final = 0.1
"""Of its burst, which a bucket must hold again after it refused: else one message at a time would pass."""


class Bucket:
    """Holds up to ``burst`` tokens, full at first, and gains ``rate`` of them a second."""

    __slots__ = ("_at", "_burst", "_is_shut", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now
        self._is_shut = False

    def wait(self, amount: float, now: float) -> float:
        """The seconds until ``amount`` tokens (up to ``burst``) may be taken, 0.0 when they may now."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        wanted = max(amount, self._burst * REOPENED) if self._is_shut else amount
        missing = min(wanted, self._burst) - self._tokens
        self._is_shut = missing > 0
        if missing <= 0:
            return 0.0
        return (max(min(amount, self._burst), self._burst * REOPENED) - self._tokens) / self._rate

    def take(self, amount: float) -> None:
        """Take tokens, after ``wait`` has said that there are enough."""
        self._tokens -= amount


class Allowance:
    """What one user may do, over all his connections to this gateway. Times in s."""

    __slots__ = ("_bytes", "_connects", "_messages")

    def __init__(self, settings: Settings, now: float) -> None:
        self._messages = Bucket(settings.send_rate, settings.send_burst, now)
        self._bytes = Bucket(settings.send_bytes_rate, settings.send_bytes_burst, now)
        self._connects = Bucket(settings.connect_rate, settings.connect_burst, now)

    def send(self, size: int, now: float) -> float:
        """Allow a message of so many bytes and return 0.0, or return the seconds until it may be sent."""
        wait = max(self._messages.wait(1, now), self._bytes.wait(size, now))
        if not wait:
            self._messages.take(1)
            self._bytes.take(size)
        return wait

    def connect(self, now: float) -> float:
        """Allow a connection and return 0.0, or return the seconds until the next one may come."""
        wait = self._connects.wait(1, now)
        if not wait:
            self._connects.take(1)
        return wait


class Allowances:
    """The allowances of the users of a gateway."""

    def __init__(self, settings: Settings, most: int = MOST_USERS) -> None:
        self._settings = settings
        self._most = most
        self._of: OrderedDict[str, Allowance] = OrderedDict()

    def of(self, user: str, now: float) -> Allowance:
        """The one allowance of a user; a new one is full."""
        found = self._of.get(user)
        if found is None:
            found = self._of[user] = Allowance(self._settings, now)
            if len(self._of) > self._most:
                self._of.popitem(last=False)
        else:
            self._of.move_to_end(user)
        return found
