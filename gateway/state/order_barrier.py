"""The order of messages to one recipient when one of them was refused: what was sent behind it is held back."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

HELD_SECONDS: Final = 30.0


class _Refused(NamedTuple):
    message_id: str
    until: float


class OrderBarrier:
    """The recipients of one connection to whom a message was refused, each with the first such message.

    A recipient's further messages are held back until that one is sent again, for at most ``HELD_SECONDS``. At most
    ``limit`` recipients are remembered: past it the one refused for longest is let through, as if his time were over.
    With a limit of as many messages as a client may have unconfirmed, a record that fails is remembered whole.

    Times are in seconds of a monotonic clock.
    """

    __slots__ = ("_by_recipient", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # In the order in which they were refused, so in that of their times, too.
        self._by_recipient: OrderedDict[str, _Refused] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_recipient)

    def refuse(self, to: str, message_id: str, now: float) -> None:
        """Hold back what comes behind a refused message; an earlier one to the same recipient stays the first."""
        known = self._by_recipient.get(to)
        if known is not None:
            if now <= known.until:
                return
            del self._by_recipient[to]
        while self._by_recipient:
            oldest = next(iter(self._by_recipient))
            if len(self._by_recipient) < self._limit and now <= self._by_recipient[oldest].until:
                break
            del self._by_recipient[oldest]
        self._by_recipient[to] = _Refused(message_id, now + HELD_SECONDS)

    def blocker(self, to: str, message_id: str, now: float) -> str | None:
        """The id of the refused message that must be sent again before this one, if there is one."""
        refused = self._by_recipient.get(to)
        if refused is None:
            return None
        if message_id == refused.message_id or now > refused.until:
            del self._by_recipient[to]
            return None
        return refused.message_id
