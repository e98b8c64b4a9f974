"""A record of ``service_stats`` says what the registry counts, under the names that the inspector knows."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from chat_streams.runtime.metrics import BUCKETS, WeightedHistogram
from chat_streams.runtime.statistics import AgentStats, Statistics, decode, encode, quantile_ms


def agent_of(statistics: Statistics) -> AgentStats:
    (agent,) = decode(encode(statistics.record())).agents
    return agent


def test_a_record_has_the_counters_by_their_short_names() -> None:
    registry = CollectorRegistry()
    Counter("connect_chat_inbox_messages_appended_total", "", registry=registry).inc(3)
    Counter("connect_chat_inbox_messages_retried_total", "", registry=registry)
    closed = Counter("connect_chat_gateway_connections_closed_total", "", ["code"], registry=registry)
    closed.labels("1000")
    closed.labels("4010").inc(2)
    record = decode(encode(Statistics("gateway", registry).record()))
    assert record.counters == {"appended": 3, "closed_4010": 2}


def test_a_record_has_gauges_even_at_zero_and_those_that_are_no_metrics() -> None:
    registry = CollectorRegistry()
    Gauge("connect_chat_worker_table_rows", "", ["table"], registry=registry).labels("sessions").set(2)
    Gauge("connect_chat_worker_recovering", "", registry=registry)
    Counter("connect_chat_worker_rebalances_total", "", registry=registry).inc()
    statistics = Statistics("messaging", registry)
    statistics.gauges = lambda: {"slot": 7.0}
    statistics.partitions = lambda: {"t": [0, 1]}
    record = decode(encode(statistics.record()))
    assert record.gauges == {"table_sessions": 2.0, "recovering": 0.0, "rebalances": 1.0, "slot": 7.0}
    assert record.partitions == {"t": [0, 1]}


def test_an_agent_has_counts_since_the_start_and_times_of_the_last_interval() -> None:
    registry = CollectorRegistry()
    of_topic: dict[str, Any] = {"labelnames": ["topic"], "registry": registry}
    records, errors, _ = (
        Counter(f"connect_chat_{name}_total", "", **of_topic).labels("t")
        for name in ("agent_records", "agent_errors", "dead_letters")
    )
    seconds = Histogram("connect_chat_agent_batch_seconds", "", buckets=BUCKETS, **of_topic).labels("t")
    statistics = Statistics("messaging", registry)
    assert agent_of(statistics) == AgentStats("t")
    for took in (0.001, 0.001, 0.5):
        records.inc(10)
        seconds.observe(took)
    errors.inc()
    statistics.failed("t", ValueError("what alice wrote"))
    agent = agent_of(statistics)
    assert (agent.topic, agent.records, agent.batches, agent.errors, agent.dead_letters) == ("t", 30, 3, 1, 0)
    assert (agent.p50_ms, agent.p99_ms, agent.last_error) == (1.0, 512.0, "ValueError")
    seconds.observe(0.003)
    agent = agent_of(statistics)
    assert (agent.batches, agent.p50_ms, agent.p99_ms) == (4, 4.0, 4.0)
    assert agent_of(statistics).p50_ms is None


def test_latency_is_told_of_intervals_with_deliveries() -> None:
    registry = CollectorRegistry()
    delivery = WeightedHistogram("connect_chat_gateway_delivery_seconds", "", registry)
    statistics = Statistics("gateway", registry)
    delivery.observe(0.02, 99)
    delivery.observe(0.2)
    assert statistics.record().gauges == {"latency_p50_ms": 32.0, "latency_p99_ms": 32.0}
    assert statistics.record().gauges == {}
    delivery.observe(0.2)
    assert statistics.record().gauges == {"latency_p50_ms": 256.0, "latency_p99_ms": 256.0}


@pytest.mark.parametrize(("share", "found"), [(0.5, 0.25), (0.75, 0.25), (0.76, 0.5), (0.99, 262144.0)])
def test_a_quantile_is_the_upper_bound_of_its_bucket(share: float, found: float) -> None:
    assert quantile_ms(share, [75.0, *[90.0] * 19, 100.0]) == found
