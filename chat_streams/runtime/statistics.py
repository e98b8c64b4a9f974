"""The state that each service reports to the inspector every few seconds: a small record of ``service_stats``.

It is read from the registry that Prometheus is shown. Counters only ever rise while a process lives; a new process has
a new ``started_at`` and begins at 0.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import structlog
from prometheus_client.registry import Collector

from chat_streams.model.times import now_ms
from chat_streams.runtime.metrics import BUCKETS, PREFIX
from chat_streams.runtime.tasks import uncancelled

log = structlog.get_logger()

INTERVAL_S: Final = 5.0
COUNTERS: Final = {
    "gateway_messages_accepted_total": "accepted",
    "gateway_messages_refused_total": "refused",
    "gateway_messages_forwarded_total": "delivered",
    "gateway_messages_acknowledged_total": "confirmed",
    "gateway_window_stalls_total": "stalls",
    "gateway_connections_closed_total": "closed_",
    "inbox_messages_appended_total": "appended",
    "inbox_messages_overflowed_total": "overflowed",
    "inbox_messages_retried_total": "retries",
    "inbox_messages_removed_total": "acknowledged",
    "history_messages_stored_total": "stored",
}
"""The names of a record's counters, by metric; with a label its value follows. A 0 is left out."""
GAUGES: Final = {
    "clock_skew_seconds": "clock_skew_s",
    "gateway_connections": "connections",
    "gateway_lease_held": "lease",
    "gateway_produce_buffer_bytes": "produce_buffer_bytes",
    "worker_table_rows": "table_",
    "worker_recovering": "recovering",
    "worker_rebalancing": "rebalancing",
    "worker_rebalances_total": "rebalances",
}
"""The same for the gauges, where a 0 is told."""
_Values = defaultdict[str, dict[str, float]]
"""Samples by name without the prefix, then by the value of their one label, "" without a label."""
_Buckets = defaultdict[str, dict[str, list[float]]]
"""The same for histograms: how many values are at or below each bound."""
_BOUNDS_MS: Final = tuple(1000 * bound for bound in (*BUCKETS, 2 * BUCKETS[-1]))


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


def quantile_ms(share: float, buckets: Sequence[float]) -> float | None:
    """Return the upper bound in ms of the bucket that holds a quantile; ``None`` where nothing was observed.

    Args:
        share: which quantile, from 0 to 1.
        buckets: how many values are at or below each bound, as Prometheus counts them.
    """
    wanted = share * buckets[-1]
    if not wanted:
        return None
    return next(bound for bound, count in zip(_BOUNDS_MS, buckets, strict=True) if count >= wanted)


class Statistics:
    """Makes the records of one process from its registries.

    ``gauges`` returns what is told in a record and is no metric, ``partitions`` the partitions this process has by
    topic; both are asked when a record is due.
    """

    def __init__(self, service: str, *registries: Collector) -> None:
        self.service = service
        self.instance = f"{service}@{socket.gethostname()}:{os.getpid()}"
        self.started_at = now_ms()
        self.gauges: Callable[[], dict[str, float]] = dict
        self.partitions: Callable[[], dict[str, list[int]]] = dict
        self._registries = registries
        self._last_errors: dict[str, tuple[str, int]] = {}
        self._told: dict[tuple[str, str], list[float]] = {}

    def failed(self, topic: str, error: BaseException) -> None:
        """Note the last failure of an agent."""
        # An exception may quote a value, and a value what people write: its kind is enough, the log has the rest.
        self._last_errors[topic] = type(error).__name__, now_ms()

    def record(self) -> ServiceStats:
        """Return the record that is due now; quantiles are of what was observed since the one before."""
        values, buckets = self._read()
        gauges = _renamed(GAUGES, values) | self.gauges()
        for name, share in (("latency_p50_ms", 0.5), ("latency_p99_ms", 0.99)):
            for told in buckets["gateway_delivery_seconds"].values():
                if (found := quantile_ms(share, told)) is not None:
                    gauges[name] = found
        return ServiceStats(
            self.service,
            self.instance,
            now_ms(),
            self.started_at,
            {key: int(value) for key, value in _renamed(COUNTERS, values).items() if value},
            gauges,
            [self._agent(topic, values, buckets) for topic in values["agent_records_total"]],
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
                await uncancelled(send(self.instance.encode(), encode(self.record())))
        except Exception as error:  # noqa: BLE001 - what is said of a service must not end it
            log.warning("statistics are not written", error=repr(error))

    def _read(self) -> tuple[_Values, _Buckets]:
        """Return the samples of all metrics, and the buckets of what was observed since the call before."""
        values: _Values = defaultdict(dict)
        counts: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        for registry in self._registries:
            for sample in (sample for family in registry.collect() for sample in family.samples):
                name = sample.name.removeprefix(PREFIX)
                label = next((value for key, value in sample.labels.items() if key != "le"), "")
                if "le" in sample.labels:
                    counts[name.removesuffix("_bucket"), label].append(sample.value)
                else:
                    values[name][label] = sample.value
        buckets: _Buckets = defaultdict(dict)
        for (name, label), now in counts.items():
            before = self._told.get((name, label), [0.0] * len(now))
            buckets[name][label] = [new - old for new, old in zip(now, before, strict=True)]
        self._told = dict(counts)
        return values, buckets

    def _agent(self, topic: str, values: _Values, buckets: _Buckets) -> AgentStats:
        times = buckets["agent_batch_seconds"][topic]
        error, at = self._last_errors.get(topic, (None, None))
        return AgentStats(
            topic,
            int(values["agent_records_total"][topic]),
            int(values["agent_batch_seconds_count"][topic]),
            int(values["agent_errors_total"][topic]),
            int(values["dead_letters_total"][topic]),
            quantile_ms(0.5, times),
            quantile_ms(0.99, times),
            error,
            at,
        )


def _renamed(keys: Mapping[str, str], values: _Values) -> dict[str, float]:
    return {key + label: value for name, key in keys.items() for label, value in values[name].items()}
