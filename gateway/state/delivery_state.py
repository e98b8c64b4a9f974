"""What one connection has been sent, has acknowledged and still wants: a state machine without I/O.

``docs/architecture.md``, invariants 4 and 5. Times are in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from chat_streams.model.position import ORIGIN, Position
from chat_streams.model.records import FIRST_REQUEST, Delivery, Missed
from gateway import protocol

FIRST_PATIENCE: Final = 2.0
LONGEST_PATIENCE: Final = 30.0
WINDOW_SHARE: Final = 4
"""The inbox is asked for a page once a fourth of the window is free: not for a message at a time."""


class AckRefused(Exception):
    """A client acknowledged what it was not sent."""


class Ask(NamedTuple):
    """A page of the inbox that is wanted now, useless after ``patience`` seconds."""

    request: int
    after: Position
    limit: int
    limit_bytes: int
    patience: float


class Announce(NamedTuple):
    """The registry has not answered: tell it of this connection (again)."""


class _Unacknowledged(NamedTuple):
    until: Position
    messages: int
    size: int
    at: float


@dataclass(frozen=True)
class Limits:
    """Of what may be forwarded and not acknowledged, and of one page."""

    window: int
    window_bytes: int
    page: int
    page_bytes: int


class Connection:
    """The state of one connection after its hello.

    ``forwarded`` is the position up to which the client was sent everything above the cursor it connected with;
    ``acked`` the one it has acknowledged, which was forwarded at ``acked_forwarded_at`` (``None`` while nothing was);
    ``target`` the highest position heard of. While ``forwarded < target`` and the window is open, ``due`` asks.
    ``jitter`` returns a factor of 0.5 to 1.
    """

    __slots__ = (
        *("_announce_at", "_announcements", "_ask_at", "_asked_for", "_attempts", "_bytes", "_caught_up_at", "_count"),
        *("_jitter", "_limits", "_registered", "_told", "_unacknowledged", "_was_open", "_was_registered"),
        *("acked", "acked_forwarded_at", "forwarded", "outstanding", "request", "stalls", "target"),
    )

    def __init__(self, cursor: Position, limits: Limits, now: float, jitter: Callable[[], float]) -> None:
        self.forwarded = cursor
        self.acked = cursor
        self.acked_forwarded_at: float | None = None
        self.target = ORIGIN
        self.request = FIRST_REQUEST
        self.stalls = 0
        self._told = cursor
        self._limits = limits
        self._jitter = jitter
        self._unacknowledged: list[_Unacknowledged] = []
        self._count = 0
        self._bytes = 0
        # The first page is on its way: the notification service sends it when it hears of the connection.
        self.outstanding = True
        self._asked_for = ORIGIN
        self._attempts = 1
        self._ask_at = now + self._patience()
        self._registered = self._was_registered = False
        self._announcements = 1
        self._announce_at = now + self._patience()
        self._caught_up_at: Position | None = None
        self._was_open = True

    @property
    def window_open(self) -> bool:
        """Whether anything may be forwarded."""
        return self._count < self._limits.window and self._bytes < self._limits.window_bytes

    @property
    def unacknowledged(self) -> int:
        """Messages forwarded and not acknowledged."""
        return self._count

    @property
    def is_caught_up(self) -> bool:
        """Whether all that the inbox held on connecting was forwarded."""
        return self._was_registered and self._caught_up_at is None

    @property
    def unacknowledged_bytes(self) -> int:
        """Of what was forwarded and not acknowledged."""
        return self._bytes

    def deliver(self, delivery: Delivery, now: float) -> list[bytes]:
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

    def missed(self, missed: Missed, now: float) -> list[bytes]:
        """The frames to send for a range that left the inbox: the same rule."""
        before = self.forwarded
        frames: list[bytes] = []
        if missed.until > self.forwarded:
            if missed.after <= self.forwarded and self.window_open:
                frames.append(protocol.missed(self._told, missed.until))
                self.forwarded = self._told = missed.until
            self.target = max(self.target, missed.until)
        self._answered(missed.request, self.forwarded > before, now)
        return frames + self._caught_up()

    def registered(self, top: Position) -> list[bytes]:
        """The registry names this connection; the inbox's top was ``top`` after that."""
        self.target = max(self.target, top)
        if not self._was_registered:
            self._caught_up_at = top
        self._registered = self._was_registered = True
        return self._caught_up()

    def unregistered(self, now: float) -> None:
        """The registry must hear of this connection again (another slot, another keeper of the registry)."""
        self._registered = False
        self._announcements = 1
        self._announce_at = now + self._patience(self._announcements)

    def heard_of(self, until: Position) -> None:
        """There is something up to ``until``."""
        self.target = max(self.target, until)

    def acknowledge(self, position: Position) -> bool:
        """Whether an acknowledgement moved the cursor; raises ``AckRefused`` above what was forwarded."""
        if position > self.forwarded:
            raise AckRefused(f"{position} was not sent to this connection yet")
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
        """Whether there is more in the inbox than was forwarded."""
        return self.forwarded < self.target

    @property
    def half_unreported(self) -> bool:
        """Whether the window is at least half used up, so that an acknowledgement should travel at once."""
        return 2 * self._count >= self._limits.window or 2 * self._bytes >= self._limits.window_bytes

    def due(self, now: float) -> Ask | Announce | None:
        """What to do now: the one rule for progress (invariant 5). To be called until it returns ``None``."""
        if not self._registered and now >= self._announce_at:
            self._announcements += 1
            self._announce_at = now + self._patience(self._announcements)
            return Announce()
        if self.forwarded >= self.target:
            return None
        if not self._room():
            self.stalls += self._was_open
            self._was_open = False
            return None
        self._was_open = True
        if now < self._ask_at:
            return None
        self.request += 1
        self._asked_for = self.target
        self.outstanding = True
        self._attempts += 1
        patience = self._patience()
        self._ask_at = now + patience
        return Ask(
            self.request,
            self.forwarded,
            min(self._limits.page, self._limits.window - self._count),
            min(self._limits.page_bytes, self._limits.window_bytes - self._bytes),
            patience,
        )

    def not_asked(self) -> None:
        """Take back what ``due`` last wanted asked: there was no room for the answer. It is wanted again when due."""
        self.outstanding = False
        self._attempts = max(0, self._attempts - 1)

    def room_again(self, now: float) -> None:
        """There is room for an answer: ask at once what was not asked."""
        if not self.outstanding:
            self._ask_at = now

    def next_due(self) -> float | None:
        """When ``due`` has something to do if nothing else happens; ``None`` for never."""
        times = []
        if not self._registered:
            times.append(self._announce_at)
        if self.forwarded < self.target and self._room():
            times.append(self._ask_at)
        return min(times, default=None)

    def _room(self) -> bool:
        return not self._count or (
            WINDOW_SHARE * (self._limits.window - self._count) >= self._limits.window
            and WINDOW_SHARE * (self._limits.window_bytes - self._bytes) >= self._limits.window_bytes
        )

    def _forward(self, until: Position, count: int, objects: bytes, now: float) -> bytes:
        # What lies between the last range told and this one holds no messages.
        frame = protocol.messages(self._told, until, objects)
        self.forwarded = self._told = until
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
            # An answer that advanced nothing is no reason to ask at once: the same would come again.
            self._ask_at = now if content or self.target > self._asked_for else now + self._patience()
        elif advanced and not self.outstanding:
            self._ask_at = now

    def _caught_up(self) -> list[bytes]:
        if self._caught_up_at is None or self.forwarded < self._caught_up_at:
            return []
        self._caught_up_at = None
        return [protocol.caught_up(self.forwarded)]

    def _patience(self, attempts: int | None = None) -> float:
        doublings = min((self._attempts if attempts is None else attempts) - 1, 10)
        return min(LONGEST_PATIENCE, FIRST_PATIENCE * float(1 << max(0, doublings))) * self._jitter()
