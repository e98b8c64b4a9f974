"""The live balance of accepted messages against applied ones, by the counters of the services (pure).

Services publish their counters at different times, so at any moment the balance is off by what they did in seconds. It
is exact when nothing was counted for two intervals and nothing waits in the log; from one such moment to the next it
must add up to 0. In between it may be off by no more than the messages in flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple

from chat_streams.model.records import MAX_MESSAGES
from chat_streams.runtime.statistics import INTERVAL_S

INTERVAL_MS: Final = int(1000 * INTERVAL_S)
QUIET: Final = 2
"""The number of intervals without a change after which every service has published all that it counted."""
PATIENCE: Final = 3
"""The number of intervals that the balance may be off before it counts as wrong."""
MAX_REASONS: Final = 20
APPLIED: Final = ("appended", "retries", "overflowed")
"""The counters of messaging that add up to the messages it applied."""


class Reason(NamedTuple):
    """An event that is known to make the counters differ, with its time in ms since the epoch."""

    at: int
    text: str


class Ledger:
    """The balance of accepted messages against those that messaging applied; times in ms since the epoch."""

    def __init__(self) -> None:
        self.off = 0
        """Messages accepted and not applied since the balance was exact last; negative if more were applied."""
        self.exact_at: int | None = None
        """The time at which the balance was exact last; ``None`` before the first time."""
        self.off_since: int | None = None
        """The time since which the balance is off by too much; ``None`` while it is not."""
        self.wrong = False
        """True while the balance is off for too long and there is no reason for it."""
        self.reasons: deque[Reason] = deque(maxlen=MAX_REASONS)
        """The reasons why the balance may be off, since it was exact last."""
        self.explained: deque[Reason] = deque(maxlen=MAX_REASONS)
        """The differences since the last audit for which there was a reason, each with its amount."""
        self._again = 0
        self._moves: deque[tuple[int, int, int]] = deque(maxlen=1_000)
        self._began: int | None = None

    def count(self, at: int, rose: Mapping[str, int], dead: int) -> None:
        """Add the increase of a process's counters; ``dead`` is the number of records that became dead letters."""
        accepted, applied = rose.get("accepted", 0), sum(rose.get(name, 0) for name in APPLIED)
        self._again += rose.get("retries", 0)
        if accepted or applied or dead:
            self.off += accepted - applied - dead
            self._moves.append((at, accepted, applied))
        if refused := rose.get("refused", 0):
            self.reasons.append(Reason(at, f"{refused:,} were refused, and may be in the log all the same"))
        if dead:
            self.reasons.append(Reason(at, f"{dead:,} records became dead letters, of one message or many"))

    def explain(self, at: int, text: str) -> None:
        """Add a reason why the balance may be off."""
        self.reasons.append(Reason(at, text))

    def audited(self, at: int) -> None:
        """Start again after an audit made ``at`` a time, as its result is exact."""
        if self.exact_at is not None and self.exact_at < at:
            self.__init__()  # type: ignore[misc]

    def judge(self, now: int, lag: int, all_spoke: bool) -> None:
        """Check the balance; does nothing unless ``all_spoke``: each running process has published counters lately.

        ``lag`` is messaging's lag in records.
        """
        if not all_spoke:
            return
        self._began = self._began or now
        last = self._moves[-1][0] if self._moves else self._began
        quiet = not lag and now - last >= QUIET * INTERVAL_MS
        if self.exact_at is None:
            if quiet:
                self._exact(now)
            return
        if not self.off and quiet:
            self._exact(now)
        elif quiet or not self._plausible(now, lag):
            self.off_since = self.off_since or now
            if now - self.off_since < PATIENCE * INTERVAL_MS:
                return
            if not self.reasons and -self._again <= self.off < 0:
                self.reasons.append(Reason(now, "records were applied again, and counted as retries"))
            if not self.reasons:
                self.wrong = True
            elif quiet:
                why = "; ".join(reason.text for reason in self.reasons)
                self.explained.append(Reason(self.reasons[0].at, f"off by {self.off:+,}: {why}"))
                self._exact(now)
        else:
            self.off_since, self.wrong = None, False

    def _exact(self, now: int) -> None:
        self.off, self._again, self.exact_at, self.off_since, self.wrong = 0, 0, now, None, False
        self.reasons.clear()

    def _plausible(self, now: int, lag: int) -> bool:
        lately = [move for move in self._moves if now - move[0] <= 2 * QUIET * INTERVAL_MS]
        moving = max(sum(accepted for _, accepted, _ in lately), sum(applied for _, _, applied in lately))
        return -moving <= self.off <= moving + lag * MAX_MESSAGES
