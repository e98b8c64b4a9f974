"""Rate limits: token buckets for messages, bytes and connects, for each user of a gateway."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

MOST_USERS: Final = 50_000
"""Remembered; who was longest without doing anything is forgotten first, by when his buckets are full again."""
CAREFUL: Final = 8
"""The bytes of bodies that a byte counts as in a frame that needs a careful look: 512 KiB take up to 0.2 s of one."""
REOPENED: Final = 0.1
"""The share of its burst that a bucket must hold again after it refused: else one message at a time would pass."""


class Rates(NamedTuple):
    """The limits of one user: messages, bytes of bodies and connects, each a second in the long run and at once."""

    send_rate: float
    send_burst: float
    send_bytes_rate: float
    send_bytes_burst: float
    connect_rate: float
    connect_burst: float


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


class RateLimiter:
    """The limits of one user, over all his connections to this gateway. Times in s."""

    __slots__ = ("_bytes", "_connects", "_messages")

    def __init__(self, rates: Rates, now: float) -> None:
        self._messages = Bucket(rates.send_rate, rates.send_burst, now)
        self._bytes = Bucket(rates.send_bytes_rate, rates.send_bytes_burst, now)
        self._connects = Bucket(rates.connect_rate, rates.connect_burst, now)

    def send(self, size: int, now: float) -> float:
        """Allow a message of so many bytes and return 0.0, or return the seconds until it may be sent."""
        wait = max(self._messages.wait(1, now), self._bytes.wait(size, now))
        if not wait:
            self._messages.take(1)
            self._bytes.take(size)
        return wait

    def look(self, size: int, now: float) -> float:
        """Allow a careful look at so many bytes and return 0.0, or return the seconds until the next one may come."""
        wait = self._bytes.wait(CAREFUL * size, now)
        if not wait:
            self._bytes.take(CAREFUL * size)
        return wait

    def connect(self, now: float) -> float:
        """Allow a connection and return 0.0, or return the seconds until the next one may come."""
        wait = self._connects.wait(1, now)
        if not wait:
            self._connects.take(1)
        return wait


class RateLimiters:
    """The rate limiters of a gateway's users; past ``most`` of them, the one idle for longest is forgotten."""

    def __init__(self, rates: Rates, most: int = MOST_USERS) -> None:
        self._rates = rates
        self._most = most
        self._by_user: OrderedDict[str, RateLimiter] = OrderedDict()

    def of(self, user: str, now: float) -> RateLimiter:
        """The one limiter of a user; a new one is full."""
        found = self._by_user.get(user)
        if found is None:
            found = self._by_user[user] = RateLimiter(self._rates, now)
            if len(self._by_user) > self._most:
                self._by_user.popitem(last=False)
        else:
            self._by_user.move_to_end(user)
        return found
