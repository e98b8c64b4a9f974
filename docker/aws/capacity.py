"""Capacity planning, ``python -m docker.aws.capacity``: the resources a number of users needs.

This is the arithmetic of docs/capacity.md, from the measured cost of a message; ``needs`` is pure. Measured bytes come
from ``bench/results/scaling.json``. Assumptions about users are in ``Habits``, those about machines in ``Room``:
replace each with a measured figure once you have one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from docker.aws.plan import TARGET_CONNECTIONS
from docker.local.layout import ROOT

MEASURED: Final = ROOT / "bench" / "results" / "scaling.json"
DAY: Final = 24 * 3600
GIB: Final = 2**30
USERS: Final = (10_000, 1_000_000, 50_000_000)


@dataclass(frozen=True)
class Cost:
    """The cost of one live message: processor time in us by service, bytes in the log and in an inbox.

    The times are those of isolated senders at 2,000 a second (docs/performance.md): each message comes from another
    connection, to a random recipient, on 8 partitions. A message between one sender and one recipient costs half of it,
    one of many sent in bulk a twentieth.
    """

    message_bytes: float
    """Bytes in ``incoming_messages``, before replication."""
    event_bytes: float
    """Bytes in ``session_events`` and ``inbox_requests``, before replication."""
    outgoing_bytes: float
    inbox_bytes: float
    """Bytes in Redis of a message that waits in an inbox."""
    gateway_us: float = 254.0
    messaging_us: float = 206.0
    notification_us: float = 59.0
    redis_us: float = 99.0
    kafka_us: float = 170.0
    history_us: float = 300.0
    """An assumption, not measured by ``bench.scaling``: the AWS SDK's time for one item of a batch of 25."""


@dataclass(frozen=True)
class Habits:
    """The assumptions about users."""

    messages_a_day: float = 40.0
    """Messages that a user sends in a day."""
    peak: float = 3.0
    """The rate of the busiest seconds divided by the day's average rate."""
    connected: float = 0.2
    """The share of all users who are connected at the peak."""
    pending: float = 20.0
    """The number of messages in a user's inbox, averaged over all users."""


@dataclass(frozen=True)
class Room:
    """The assumptions about machines, and the load they may carry at the peak."""

    busy: float = 0.5
    """The share of a core in use at the peak; the rest absorbs a lost zone, a rebalance or a replay."""
    gateway_connections: int = TARGET_CONNECTIONS
    """Connections of a gateway to which the AWS stack scales; the limit is 20,000 (``CHAT_MAX_CONNECTIONS``)."""
    user_bytes: float = 1_000.0
    """Bytes in Redis of a user without messages: cursors, and the digests of the retry window."""
    shard_bytes: float = 12 * GIB
    """Data of one primary, half of a node of 26 GiB: an append-only file rewrite or a full sync needs the rest."""
    replicas: int = 3
    """Replicas of each Kafka topic."""
    retention_days: int = 30
    least_tasks: int = 3
    """The smallest number of tasks of each service: one in each zone."""


class Needs(NamedTuple):
    """The resources needed for a number of users; rates are per second, at the peak."""

    users: int
    messages_per_s: float
    connections: int
    gateways: int
    slots: int
    messaging: int
    notification: int
    history: int
    partitions: int
    redis_bytes: float
    redis_shards: int
    kafka_bytes_per_s: float
    kafka_disk: float
    kafka_cores: float
    dynamodb_writes_per_s: float


