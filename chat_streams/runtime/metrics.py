"""The registry of this process's metrics, and the page that shows them to Prometheus.

A metric is defined beside what it counts, under the name that ``docs/metrics.md`` has. A label has few values: a
topic, a partition, a close code; never a user or a message. Those that are known to come are shown before anything
happened: a counter that comes into being with a 1 has no increase that Prometheus could see.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

PREFIX: Final = "connect_chat_"
PATH: Final = "/metrics"
REGISTRY: Final = CollectorRegistry()
BUCKETS: Final = tuple(2.0**n / 4000 for n in range(20))
"""Upper bounds of a histogram's buckets in s: 0.25 ms to 131 s, each twice the one before."""

# When each counter was made would be another line for each: the start of the process says so, too.
disable_created_metrics()  # type: ignore[no-untyped-call]


class WeightedHistogram(Collector):
    """A histogram without labels that takes a value many times at once: a delivery has one delay for all its messages.

    ``prometheus_client.Histogram`` takes one at a time, under two locks: 0.7 us a message. This takes 0.15 us a
    delivery, and is for the thread of the event loop alone.
    """

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry = REGISTRY) -> None:
        self._name = name
        self._documentation = documentation
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, once or more."""
        self._counts[bisect_left(BUCKETS, value)] += times
        self._sum += value * times

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """The name, without samples: the registry refuses a second metric of that name."""
        yield HistogramMetricFamily(self._name, self._documentation)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """All that was counted."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        yield HistogramMetricFamily(self._name, self._documentation, buckets, self._sum)


class Exposition:
    """``/metrics`` of one process: what some registries hold, and Prometheus' usual metrics of a process."""

    def __init__(self, *registries: Collector) -> None:
        self._registry = CollectorRegistry()
        for collector in registries:
            self._registry.register(collector)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    async def answer(self, _: web.Request) -> web.Response:
        """``GET /metrics``."""
        return web.Response(body=self.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})
