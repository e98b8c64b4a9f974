"""The metrics of the inspector: lags, and lags and losses in proportion to the retention."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka.structs import TopicPartition
from prometheus_client.core import GaugeMetricFamily

from chat_streams.inspector.collector import Collector
from chat_streams.inspector.measured import System
from chat_streams.kafka.names import INCOMING_MESSAGES
from chat_streams.model.losses import Loss, Losses
from chat_streams.operations.lag import Lag, Watermarks

DAY = 24 * 3600.0
FIRST, SECOND = (TopicPartition(INCOMING_MESSAGES, number) for number in range(2))


@pytest.fixture
def collector() -> Any:
    marks = Watermarks()
    marks.look({FIRST: 100, SECOND: 50}, {"messaging": {FIRST: 10, SECOND: 50}}, 0.0)
    return SimpleNamespace(
        watch=lambda: None,
        watermarks=marks,
        lags={("messaging", INCOMING_MESSAGES, 0): Lag(90, 15 * DAY, True)},
        retentions={INCOMING_MESSAGES: 30 * DAY},
        losses=Losses([], []),
        engines={},
        settings=SimpleNamespace(slots=1),
        slots=[],
        audit=None,
    )


def samples(collector: Any, name: str) -> dict[tuple[str, ...], float]:
    """Return the samples of a metric by the values of their labels."""
    families: list[GaugeMetricFamily] = list(System(cast(Collector, collector)).collect())
    (family,) = [family for family in families if family.name == name]
    return {tuple(sample.labels.values()): sample.value for sample in family.samples}


def test_a_lag_is_a_part_of_the_retention_of_its_topic(collector: Any) -> None:
    ratios = samples(collector, "connect_chat_lag_retention_ratio")
    assert ratios == {("messaging", INCOMING_MESSAGES, "0"): 0.5, ("messaging", INCOMING_MESSAGES, "1"): 0.0}
    # Kafka keeps it for ever, or has not been asked yet.
    collector.retentions = {}
    assert samples(collector, "connect_chat_lag_retention_ratio") == {}


def test_a_lag_without_a_sample_has_no_ratio(collector: Any) -> None:
    collector.lags = {}
    assert samples(collector, "connect_chat_lag_retention_ratio") == {("messaging", INCOMING_MESSAGES, "1"): 0.0}


def test_lost_records_count_until_they_are_acknowledged(collector: Any) -> None:
    loss = Loss("messaging", INCOMING_MESSAGES, 1, 0, 5, 9)
    found = samples(collector, "connect_chat_lost_records")
    assert set(found.values()) == {0}, "a zero is shown, so that an alert sees the first one"
    collector.losses = Losses.of([loss, loss, Loss("messaging", INCOMING_MESSAGES, 1, 1, 5, 6)])
    found = samples(collector, "connect_chat_lost_records")
    assert found["messaging", INCOMING_MESSAGES] == 5
    assert found["history", INCOMING_MESSAGES] == 0
    collector.losses = Losses.of([loss.acknowledged("ann@host")])
    assert set(samples(collector, "connect_chat_lost_records").values()) == {0}
