"""``python -m docker.aws.cost``: what AWS would charge a month, as the table of ``docs/aws.md``, with its arithmetic.

A model, not a bill: list prices by heart of us-east-1. How many tasks there are, and what is assumed of people, is
``docker/aws/capacity.py``'s; each other number that goes in is named here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

from docker.aws.capacity import Cost, Habits, Room, needs
from docker.aws.plan import REPLICATION

HOURS: Final = 730
"""In a month."""
DAYS: Final = 30
GIB: Final = 2**30

PRICED_ON: Final = "November 2026"
"""When these list prices (us-east-1, USD, on demand) were written down, from memory of AWS's pages: check each."""
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
"""Between two zones: 0.01 to send, 0.01 to receive. MSK's replication is free."""
OUT_GB: Final = ((10_000, 0.09), (40_000, 0.085), (100_000, 0.07), (math.inf, 0.05))
"""To the Internet: GB at a price, from the first on."""
LOG_GB: Final = 0.50
METRIC: Final = 0.30
ALARM: Final = 0.10

# Habits of users, assumed.
HABITS: Final = Habits()
CONNECTS_A_DAY: Final = 10
BODY: Final = 108
"""Bytes, as in bench/."""
PAGES_A_DAY: Final = 2
"""Of history that a user looks at, of 50 messages each."""
TABLE_MONTHS: Final = 12
"""The table keeps all: this is what it holds after a year."""

# Bytes of a message with such a body, ids of 15 characters and a UUID.
ITEM: Final = 547
"""In the table: keys, names of attributes, JSON, and the 100 bytes that DynamoDB adds. A write is charged by the KB."""
INDEX_ITEM: Final = 526
RECORD: Final = 390
"""Alone in a record of Kafka's."""
FRAMES: Final = 560
"""Out of the gateway: the recipient's frame and the sender's answer, with TLS and TCP."""
INBOX_ENTRY: Final = 300
INBOX: Final = 400
"""Of a user in Redis without messages: devices, cursors, keys."""

ROOM: Final = Room(user_bytes=INBOX)
BROKER_DISK: Final = 0.6
"""Of a broker's disk in use. In Redis the same of a node's memory, 25 % being reserved by ElastiCache."""


class Line(NamedTuple):
    """A line of the table."""

    what: str
    how: str
    dollars: float


@dataclass(frozen=True)
class Deployment:
    """The engines' sizes for a number of users; how many of each follows from the load."""

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
    """The price of so many GB to the Internet."""
    dollars, left = 0.0, gb
    for size, price in OUT_GB:
        step = min(left, size)
        dollars, left = dollars + step * price, left - step
    return dollars


def month(deployment: Deployment) -> list[Line]:
    """What each part costs in a month of 30 days."""

    def gib(size: float) -> float:
        """So many bytes a message, in a month."""
        return messages * size / GIB

    users = deployment.users
    load = needs(users, Cost(RECORD, RECORD, RECORD, INBOX_ENTRY), HABITS, ROOM)
    messages = users * HABITS.messages_a_day * DAYS
    connects = users * CONNECTS_A_DAY / 86_400 * HABITS.peak
    tasks = load.gateways + load.messaging + load.notification + load.history + 1
    # The log keeps a month. Session events and acknowledgements are taken to be as much as the messages.
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
    """The tables of ``docs/aws.md``, in Markdown."""
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
