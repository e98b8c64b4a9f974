"""The state machine of one connection: which deliveries are forwarded (the contiguous continuation), what it requests.

No I/O. ``docs/architecture.md``, invariants 4 and 5. Times are in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from chat_streams.model.errors import ConnectChatError
from chat_streams.model.position import ORIGIN, Position
from chat_streams.model.records import FIRST_REQUEST, Delivery, Missed
from gateway import protocol

FIRST_TIMEOUT: Final = 2.0
LONGEST_TIMEOUT: Final = 30.0
"""Seconds until an answer is no longer waited for: at first, and after it did not come several times."""
WINDOW_SHARE: Final = 4
"""A page is requested once a fourth of the window is free: not a message at a time."""


class InvalidAck(ConnectChatError):
    """A client acknowledged what it was not sent."""


class PageRequest(NamedTuple):
    """A page of the inbox is wanted now; its answer is of no use after ``timeout`` seconds."""

    request: int
    after: Position
    limit: int
    limit_bytes: int
    timeout: float


class RegistrationDue(NamedTuple):
    """The registry has not answered: this connection is to be announced (again)."""


class _Unacknowledged(NamedTuple):
    until: Position
    messages: int
    size: int
    at: float


@dataclass(frozen=True)
class Limits:
    """The bounds of what may be forwarded and not acknowledged, and of one page."""

    window: int
    window_bytes: int
    page: int
    page_bytes: int


class DeliveryState:
    """The state of one connection after its hello.

    ``forwarded`` is the position up to which the client was sent everything above the cursor it connected with;
    ``acked`` the one it has acknowledged, which was forwarded at ``acked_forwarded_at`` (``None`` while nothing was);
    ``target`` the highest position heard of. While ``forwarded < target`` and the window is open, ``due`` requests
    pages.
    ``jitter`` returns a factor of 0.5 to 1.
    """

    __slots__ = (
        *(
            "_announce_at",
            "_announcements",
            "_attempts",
            "_bytes",
            "_caught_up_at",
            "_chained_until",
            "_count",
            "_jitter",
        ),
        *(
            "_limits",
            "_registered",
            "_request_at",
            "_requested_until",
            "_unacknowledged",
            "_was_open",
            "_was_registered",
        ),
        *("acked", "acked_forwarded_at", "forwarded", "outstanding", "request", "stalls", "target"),
    )

    def __init__(self, cursor: Position, limits: Limits, now: float, jitter: Callable[[], float]) -> None:
        self.forwarded = cursor
        self.acked = cursor
        self.acked_forwarded_at: float | None = None
        self.target = ORIGIN
        self.request = FIRST_REQUEST
        self.stalls = 0
        self._chained_until = cursor
        self._limits = limits
        self._jitter = jitter
        self._unacknowledged: list[_Unacknowledged] = []
        self._count = 0
        self._bytes = 0
        # The first page is on its way: the notification service sends it when it hears of the connection.
        self.outstanding = True
        self._requested_until = ORIGIN
        self._attempts = 1
        self._request_at = now + self._next_timeout()
        self._registered = self._was_registered = False
        self._announcements = 1
        self._announce_at = now + self._next_timeout()
        self._caught_up_at: Position | None = None
        self._was_open = True

    @property
    def window_open(self) -> bool:
        """Return whether anything may be forwarded."""
        return self._count < self._limits.window and self._bytes < self._limits.window_bytes

    @property
    def unacknowledged(self) -> int:
        """Messages forwarded and not acknowledged."""
        return self._count

    @property
    def is_caught_up(self) -> bool:
        """Return whether all that the inbox held on connecting was forwarded."""
        return self._was_registered and self._caught_up_at is None

    @property
    def unacknowledged_bytes(self) -> int:
        """Bytes of what was forwarded and not acknowledged."""
        return self._bytes

    def on_delivery(self, delivery: Delivery, now: float) -> list[bytes]:
        """The frames to send for a delivery: none unless it is the contiguous continuation (invariant 4)."""
        before = self.forwarded
        frames: list[bytes] = []
        if delivery.until > self.forwarded:
            if delivery.first is None and delivery.after <= self.forwarded:
                self.forwarded = delivery.until
            elif delivery.first is not None and delivery.after <= self.forwarded < delivery.first and self.window_open:
                frames.append(self._forward(delivery.until, delivery.count, delivery.messages, now))
            self.target = max(self.target, delivery.until)
        self._answered(delivery.request, self.forwarded > before, now)
        return frames + self._caught_up()

    def on_missed(self, missed: Missed, now: float) -> list[bytes]:
        """The frames to send for a range that left the inbox: the same rule."""
        before = self.forwarded
        frames: list[bytes] = []
        if missed.until > self.forwarded:
            if missed.after <= self.forwarded and self.window_open:
                frames.append(protocol.missed(self._chained_until, missed.until))
                self.forwarded = self._chained_until = missed.until
            self.target = max(self.target, missed.until)
        self._answered(missed.request, self.forwarded > before, now)
        return frames + self._caught_up()

    def on_registered(self, top: Position) -> list[bytes]:
        """The registry names this connection; the inbox's top was ``top`` after that."""
        self.target = max(self.target, top)
        if not self._was_registered:
            self._caught_up_at = top
        self._registered = self._was_registered = True
        return self._caught_up()

    def on_unregistered(self, now: float) -> None:
        """The registry must be told of this connection again (another slot, another keeper of the registry)."""
        self._registered = False
        self._announcements = 1
        self._announce_at = now + self._next_timeout(self._announcements)

    def on_inbox_advanced(self, until: Position) -> None:
        """There is something in the inbox up to ``until``."""
        self.target = max(self.target, until)

    def acknowledge(self, position: Position) -> bool:
        """Return whether an acknowledgement moved the cursor; raises ``InvalidAck`` above what was forwarded."""
        if position > self.forwarded:
            raise InvalidAck(f"{position} was not sent to this connection yet")
        if position <= self.acked:
            return False
        self.acked = position
        had = 0
        for until, messages, size, _ in self._unacknowledged:
            if until > position:
                break
            self._count -= messages
            self._bytes -= size
            had += 1
        # The one that the position is in, or else the last before it.
        last = self._unacknowledged[-1].at if self._unacknowledged else None
        self.acked_forwarded_at = next((one.at for one in self._unacknowledged if one.until >= position), last)
        del self._unacknowledged[:had]
        return True

    @property
    def is_behind(self) -> bool:
        """Return whether there is more in the inbox than was forwarded."""
        return self.forwarded < self.target

    @property
    def is_half_used(self) -> bool:
        """Return whether the window is at least half used up, so that an acknowledgement should travel at once."""
        return 2 * self._count >= self._limits.window or 2 * self._bytes >= self._limits.window_bytes

    def due(self, now: float) -> PageRequest | RegistrationDue | None:
        """The one rule for progress (invariant 5): what to do now. To be called until it returns ``None``."""
        if not self._registered and now >= self._announce_at:
            self._announcements += 1
            self._announce_at = now + self._next_timeout(self._announcements)
            return RegistrationDue()
        if self.forwarded >= self.target:
            return None
        if not self._has_room_for_page():
            self.stalls += self._was_open
            self._was_open = False
            return None
        self._was_open = True
        if now < self._request_at:
            return None
        self.request += 1
        self._requested_until = self.target
        self.outstanding = True
        self._attempts += 1
        timeout = self._next_timeout()
        self._request_at = now + timeout
        return PageRequest(
            self.request,
            self.forwarded,
            min(self._limits.page, self._limits.window - self._count),
            min(self._limits.page_bytes, self._limits.window_bytes - self._bytes),
            timeout,
        )

    def postpone_request(self) -> None:
        """Take the last request back: there was no room for its answer. It is made again when it is due."""
        self.outstanding = False
        self._attempts = max(0, self._attempts - 1)

    def resume_requests(self, now: float) -> None:
        """There is room for an answer: a request that was taken back is due at once."""
        if not self.outstanding:
            self._request_at = now

    def next_due(self) -> float | None:
        """The time when ``due`` has something to do if nothing else happens; ``None`` for never."""
        times = []
        if not self._registered:
            times.append(self._announce_at)
        if self.forwarded < self.target and self._has_room_for_page():
            times.append(self._request_at)
        return min(times, default=None)

    def _has_room_for_page(self) -> bool:
        return not self._count or (
            WINDOW_SHARE * (self._limits.window - self._count) >= self._limits.window
            and WINDOW_SHARE * (self._limits.window_bytes - self._bytes) >= self._limits.window_bytes
        )

    def _forward(self, until: Position, count: int, objects: bytes, now: float) -> bytes:
        # What lies between the end of the last frame and this range holds no messages.
        frame = protocol.messages(self._chained_until, until, objects)
        self.forwarded = self._chained_until = until
        self._unacknowledged.append(_Unacknowledged(until, count, len(objects), now))
        self._count += count
        self._bytes += len(objects)
        return frame

    def _answered(self, request: int, advanced: bool, now: float) -> None:
        content = advanced or self.forwarded >= self.target
        if content:
            self._attempts = 0
        if self.outstanding and request == self.request:
            self.outstanding = False
            # An answer that advanced nothing is no reason for a request at once: the same would come again.
            self._request_at = now if content or self.target > self._requested_until else now + self._next_timeout()
        elif advanced and not self.outstanding:
            self._request_at = now

    def _caught_up(self) -> list[bytes]:
        if self._caught_up_at is None or self.forwarded < self._caught_up_at:
            return []
        self._caught_up_at = None
        return [protocol.caught_up(self.forwarded)]

    def _next_timeout(self, attempts: int | None = None) -> float:
        doublings = min((self._attempts if attempts is None else attempts) - 1, 10)
        return min(LONGEST_TIMEOUT, FIRST_TIMEOUT * float(1 << max(0, doublings))) * self._jitter()
