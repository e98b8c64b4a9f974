"""A cost model, ``python -m docker.aws.cost``: the monthly price of a deployment, as tabled in ``docs/aws.md``.

It is an estimate, not a bill: list prices of us-east-1, from memory. The numbers of tasks and the assumptions about
users come from ``docker/aws/capacity.py``; every other number that goes in is named here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

from docker.aws.capacity import Cost, Habits, Room, needs
from docker.aws.plan import REPLICATION

HOURS: Final = 730
"""Hours in a month."""
DAYS: Final = 30
GIB: Final = 2**30

PRICED_ON: Final = "November 2026"
"""The date of these list prices (us-east-1, USD, on demand), which are from memory of AWS's pages: check each."""
VCPU_HOUR: Final = 0.04048
TASK_GB_HOUR: Final = 0.004445
BROKER_HOUR: Final = {"kafka.m7g.large": 0.204, "kafka.m7g.xlarge": 0.408, "kafka.m7g.4xlarge": 1.632}
BROKER_GB: Final = 0.10
VALKEY_HOUR: Final = {"cache.r7g.large": 0.1752, "cache.r7g.xlarge": 0.3496, "cache.r7g.4xlarge": 1.3976}
VALKEY_GIB: Final = {"cache.r7g.large": 13.07, "cache.r7g.xlarge": 26.32, "cache.r7g.4xlarge": 105.81}
WRITE_UNIT: Final = 0.625e-6
READ_UNIT: Final = 0.125e-6
TABLE_GB: Final = 0.25
RECOVERY_GB: Final = 0.20
BALANCER_HOUR: Final = 0.0225
LCU_HOUR: Final = 0.008
NAT_HOUR: Final = 0.045
ZONE_GB: Final = 0.02
"""Price of a GB between two zones: 0.01 to send, 0.01 to receive. MSK's replication is free."""
OUT_GB: Final = ((10_000, 0.09), (40_000, 0.085), (100_000, 0.07), (math.inf, 0.05))
"""Price tiers of traffic to the Internet: each pair is a number of GB and the price of a GB, applied in order."""
LOG_GB: Final = 0.50
METRIC: Final = 0.30
ALARM: Final = 0.10

# Assumed habits of users.
HABITS: Final = Habits()
CONNECTS_A_DAY: Final = 10
BODY: Final = 108
"""Bytes of a message body, as in bench/."""
PAGES_A_DAY: Final = 2
"""Pages of history that a user opens in a day, 50 messages each."""
TABLE_MONTHS: Final = 12
"""Months of messages in the table. It keeps them all: this is its size after a year."""

# Bytes of a message with such a body, ids of 15 characters and a UUID.
ITEM: Final = 579
"""Bytes in the table: keys, attribute names, JSON, and DynamoDB's own 100 bytes. A write is charged by the KB."""
INDEX_ITEM: Final = 558
RECORD: Final = 346
"""Bytes in Kafka of a message that is alone in its record."""
FRAMES: Final = 560
"""Bytes that leave the gateway for a message: the recipient's frame and the sender's answer, with TLS and TCP."""
INBOX_ENTRY: Final = 300
INBOX: Final = 400
"""Bytes in Redis of a user without messages: devices, cursors, keys."""

ROOM: Final = Room(user_bytes=INBOX)
BROKER_DISK: Final = 0.6
"""The share of a broker's disk, or of a Redis node's memory, that is used. ElastiCache reserves 25 % of that memory."""


class Line(NamedTuple):
    """A line of the table."""

    what: str
    how: str
    dollars: float


@dataclass(frozen=True)
class Deployment:
    """Engine sizes for a number of users; the number of each engine follows from the load."""

    users: int
    broker: str
    brokers: int
    node: str


DEPLOYMENTS: Final = (
    Deployment(10_000, "kafka.m7g.large", 3, "cache.r7g.large"),
    Deployment(1_000_000, "kafka.m7g.xlarge", 3, "cache.r7g.large"),
    Deployment(50_000_000, "kafka.m7g.4xlarge", 24, "cache.r7g.4xlarge"),
)


def tiered(gb: float) -> float:
    """Return the price of ``gb`` GB sent to the Internet in a month."""
    dollars, left = 0.0, gb
    for size, price in OUT_GB:
        step = min(left, size)
        dollars, left = dollars + step * price, left - step
    return dollars


