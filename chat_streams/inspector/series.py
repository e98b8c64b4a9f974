"""The last hour as points of 5 s, from the records of ``service_stats``; pure, and of bounded size."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from typing import Final, NamedTuple

import msgspec

from chat_streams.inspector.ledger import Ledger
from chat_streams.kafka.log_clock import MOST_SKEW_S
from chat_streams.kafka.names import INCOMING_MESSAGES
from chat_streams.runtime.statistics import INTERVAL_S, ServiceStats

HOUR_MS: Final = 3600 * 1000
STEP_MS: Final = int(INTERVAL_S * 1000)
POINTS: Final = HOUR_MS // STEP_MS
MAX_INSTANCES: Final = 200
MAX_EVENTS: Final = 200
SPOKE_MS: Final = STEP_MS * 3 // 2
"""The age up to which an instance's newest record is up to date."""
GONE_MS: Final = 4 * STEP_MS
"""The age of its newest record beyond which an instance is gone."""
COUNTED: Final = ("gateway", "messaging")
"""The services whose counters go into the ledger."""
WITNESSES: Final = {
    "dead_letters": "dead_letters was written to: what is redriven is applied without being accepted anew",
    "redis_since": "Redis was away: what it lost is applied again",
    "lost": "records were gone from the log before they were applied",
}
"""Gauges of the inspector with the reason that a change of one gives for the ledger to be off."""
_COUNTERS: Final = ("accepted", "delivered", "acknowledged", "appended", "overflowed", "retries", "stored", "refused")
_HIGHEST: Final = ("latency_p50_ms", "latency_p99_ms", "lag_messaging", "lag_notification", "lag_history")


class Event(NamedTuple):
    """An event on the time line: a start or a rebalance."""

    at: int
    what: str
    instance: str


class OnLogTime:
    """Puts the records of all processes on the log's time, however wrong the clocks of their machines are.

    The difference of a process is kept, so that its start and its intervals stay what they were, until it has changed
    by more than ``MOST_SKEW_S``: its clock was set.
    """

    def __init__(self) -> None:
        self._ahead: OrderedDict[tuple[str, int], int] = OrderedDict()

    def of(self, record: ServiceStats, logged_at: int) -> ServiceStats:
        """Return a record, which was appended at ``logged_at`` (ms since the epoch), with the log's times."""
        key, now = (record.instance, record.started_at), record.at - logged_at
        ahead = self._ahead.get(key)
        if ahead is None or abs(now - ahead) > 1000 * MOST_SKEW_S:
            ahead = now
        self._ahead[key] = ahead
        self._ahead.move_to_end(key)
        if len(self._ahead) > MAX_INSTANCES:
            self._ahead.popitem(last=False)
        return msgspec.structs.replace(record, at=record.at - ahead, started_at=record.started_at - ahead)


