"""What Prometheus is shown: the ``Statistics`` of a process under the names of ``docs/metrics.md``.

Nothing is counted here. A label has few values: a topic, a partition, a close code; never a user or a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Literal, NamedTuple

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from chat_streams.kafka.names import GROUPS
from chat_streams.runtime.statistics import BOUNDS_MS, Histogram, Statistics

PREFIX: Final = "connect_chat_"
PATH: Final = "/metrics"
ALL: Final = ("gateway", *GROUPS, "inspector")
_BOUNDS: Final = (*(f"{bound / 1000:g}" for bound in BOUNDS_MS), "+Inf")


class Definition(NamedTuple):
    """A metric: ``source`` is what it is called in ``Statistics``, and with one label, what that name begins with.

    Without a ``source`` the service makes it itself. ``known`` are values of the label that are shown before anything
    happened: a counter that comes into being with a 1 has no increase that Prometheus could see.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    services: tuple[str, ...]
    help: str
    source: str = ""
    labels: tuple[str, ...] = ()
    known: tuple[str, ...] = ()


Samples = Mapping[str, Iterable[tuple[tuple[str, ...], float]]]
"""By metric: values of its labels, and its value."""

_GATEWAY: Final = ("gateway",)
_INSPECTOR: Final = ("inspector",)
_LAG: Final = ("group", "topic", "partition")

METRICS: Final = (
    Definition("gateway_connections", "gauge", _GATEWAY, "WebSockets that are open.", "connections"),
    Definition(
        "gateway_lease_held", "gauge", _GATEWAY, "1 while it holds a slot: else it takes no connection.", "lease"
    ),
    Definition("gateway_produce_buffer_bytes", "gauge", _GATEWAY, "What waits for Kafka.", "produce_buffer_bytes"),
    Definition(
        "gateway_messages_accepted_total", "counter", _GATEWAY, "Kafka has them, and the sender was told.", "accepted"
    ),
    Definition("gateway_messages_refused_total", "counter", _GATEWAY, "Kafka did not take them.", "refused"),
    Definition("gateway_messages_forwarded_total", "counter", _GATEWAY, "Handed to a recipient's socket.", "delivered"),
    Definition("gateway_messages_acknowledged_total", "counter", _GATEWAY, "Acknowledged by a device.", "confirmed"),
    Definition(
        "gateway_window_stalls_total",
        "counter",
        _GATEWAY,
        "Times a client's window was full with more to come.",
        "stalls",
    ),
    Definition(
        "gateway_connections_closed_total",
        "counter",
        _GATEWAY,
        "By close code; 0 for codes of the client's own.",
        "closed_",
        ("code",),
        ("1000",),
    ),
    Definition(
        "gateway_produce_seconds",
        "histogram",
        _GATEWAY,
        "From a record's leaving to Kafka's answer.",
        "produce_",
        ("topic",),
    ),
    Definition(
        "gateway_delivery_seconds",
        "histogram",
        _GATEWAY,
        "Messages to users who are connected: from accepted to forwarded.",
        "delivery",
    ),
    Definition(
        "gateway_acknowledgement_seconds",
        "histogram",
        _GATEWAY,
        "The same messages: from accepted to acknowledged by the device.",
        "acknowledgement",
    ),
    Definition(
        "gateway_catch_up_seconds",
        "histogram",
        _GATEWAY,
        "From welcome until all that waited in the inbox is forwarded.",
        "catch_up",
    ),
    Definition("agent_records_total", "counter", GROUPS, "Records applied.", "records_", ("topic",)),
    Definition("agent_errors_total", "counter", GROUPS, "Times that applying a record failed.", "errors_", ("topic",)),
    Definition(
        "agent_batch_seconds",
        "histogram",
        GROUPS,
        "Applying a batch of records, with all its effects.",
        "batch_",
        ("topic",),
    ),
    Definition(
        "dead_letters_total", "counter", GROUPS, "Records that could not be applied.", "dead_letters_", ("topic",)
    ),
    Definition("worker_partitions", "gauge", GROUPS, "Partitions this worker has.", "partitions_", ("topic",)),
    Definition("worker_rebalances_total", "counter", GROUPS, "Rebalances of its group.", "rebalances"),
    Definition("worker_rebalancing", "gauge", GROUPS, "1 during a rebalance.", "rebalancing"),
    Definition("worker_recovering", "gauge", GROUPS, "1 while its table is read from the changelog.", "recovering"),
    Definition("worker_table_rows", "gauge", ("messaging",), "Rows of its part of a table.", "table_", ("table",)),
    Definition("worker_commit_seconds", "histogram", GROUPS, "Committing offsets.", "commit"),
    Definition("inbox_messages_appended_total", "counter", ("messaging",), "Messages new in an inbox.", "appended"),
    Definition(
        "inbox_messages_overflowed_total", "counter", ("messaging",), "Past a quota: in history only.", "overflowed"
    ),
    Definition("inbox_messages_retried_total", "counter", ("messaging",), "There already.", "retries"),
    Definition(
        "inbox_messages_removed_total",
        "counter",
        ("gateway", "notification"),
        "Acknowledged by all devices of their user.",
        "acknowledged",
    ),
    Definition(
        "inbox_append_seconds", "histogram", ("messaging",), "A batch's appends, waiting for Redis included.", "append"
    ),
    Definition(
        "inbox_read_seconds", "histogram", ("notification",), "A round of pages, waiting for Redis included.", "read"
    ),
    Definition("history_messages_stored_total", "counter", ("history",), "Messages the chat database has.", "stored"),
    Definition(
        "history_write_seconds", "histogram", ("history",), "A batch's writes, waiting for DynamoDB included.", "write"
    ),
    Definition(
        "engine_errors_total",
        "counter",
        ALL,
        "Requests that an engine did not answer as wanted.",
        "engine_errors_",
        ("engine",),
        ("dynamodb", "kafka", "redis"),
    ),
    Definition(
        "engine_retries_total",
        "counter",
        ALL,
        "Attempts made again, by what was being done.",
        "engine_retries_",
        ("doing",),
    ),
    Definition(
        "lag_seconds",
        "gauge",
        _INSPECTOR,
        "How long the oldest message that a group has not applied has waited.",
        labels=_LAG,
    ),
    Definition(
        "lag_messages",
        "gauge",
        _INSPECTOR,
        "Messages that a group has not applied; in long lags an estimate.",
        labels=_LAG,
    ),
    Definition("lag_records", "gauge", _INSPECTOR, "Records that a group has not applied and committed.", labels=_LAG),
    Definition("engine_up", "gauge", _INSPECTOR, "1 while the inspector reaches the engine.", labels=("engine",)),
    Definition("slots", "gauge", _INSPECTOR, "Slots for gateways."),
    Definition("slots_leased", "gauge", _INSPECTOR, "Slots that a gateway holds."),
    Definition(
        "dead_letter_records", "gauge", _INSPECTOR, "Records ever written to dead_letters, marks of redriving included."
    ),
    Definition(
        "audit_clean", "gauge", _INSPECTOR, "1 if the last whole audit found each message to be exactly one thing."
    ),
    Definition("audit_timestamp_seconds", "gauge", _INSPECTOR, "When that was, in Unix time."),
    Definition("audit_messages", "gauge", _INSPECTOR, "What it found, by fate.", labels=("fate",)),
)