def needs(users: int, cost: Cost, habits: Habits, room: Room) -> Needs:
    """Return the resources that ``users`` need."""
    average = users * habits.messages_a_day / DAY
    peak = average * habits.peak
    connections = math.ceil(users * habits.connected)

    def tasks(us: float, least: int) -> int:
        # One process works on one core.
        return max(least, math.ceil(peak * us / 1e6 / room.busy))

    gateways = max(tasks(cost.gateway_us, room.least_tasks), math.ceil(connections / room.gateway_connections))
    workers = [tasks(us, room.least_tasks) for us in (cost.messaging_us, cost.notification_us, cost.history_us)]
    redis_bytes = users * (room.user_bytes + habits.pending * cost.inbox_bytes)
    log_bytes = cost.message_bytes + cost.event_bytes
    return Needs(
        users=users,
        messages_per_s=peak,
        connections=connections,
        gateways=gateways,
        slots=2 * gateways,
        messaging=workers[0],
        notification=workers[1],
        history=workers[2],
        # This leaves room to double the workers before the next repartition.
        partitions=max(8, 2 ** math.ceil(math.log2(2 * max(workers)))),
        redis_bytes=redis_bytes,
        redis_shards=max(tasks(cost.redis_us, room.least_tasks), math.ceil(redis_bytes / room.shard_bytes)),
        kafka_bytes_per_s=peak * (log_bytes + cost.outgoing_bytes) * room.replicas,
        kafka_disk=room.replicas * average * (log_bytes * room.retention_days * DAY + cost.outgoing_bytes * 3600),
        kafka_cores=peak * cost.kafka_us / 1e6 / room.busy * room.replicas,
        # The item, and its copy in the index by recipient and position: one write unit each up to 1 KB.
        dynamodb_writes_per_s=2 * peak,
    )


def measured(report: dict[str, Any]) -> Cost:
    """Return the default processor times, with the bytes measured for the smallest shape of a ``bench.scaling`` run."""
    shape = report["shapes"][0]
    log = shape["log_bytes"]
    return Cost(
        message_bytes=log["incoming_messages"],
        event_bytes=log["session_events"] + log["inbox_requests"],
        outgoing_bytes=log["outgoing_messages"],
        inbox_bytes=shape["inbox_bytes"]["redis_bytes"],
    )


def table(all_needs: list[Needs]) -> Table:
    """Return a table with a column for each number of users."""
    found = Table("at the peak", *(f"{n.users:,} users" for n in all_needs))
    for column in found.columns[1:]:
        column.justify = "right"
    rows: list[tuple[str, Any]] = [
        ("messages a second", lambda n: f"{n.messages_per_s:,.0f}"),
        ("connections", lambda n: f"{n.connections:,}"),
        ("gateways (slots)", lambda n: f"{n.gateways:,} ({n.slots:,})"),
        ("messaging workers", lambda n: f"{n.messaging:,}"),
        ("notification workers", lambda n: f"{n.notification:,}"),
        ("history workers", lambda n: f"{n.history:,}"),
        ("partitions", lambda n: f"{n.partitions:,}"),
        ("Redis, GiB in primaries", lambda n: f"{n.redis_bytes / GIB:,.1f}"),
        ("Redis primaries", lambda n: f"{n.redis_shards:,}"),
        ("Kafka, MB/s written, replicas included", lambda n: f"{n.kafka_bytes_per_s / 1e6:,.1f}"),
        ("Kafka, GiB on disk in 30 days, likewise", lambda n: f"{n.kafka_disk / GIB:,.0f}"),
        ("Kafka, cores", lambda n: f"{n.kafka_cores:,.1f}"),
        ("DynamoDB, write units a second", lambda n: f"{n.dynamodb_writes_per_s:,.0f}"),
    ]
    for name, text in rows:
        found.add_row(name, *(text(n) for n in all_needs))
    return found


def main() -> None:
    """Print the table, computed from the results of the last ``bench.scaling`` run."""
    if not MEASURED.exists():
        raise SystemExit(f"{MEASURED} is missing: run 'python -m bench.scaling'")
    cost = measured(msgspec.json.decode(MEASURED.read_bytes()))
    out = Console(width=120, highlight=False)
    out.print(cost, Habits(), Room())
    out.print(table([needs(users, cost, Habits(), Room()) for users in USERS]))


if __name__ == "__main__":
    main()