class Series:
    """The points by time, the newest record of each instance, the latest events, and the ledger."""

    def __init__(self) -> None:
        self._points: OrderedDict[int, defaultdict[str, float]] = OrderedDict()
        self.instances: OrderedDict[str, ServiceStats] = OrderedDict()
        self.before: dict[str, ServiceStats] = {}
        """The record before the newest of each instance, for rates."""
        self.events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self.ledger = Ledger()
        self._ended: OrderedDict[str, None] = OrderedDict()

    def add(self, record: ServiceStats) -> None:
        """Add a record; records must be added in the order of the topic."""
        previous = self.instances.get(record.instance)
        deltas = self._deltas(previous, record)
        point = self._points.get(record.at // STEP_MS * STEP_MS)
        if point is None:
            point = self._points[record.at // STEP_MS * STEP_MS] = defaultdict(float)
        for name in _COUNTERS:
            point[name] += deltas.get(name, 0)
        for name in _HIGHEST:
            if name in record.gauges:
                point[name] = max(point.get(name, 0.0), record.gauges[name])
        point["dead"] += (dead := max(0, _dead(record) - (_dead(previous) if _same(previous, record) else 0)))
        self._note(previous, record)
        if record.service in COUNTED:
            self.ledger.count(record.at, deltas, dead)
        if previous is not None:
            self.before[record.instance] = previous
        self.instances[record.instance] = record
        self.instances.move_to_end(record.instance)
        newest = record.at
        while self._points and next(iter(self._points)) < newest - HOUR_MS:
            self._points.popitem(last=False)
        while len(self._points) > POINTS + 1:
            self._points.popitem(last=False)
        if record.service == "inspector":
            self._judge(previous, record)
        while len(self.instances) > MAX_INSTANCES:
            gone, _ = self.instances.popitem(last=False)
            self.before.pop(gone, None)

    def rate(self, instance: str, counter: str) -> float | None:
        """Return a counter's increase per second between the last two records of an instance."""
        new, old = self.instances.get(instance), self.before.get(instance)
        if new is None or old is None or old.started_at != new.started_at or new.at <= old.at:
            return None
        return 1000 * (new.counters.get(counter, 0) - old.counters.get(counter, 0)) / (new.at - old.at)

    def living(self, now: int) -> list[ServiceStats]:
        """Return the newest record of each instance that is not gone, ordered by service."""
        found = [r for r in self.instances.values() if now - r.at <= GONE_MS]
        return sorted(found, key=lambda r: (r.service, r.started_at))

    def since(self, start_ms: int) -> dict[str, float]:
        """Return the increase of each counter since a time (ms since the epoch), to within a point."""
        total: defaultdict[str, float] = defaultdict(float)
        for at, point in self._points.items():
            if at + STEP_MS > start_ms:
                for name in (*_COUNTERS, "dead"):
                    total[name] += point.get(name, 0)
        return dict(total)

    def chart(self) -> dict[str, list[float | None]]:
        """Return columns of equal length: ``at`` in s, rates per second, gauges, and the change of pending messages."""
        times = sorted(self._points)
        columns: dict[str, list[float | None]] = {"at": [t / 1000 for t in times]}
        for name in ("accepted", "delivered", "acknowledged"):
            columns[name] = [self._points[t].get(name, 0) / INTERVAL_S for t in times]
        for name in _HIGHEST:
            columns[name] = [self._points[t].get(name) for t in times]
        pending, running = [], 0.0
        for t in times:
            running += self._points[t].get("appended", 0) - self._points[t].get("acknowledged", 0)
            pending.append(running)
        columns["pending"] = list(pending)
        return columns

    def _deltas(self, previous: ServiceStats | None, record: ServiceStats) -> dict[str, int]:
        if previous is not None and _same(previous, record):
            return {n: v - previous.counters.get(n, 0) for n, v in record.counters.items()}
        # The first record of a process that is not new: its counters cover the time before the first point.
        return dict(record.counters) if record.at - record.started_at <= 2 * STEP_MS else {}

    def _note(self, previous: ServiceStats | None, record: ServiceStats) -> None:
        if previous is None or not _same(previous, record):
            if record.at - record.started_at <= 2 * STEP_MS:
                self.events.append(Event(record.started_at, "started", record.instance))
            return
        more = record.gauges.get("rebalances", 0) - previous.gauges.get("rebalances", 0)
        if more > 0:
            self.events.append(Event(record.at, f"{more:g} rebalance{'s' if more > 1 else ''}", record.instance))
            if record.service == "messaging":
                self.ledger.explain(
                    record.at, f"{record.instance} was in a rebalance, after which some is applied again"
                )

    def _judge(self, previous: ServiceStats | None, record: ServiceStats) -> None:
        """Check the ledger at each of the inspector's own records, which have the lag of messaging."""
        silent = False
        for other in self.instances.values():
            if other.service in COUNTED and other.at < record.at - SPOKE_MS:
                if other.at >= record.at - GONE_MS:
                    silent = True
                elif other.instance not in self._ended:
                    self._ended[other.instance] = None
                    self.ledger.explain(other.at, f"{other.instance} ended, and up to 5 s of its counts with it")
        while len(self._ended) > MAX_INSTANCES:
            self._ended.popitem(last=False)
        if previous is not None and _same(previous, record):
            for name, text in WITNESSES.items():
                if previous.gauges.get(name) != record.gauges.get(name):
                    self.ledger.explain(record.at, text)
        if "lag_messaging" in record.gauges:
            self.ledger.judge(record.at, int(record.gauges["lag_messaging"]), not silent)


def _same(previous: ServiceStats | None, record: ServiceStats) -> bool:
    """Return whether a record is of the same process as the one before it."""
    return previous is not None and previous.started_at == record.started_at


def _dead(record: ServiceStats | None) -> int:
    """Return the dead letters of messaging from ``incoming_messages``; only these are part of the ledger."""
    if record is None:
        return 0
    return sum(a.dead_letters for a in record.agents if (record.service, a.topic) == ("messaging", INCOMING_MESSAGES))