class Metrics(Collector):
    """One process, as text for Prometheus; ``more`` returns what is not in its ``Statistics``."""

    def __init__(self, statistics: Statistics, more: Callable[[], Samples] = dict) -> None:
        self._statistics = statistics
        self._more = more
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def collect(self) -> Iterator[Metric]:
        """All that ``METRICS`` has for this service."""
        statistics, more = self._statistics, self._more()
        values: dict[str, float] = {**statistics.totals(), **statistics.gauges()}
        values |= {f"partitions_{topic}": len(held) for topic, held in statistics.partitions().items()}
        for metric in METRICS:
            if statistics.service not in metric.services:
                continue
            name = PREFIX + metric.name
            if metric.kind == "histogram":
                yield _histogram(name, metric, statistics.times)
                continue
            family = (CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily)(
                name, metric.help, labels=metric.labels
            )
            for labels, value in _values(metric, values) if metric.source else more.get(metric.name, ()):
                family.add_metric(labels, value)
            yield family

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    async def answer(self, _: web.Request) -> web.Response:
        """``GET /metrics``."""
        return web.Response(body=self.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _values(metric: Definition, values: Mapping[str, float]) -> Iterator[tuple[tuple[str, ...], float]]:
    if not metric.labels:
        yield (), values.get(metric.source, 0)
        return
    size = len(metric.source)
    found = {name[size:]: value for name, value in values.items() if name.startswith(metric.source)}
    for label, value in sorted((dict.fromkeys(metric.known, 0) | found).items()):
        yield (label,), value


def _histogram(name: str, metric: Definition, times: Mapping[str, Histogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, metric.help, labels=metric.labels)
    found: dict[tuple[str, ...], Histogram] = {}
    if metric.labels:
        size = len(metric.source)
        found |= {(what[size:],): times[what] for what in sorted(times) if what.startswith(metric.source)}
    else:
        found[()] = times.get(metric.source, Histogram())
    for labels, histogram in found.items():
        total, buckets = 0, []
        for bound, count in zip(_BOUNDS, histogram.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        family.add_metric(labels, buckets, histogram.sum_ms / 1000)
    return family
