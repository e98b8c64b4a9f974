"""The metrics of the whole system that the inspector exposes to Prometheus."""

from __future__ import annotations

from collections import defaultdict

from chat_streams.inspector.collector import Collector
from chat_streams.kafka.names import DEAD_LETTERS
from chat_streams.operations.lag import summary
from chat_streams.operations.lag_reader import GROUPS
from chat_streams.runtime.metrics import Samples

FATES = ("accepted", "acknowledged", "pending", "expired", "overflowed", "retry", "dead_lettered", "in_flight", "lost")
_NAMES = {"accepted": "messages", "lost": "none"}
"""The fates that have another name in the report of an audit."""


def samples(collector: Collector) -> Samples:
    """Return all metrics of the inspector, as of its last look; a scrape also keeps the sampling of lags going."""
    collector.watch()
    found: defaultdict[str, list[tuple[tuple[str, ...], float]]] = defaultdict(list)
    for row in summary(collector.watermarks, collector.lags, GROUPS):
        for partition in row["partitions"]:
            labels = (row["group"], row["topic"], str(partition["partition"]))
            for name in ("seconds", "messages", "records"):
                if partition[name] is not None:
                    found[f"lag_{name}"].append((labels, partition[name]))
    for engine in collector.engines.values():
        if engine.up is not None:
            found["engine_up"].append(((engine.name.lower(),), engine.up))
    found["slots"] = [((), collector.settings.slots)]
    found["slots_leased"] = [((), len(collector.slots))]
    found["dead_letter_records"] = [
        ((), end) for tp, end in collector.watermarks.ends.items() if tp.topic == DEAD_LETTERS
    ]
    if (audit := collector.audit) is not None:
        found["audit_clean"] = [((), bool(audit["clean"]))]
        found["audit_timestamp_seconds"] = [((), int(audit["at"]) / 1000)]
        found["audit_messages"] = [((fate,), int(audit.get(_NAMES.get(fate, fate), 0))) for fate in FATES]
    return found