def month(deployment: Deployment) -> list[Line]:
    """Return the cost of each part in a month of 30 days."""

    def gib(size: float) -> float:
        """Return the GiB of a month's messages at ``size`` bytes each."""
        return messages * size / GIB

    users = deployment.users
    load = needs(users, Cost(RECORD, RECORD, RECORD, INBOX_ENTRY), HABITS, ROOM)
    messages = users * HABITS.messages_a_day * DAYS
    connects = users * CONNECTS_A_DAY / 86_400 * HABITS.peak
    tasks = load.gateways + load.messaging + load.notification + load.history + 1
    # The log keeps a month. Session events and acknowledgements are assumed to take as much as the messages.
    log_gib = gib(RECORD) * 2 * REPLICATION
    disk = math.ceil(log_gib / BROKER_DISK / deployment.brokers) * deployment.brokers
    inboxes = load.redis_bytes / GIB
    shards = max(3, math.ceil(inboxes / (VALKEY_GIB[deployment.node] * 0.75 * BROKER_DISK)))
    pages = users * PAGES_A_DAY * DAYS
    page_units = math.ceil(50 * ITEM / 4_096) / 2
    table_gib = gib(ITEM + INDEX_ITEM) * TABLE_MONTHS
    lcus = max(load.connections / 3_000, connects / 25, gib(FRAMES) * HABITS.peak / HOURS)
    across = gib(RECORD) * 6 * 2 / 3
    return [
        Line(
            "Fargate, 1 vCPU and 2 GB each",
            f"{load.gateways:,} gateways, {load.messaging} messaging, {load.notification} notification,"
            f" {load.history} history, 1 inspector",
            tasks * HOURS * (VCPU_HOUR + 2 * TASK_GB_HOUR),
        ),
        Line(
            "MSK",
            f"{deployment.brokers} {deployment.broker}, {disk:,} GB of disk",
            deployment.brokers * HOURS * BROKER_HOUR[deployment.broker] + disk * BROKER_GB,
        ),
        Line(
            "ElastiCache",
            f"{shards} shards of 2 {deployment.node}, for {inboxes:,.1f} GiB",
            shards * 2 * HOURS * VALKEY_HOUR[deployment.node],
        ),
        Line(
            "DynamoDB, writes",
            f"{messages / 1e6:,.0f} million messages, 2 units each: item and index",
            messages * 2 * WRITE_UNIT,
        ),
        Line(
            "DynamoDB, reads",
            f"{pages / 1e6:,.1f} million pages of 50 messages, {page_units} units each",
            pages * page_units * READ_UNIT,
        ),
        Line(
            "DynamoDB, kept",
            f"{table_gib:,.0f} GB after a year, with point-in-time recovery",
            table_gib * (TABLE_GB + RECOVERY_GB),
        ),
        Line(
            "Balancers and NAT",
            f"2 balancers, {lcus:,.0f} LCUs, 3 NAT gateways",
            HOURS * (2 * BALANCER_HOUR + lcus * LCU_HOUR + 3 * NAT_HOUR),
        ),
        Line("To the Internet", f"{gib(FRAMES):,.0f} GB", tiered(gib(FRAMES))),
        Line("Between zones", f"{across:,.0f} GB: 6 hops a message, 2 of 3 to another zone", across * ZONE_GB),
        Line(
            "Logs, metrics, alarms",
            f"{tasks * 0.5:,.0f} GB of logs, 10 metrics, {30 + 6 * shards} alarms",
            tasks * 0.5 * LOG_GB + 10 * METRIC + (30 + 6 * shards) * ALARM,
        ),
    ]


def table() -> str:
    """Return the tables of ``docs/aws.md`` as Markdown."""
    found = []
    for deployment in DEPLOYMENTS:
        lines = month(deployment)
        total = sum(line.dollars for line in lines)
        found += [f"**{deployment.users:,} users**", "", "| What | How much | $ a month |", "|---|---|--:|"]
        found += [f"| {line.what} | {line.how} | {line.dollars:,.0f} |" for line in lines]
        found += [f"| **All** | **${total / deployment.users:.3f} a user** | **{total:,.0f}** |", ""]
    return "\n".join(found)


if __name__ == "__main__":
    print(table())  # noqa: T201 - its output is what it is for
