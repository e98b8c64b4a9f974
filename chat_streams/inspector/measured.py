"""The metrics of the whole system that the inspector exposes to Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector as MetricsCollector

from chat_streams.inspector.collector import Collector
from chat_streams.kafka.names import DEAD_LETTERS
from chat_streams.model.losses import records_of
from chat_streams.operations.lag import summary
from chat_streams.operations.lag_reader import GROUPS

FATES: Final = (
    *("accepted", "acknowledged", "pending", "expired", "overflowed", "retry", "dead_lettered", "in_flight", "lost"),
)
_NAMES: Final = {"accepted": "messages", "lost": "none"}
"""The fates that have another name in the report of an audit."""


class System(MetricsCollector):
    """The metrics of the inspector, as of its last look; a scrape also keeps the sampling of lags going.

    Of a partition without a lag, an engine not looked at yet, or an audit that never was there is no sample: hence
    families that are made for each scrape, not gauges that keep their last value.
    """

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The families with the samples there are."""
        collector = self._collector
        collector.watch()
        yield from self._lags()
        engines = GaugeMetricFamily(
            "connect_chat_engine_up", "1 while the inspector reaches the engine.", labels=["engine"]
        )
        for engine in collector.engines.values():
            if engine.up is not None:
                engines.add_metric([engine.name.lower()], engine.up)
        yield engines
        yield GaugeMetricFamily("connect_chat_slots", "Slots for gateways.", collector.settings.slots)
        yield GaugeMetricFamily("connect_chat_slots_leased", "Slots that a gateway holds.", len(collector.slots))
        letters = GaugeMetricFamily(
            "connect_chat_dead_letter_records",
            "Records ever written to dead_letters, marks of redriving included.",
        )
        for tp, end in collector.watermarks.ends.items():
            if tp.topic == DEAD_LETTERS:
                letters.add_metric([], end)
        yield letters
        yield from self._losses()
        yield from self._audit()

    def _lags(self) -> Iterator[GaugeMetricFamily]:
        labels = ["group", "topic", "partition"]
        families = {
            "seconds": GaugeMetricFamily(
                "connect_chat_lag_seconds",
                "How long the oldest message that a group has not applied has waited.",
                labels=labels,
            ),
            "messages": GaugeMetricFamily(
                "connect_chat_lag_messages",
                "Messages that a group has not applied; in long lags an estimate.",
                labels=labels,
            ),
            "records": GaugeMetricFamily(
                "connect_chat_lag_records", "Records that a group has not applied and committed.", labels=labels
            ),
        }
        ratios = GaugeMetricFamily(
            "connect_chat_lag_retention_ratio",
            "How long the oldest has waited, as a part of the time after which Kafka deletes it.",
            labels=labels,
        )
        for row in summary(self._collector.watermarks, self._collector.lags, GROUPS):
            kept = self._collector.retentions.get(row["topic"])
            for partition in row["partitions"]:
                values = [row["group"], row["topic"], str(partition["partition"])]
                for name, family in families.items():
                    if partition[name] is not None:
                        family.add_metric(values, partition[name])
                if kept is not None and partition["seconds"] is not None:
                    ratios.add_metric(values, partition["seconds"] / kept)
        yield from families.values()
        yield ratios

    def _losses(self) -> Iterator[GaugeMetricFamily]:
        lost = GaugeMetricFamily(
            "connect_chat_lost_records",
            "Records that were gone before a group had applied them; until somebody acknowledges it.",
            labels=["group", "topic"],
        )
        for group, topics in GROUPS.items():
            for topic in topics:
                of_topic = [loss for loss in self._collector.losses.open if (loss.app, loss.topic) == (group, topic)]
                lost.add_metric([group, topic], records_of(of_topic))
        yield lost

    def _audit(self) -> Iterator[GaugeMetricFamily]:
        clean = GaugeMetricFamily(
            "connect_chat_audit_clean", "1 if the last whole audit found each message to be exactly one thing."
        )
        at = GaugeMetricFamily("connect_chat_audit_timestamp_seconds", "When that was, in Unix time.")
        messages = GaugeMetricFamily("connect_chat_audit_messages", "What it found, by fate.", labels=["fate"])
        if (audit := self._collector.audit) is not None:
            clean.add_metric([], bool(audit["clean"]))
            at.add_metric([], int(audit["at"]) / 1000)
            for fate in FATES:
                messages.add_metric([fate], int(audit.get(_NAMES.get(fate, fate), 0)))
        yield from (clean, at, messages)
