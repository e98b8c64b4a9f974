"""What each service says of itself every few seconds: a small record of ``service_stats``, for the inspector.

Counters only ever rise while a process lives; a new process has a new ``started_at`` and begins at 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import msgspec
import structlog

from chat_streams.model.times import now_ms

log = structlog.get_logger()

INTERVAL_S: Final = 5.0
BOUNDS_MS: Final = tuple(2.0**n / 4 for n in range(20))
"""Upper bounds of a histogram's buckets: 0.25 ms to 131 s, each twice the one before."""

engines: Final[Counter[str]] = Counter()
"""What this process met at its engines: ``engine_errors_<engine>``, ``engine_retries_<what was tried again>``."""


@contextlib.contextmanager
def counting_errors(engine: str) -> Iterator[None]:
    """Count what the body raises as an error of an engine."""
    try:
        yield
    except Exception:
        engines[f"engine_errors_{engine}"] += 1
        raise


class Histogram:
    """Counts of times in 21 buckets, and their sum in ms; a quantile is the upper bound of its bucket, in ms."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_MS) + 1)
        self.sum_ms = 0.0
        self._told = self.counts.copy()

    def add(self, ms: float, times: int = 1) -> None:
        """Count a time, once or more."""
        self.counts[bisect_left(BOUNDS_MS, ms)] += times
        self.sum_ms += ms * times

    def delta(self) -> Histogram:
        """What was counted since this was asked last, without its sum."""
        found = Histogram()
        found.counts = [new - old for new, old in zip(self.counts, self._told, strict=True)]
        self._told = self.counts.copy()
        return found

    def quantile(self, share: float) -> float | None:
        """The bound below which this share (0 to 1) of the times is; ``None`` when there are none."""
        wanted, seen = share * sum(self.counts), 0
        if not wanted:
            return None
        for bound, count in zip((*BOUNDS_MS, 2 * BOUNDS_MS[-1]), self.counts, strict=True):
            seen += count
            if seen >= wanted:
                return bound
        return None


class AgentStats(msgspec.Struct):
    """An agent: records and batches since the start, times of the batches of the last interval in ms, last failure."""

    topic: str
    records: int = 0
    batches: int = 0
    errors: int = 0
    dead_letters: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None
    last_error: str | None = None
    last_error_at: int | None = None


class ServiceStats(msgspec.Struct):
    """A record of ``service_stats``; times in ms since the epoch. ``partitions`` are by topic."""

    service: str
    instance: str
    at: int
    started_at: int
    counters: dict[str, int] = {}
    gauges: dict[str, float] = {}
    agents: list[AgentStats] = []
    partitions: dict[str, list[int]] = {}


decode: Final = msgspec.json.Decoder(ServiceStats).decode
encode: Final = msgspec.json.Encoder().encode


class Statistics:
    """What one process counts: the inspector is told of it every few seconds, ``metrics.py`` shows it to Prometheus.

    ``gauges`` and ``partitions`` are asked for when either is due.
    """

    def __init__(self, service: str) -> None:
        self.service = service
        self.instance = f"{service}@{socket.gethostname()}:{os.getpid()}"
        self.started_at = now_ms()
        self.counters: Counter[str] = Counter()
        self.times: dict[str, Histogram] = {}
        self.gauges: Callable[[], dict[str, float]] = dict
        self.partitions: Callable[[], dict[str, list[int]]] = dict
        self._agents: dict[str, AgentStats] = {}

    def observe(self, what: str, seconds: float, times: int = 1) -> None:
        """Count a time, once or more."""
        histogram = self.times.get(what)
        if histogram is None:
            histogram = self.times[what] = Histogram()
        histogram.add(1000 * seconds, times)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count how long the body takes, unless it raises."""
        began = time.monotonic()
        yield
        self.observe(what, time.monotonic() - began)

    def totals(self) -> dict[str, int]:
        """All that only ever rises, by name."""
        found = dict(self.counters) | engines
        for topic, agent in self._agents.items():
            found[f"records_{topic}"] = agent.records
            found[f"errors_{topic}"] = agent.errors
            found[f"dead_letters_{topic}"] = agent.dead_letters
        return found

    def batch(self, topic: str, records: int, seconds: float) -> None:
        """An agent applied a batch."""
        agent = self.agent(topic)
        agent.records += records
        agent.batches += 1
        self.observe(f"batch_{topic}", seconds)

    def failed(self, topic: str, error: BaseException, dead_letter: bool = False) -> None:
        """Applying a record failed, or it became a dead letter."""
        agent = self.agent(topic)
        agent.errors += 1
        agent.dead_letters += dead_letter
        # An exception may quote a value, and a value what people write: its kind is enough, the log has the rest.
        agent.last_error = type(error).__name__
        agent.last_error_at = now_ms()

    def record(self) -> ServiceStats:
        """What is to be written now; times of batches begin anew."""
        for topic, agent in self._agents.items():
            times = self._delta(f"batch_{topic}")
            agent.p50_ms, agent.p99_ms = times.quantile(0.5), times.quantile(0.99)
        latency = self._delta("delivery")
        gauges = self.gauges()
        for name, share in (("latency_p50_ms", 0.5), ("latency_p99_ms", 0.99)):
            if (found := latency.quantile(share)) is not None:
                gauges[name] = found
        return ServiceStats(
            self.service,
            self.instance,
            now_ms(),
            self.started_at,
            dict(self.counters),
            gauges,
            list(self._agents.values()),
            self.partitions(),
        )

    async def publish(self, send: Callable[[bytes, bytes], Awaitable[Any]]) -> None:
        """Publish it every ``INTERVAL_S``, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.publish_once(send)

    async def publish_once(self, send: Callable[[bytes, bytes], Awaitable[Any]]) -> None:
        """Write a record with ``send(key, value)``, due every ``INTERVAL_S``; one that can't be written is left out."""
        try:
            async with asyncio.timeout(INTERVAL_S):
                await send(self.instance.encode(), encode(self.record()))
        except Exception as error:  # noqa: BLE001 - what is said of a service must not end it
            log.warning("statistics are not written", error=repr(error))

    def agent(self, topic: str) -> AgentStats:
        """What is counted of the agent of a topic; from the first call on it is told of."""
        found = self._agents.get(topic)
        if found is None:
            found = self._agents[topic] = AgentStats(topic)
        return found

    def _delta(self, what: str) -> Histogram:
        return self.times[what].delta() if what in self.times else Histogram()
