"""``python -m docker.aws.capacity``: what so many users need, from what a message was measured to cost.

The arithmetic of docs/capacity.md: ``needs`` is pure. Measured bytes come from ``bench/results/scaling.json``, what is
assumed of people and machines stands in ``Habits`` and ``Room``, each to be replaced by what is known better.
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
    """What one live message costs: processor time in us by service, bytes in the log and in an inbox.

    The times are those of isolated senders at 2,000 a second (docs/performance.md): each message comes from another
    connection, to a random recipient, on 8 partitions. From one user to another it is half of it, in bulk a twentieth.
    """

    message_bytes: float
    """Of ``incoming_messages``, before replication."""
    event_bytes: float
    """Of ``session_events`` and ``inbox_requests``, likewise."""
    outgoing_bytes: float
    inbox_bytes: float
    """Of Redis, for a message that waits."""
    gateway_us: float = 254.0
    messaging_us: float = 206.0
    notification_us: float = 59.0
    redis_us: float = 99.0
    kafka_us: float = 170.0
    history_us: float = 300.0
    """Assumed: the AWS SDK's time for one item of a batch of 25, not measured by ``bench.scaling``."""


@dataclass(frozen=True)
class Habits:
    """What is assumed of people."""

    messages_a_day: float = 40.0
    """Sent by a user."""
    peak: float = 3.0
    """The busiest seconds over the day's average."""
    connected: float = 0.2
    """Of all users, at the peak."""
    pending: float = 20.0
    """Messages in the inbox of a user, on average over all."""


@dataclass(frozen=True)
class Room:
    """What is assumed of machines, and how full they may be at the peak."""

    busy: float = 0.5
    """Of a core: what is left absorbs a lost zone, a rebalance, a replay."""
    gateway_connections: int = TARGET_CONNECTIONS
    """A task's, to which the stack for AWS scales; the limit (``CHAT_MAX_CONNECTIONS``) is 20,000."""
    user_bytes: float = 1_000.0
    """Of Redis, for a user without messages: cursors, and the retry window's digests."""
    shard_bytes: float = 12 * GIB
    """A primary's data, half of a node of 26 GiB: a rewrite or a full sync needs the rest."""
    replicas: int = 3
    """Of Kafka's topics."""
    retention_days: int = 30
    least_tasks: int = 3
    """Of each service: one for each zone."""


class Needs(NamedTuple):
    """What has to be there; rates at the peak, a second."""

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
    """What so many users need."""
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
        # Room to double the workers before the next repartition.
        partitions=max(8, 2 ** math.ceil(math.log2(2 * max(workers)))),
        redis_bytes=redis_bytes,
        redis_shards=max(tasks(cost.redis_us, room.least_tasks), math.ceil(redis_bytes / room.shard_bytes)),
        kafka_bytes_per_s=peak * (log_bytes + cost.outgoing_bytes) * room.replicas,
        kafka_disk=room.replicas * average * (log_bytes * room.retention_days * DAY + cost.outgoing_bytes * 3600),
        kafka_cores=peak * cost.kafka_us / 1e6 / room.busy * room.replicas,
        # The item, and the same in the index by recipient and position: one unit each up to 1 KB.
        dynamodb_writes_per_s=2 * peak,
    )


def measured(report: dict[str, Any]) -> Cost:
    """The bytes of the smallest shape of a run of ``bench.scaling``."""
    shape = report["shapes"][0]
    log = shape["log_bytes"]
    return Cost(
        message_bytes=log["incoming_messages"],
        event_bytes=log["session_events"] + log["inbox_requests"],
        outgoing_bytes=log["outgoing_messages"],
        inbox_bytes=shape["inbox_bytes"]["redis_bytes"],
    )


def table(all_needs: list[Needs]) -> Table:
    """A column for each number of users."""
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
    """Print the table from the last run of ``bench.scaling``."""
    if not MEASURED.exists():
        raise SystemExit(f"{MEASURED} is missing: run 'python -m bench.scaling'")
    cost = measured(msgspec.json.decode(MEASURED.read_bytes()))
    out = Console(width=120, highlight=False)
    out.print(cost, Habits(), Room())
    out.print(table([needs(users, cost, Habits(), Room()) for users in USERS]))


if __name__ == "__main__":
    main()
