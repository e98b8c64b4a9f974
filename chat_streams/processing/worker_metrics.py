"""The metrics of apps that have agents: the inspector has none, and shows none of these."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from chat_streams.runtime.metrics import BUCKETS

WORKER: Final = CollectorRegistry()
AGENT_RECORDS: Final = Counter("connect_chat_agent_records_total", "Records applied.", ["topic"], registry=WORKER)
AGENT_ERRORS: Final = Counter(
    "connect_chat_agent_errors_total", "Times that applying a record failed.", ["topic"], registry=WORKER
)
AGENT_BATCH_SECONDS: Final = Histogram(
    "connect_chat_agent_batch_seconds",
    "Applying a batch of records, with all its effects.",
    ["topic"],
    buckets=BUCKETS,
    registry=WORKER,
)
DEAD_LETTERS_WRITTEN: Final = Counter(
    "connect_chat_dead_letters_total", "Records that could not be applied.", ["topic"], registry=WORKER
)
PARTITIONS: Final = Gauge("connect_chat_worker_partitions", "Partitions this worker has.", ["topic"], registry=WORKER)
REBALANCES: Final = Counter("connect_chat_worker_rebalances_total", "Rebalances of its group.", registry=WORKER)
REBALANCING: Final = Gauge("connect_chat_worker_rebalancing", "1 during a rebalance.", registry=WORKER)
RECOVERING: Final = Gauge(
    "connect_chat_worker_recovering", "1 while its table is read from the changelog.", registry=WORKER
)
COMMIT_SECONDS: Final = Histogram(
    "connect_chat_worker_commit_seconds", "Committing offsets.", buckets=BUCKETS, registry=WORKER
)
