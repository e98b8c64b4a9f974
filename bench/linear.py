"""A check that cost grows linearly: ``python -m bench.linear``.

Connect Chat alone, with messages, users, inbox sizes, devices and connections doubled three times. It compares the CPU
time of all servers for one of them (memory for a connection), which other work on the machine disturbs less than
seconds. It also measures one read of an inbox, as the notification service makes it: Redis's own time for it, by the
size of the inbox. Writes ``bench/results/linear.json`` and ``docs/performance/linear.svg``.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec
import uvloop
from rich.console import Console
from rich.table import Table

from bench.links import Watch
from bench.measure import Meter, machine
from bench.scale import Scale
from bench.systems import HERE, ROOT
from bench.systems.connect_chat import SERVICES, ConnectChat
from bench.workloads import drain, fill, fresh, idle, store, store_many
from chat_streams.model.position import ORIGIN, Position
from chat_streams.model.records import LOGGED, Message
from chat_streams.processing.grouping import APPEND_MESSAGES
from chat_streams.runtime.settings import Settings
from tables.inbox import Batch, Inbox
from tables.redis_cluster import Cluster

RESULTS = ROOT / "bench" / "results" / "linear.json"
PLOT = ROOT / "docs" / "performance" / "linear.svg"
STEPS = (1, 2, 4, 8)
READS = 300
READ_SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
STORED = READ_SIZES[-1]
PAGE = 100
PRIME = 7919
"""The step from one index to the next, which is far away and shares no factor with the sizes."""
Sized = Callable[[ConnectChat, int], Awaitable[float]]


async def _messages(system: ConnectChat, count: int) -> float:
    return float((await store(system, Scale(messages=count)))["server_cpu_us"])


async def _users(system: ConnectChat, count: int) -> float:
    return float((await store_many(system, Scale(messages=5 * count, users=count)))["server_cpu_us"])


async def _inbox(system: ConnectChat, count: int) -> float:
    return float((await drain(system, Scale(), count))["server_cpu_us"])


async def _devices(system: ConnectChat, count: int) -> float:
    """Return the CPU time of a message brought to one device; all devices connect at once."""
    messages = 10_000
    bob = fresh("bob")
    await fill(system, {bob: messages})
    with Meter(system.processes()) as meter:
        links = await asyncio.gather(
            *(system.connect(bob, receive=True, device=f"device-{number}") for number in range(count))
        )
        watch = Watch(list(links))
        await watch.until(lambda: watch.received >= count * messages)
        await system.emptied({bob: links[0]})
    for link in links:
        link.close()
    return float(meter.result(count * messages)["server_cpu_us"])


async def _connections(system: ConnectChat, count: int) -> float:
    """Return the gateway's memory for a connection.

    Kafka's heap is left out: it does not depend on connections, and changes by more than they take.
    """
    return float((await idle(system, replace(Scale(), idle=count)))["kib"]["gateway"])


CONNECTIONS = "idle connections"
DIMENSIONS: dict[str, tuple[Sized, int, str]] = {
    "messages for one user": (_messages, 25_000, "us a message stored"),
    "users, 5 messages each": (_users, 2_500, "us a message stored"),
    "messages in the inbox": (_inbox, 12_500, "us a message drained"),
    "devices, 10,000 messages each": (_devices, 1, "us a message drained"),
    CONNECTIONS: (_connections, 500, "KiB of the gateway each"),
}
NO_PARTITION = 99
"""A partition that does not exist, since the worker of an existing one would fence this program off."""
HOLDER = "linear"


async def reads(system: ConnectChat) -> dict[int, float]:
    """Return Redis's microseconds for a page of 100 messages, by the size of the inbox.

    Pages start in the first half of an inbox. For each size there are as many inboxes as hold a million messages
    together: a page of the only inbox of 100 would be read from the processor's cache, as no page of a system in use
    is.
    """
    for name in SERVICES:
        # Redis is emptied between two sizes, which would also remove the services' leases and fencing tokens.
        system.stop_service(name)
    cluster = Cluster(Settings(redis=f"redis://127.0.0.1:{system.layout.redis}"))
    inbox = Inbox(cluster, Settings(inbox_messages=2 * STORED, inbox_bytes=2**34))
    await inbox.fence(NO_PARTITION, "", HOLDER)
    found = {}
    try:
        for size in READ_SIZES:
            users = [fresh("reader") for _ in range(STORED // size)]
            for start in range(0, size, APPEND_MESSAGES):
                each = min(size - start, APPEND_MESSAGES)
                together = APPEND_MESSAGES // each
                for first in range(0, len(users), together):
                    batches = [_batch(user, start, each) for user in users[first : first + together]]
                    await inbox.append(batches, {NO_PARTITION: HOLDER})
            await system.redis.config_resetstat()
            for n in range(READS):
                after = Position.of(1, (n * PRIME) % (size // 2), 0) if size > PAGE else ORIGIN
                await inbox.read([(users[n * PRIME % len(users)], "", after, PAGE, 2**20, int(time.time() * 1000))])
            stats: Any = await system.redis.info("commandstats")
            found[size] = float(stats["cmdstat_fcall_ro"]["usec_per_call"])
            await system.redis.flushall()
    finally:
        await cluster.close()
    return found


def _batch(user: str, start: int, count: int) -> Batch:
    now = int(time.time() * 1000)
    tail = b',"id":"m","body":"%b"}' % (b"x" * 108)
    messages = [
        (Position.of(1, n, 0), now, Message(user, "alice", f"m-{n}", LOGGED, tail)) for n in range(start, start + count)
    ]
    return Batch(user, NO_PARTITION, messages)


async def measure(rounds: int, folder: Path, screen: Console) -> dict[str, Any]:
    """Measure every dimension at every size, and the reads."""
    system = ConnectChat(folder)
    found: dict[str, dict[int, list[float]]] = {name: {} for name in DIMENSIONS}
    try:
        await system.start()
        await store(system, Scale(messages=20_000))
        for number in range(rounds):
            for name, (work, first, unit) in DIMENSIONS.items():
                for step in STEPS:
                    if name == CONNECTIONS:
                        # Memory that the process has freed and not returned to the kernel would hide what the
                        # connections take.
                        await system.stop()
                        shutil.rmtree(folder, ignore_errors=True)
                        system = ConnectChat(folder)
                        await system.start()
                    value = await work(system, step * first)
                    found[name].setdefault(step * first, []).append(value)
                    screen.print(f"round {number + 1}: {step * first:>9,} {name:<32} {value:>8.2f} {unit}")
        read = await reads(system)
    finally:
        await system.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "machine": machine(),
        "version": ConnectChat.version(),
        "dimensions": {
            name: {"unit": DIMENSIONS[name][2], "values": [[size, values] for size, values in of.items()]}
            for name, of in found.items()
        },
        "read_us": [[size, value] for size, value in read.items()],
    }


def tables(results: dict[str, Any]) -> list[Table]:
    """Return tables for the terminal: the medians, and the reads."""
    costs = Table("doubled", "unit", *(f"x {step}" for step in STEPS))
    for name, of in results["dimensions"].items():
        values = [f"{statistics.median(values):.1f}" for _, values in of["values"]]
        costs.add_row(f"{of['values'][0][0]:,} {name}", of["unit"], *values)
    read = Table("messages in the inbox", "us of Redis for a page of 100")
    for size, value in results["read_us"]:
        read.add_row(f"{size:,}", f"{value:.0f}")
    return [costs, read]


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw one panel for each dimension, with the y axis from zero: a flat line is linear growth."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from bench.plots import COLORS, STYLE

    panels = [(name, of["unit"], of["values"]) for name, of in results["dimensions"].items()]
    panels.append(("messages in the inbox", "us of Redis a read", [[size, [us]] for size, us in results["read_us"]]))
    with mpl.rc_context(STYLE):
        figure, grid = plt.subplots(2, 3, figsize=(9, 4.6))
        for axes, (name, unit, values) in zip(grid.flat, panels, strict=True):
            sizes = [size for size, _ in values]
            axes.plot(sizes, [statistics.median(v) for _, v in values], marker="o", color=COLORS["connect_chat"])
            axes.fill_between(
                sizes,
                [min(v) for _, v in values],
                [max(v) for _, v in values],
                color=COLORS["connect_chat"],
                alpha=0.15,
            )
            axes.set_xscale("log")
            axes.minorticks_off()
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=6)
            axes.set_ylim(bottom=0)
            axes.set_xlabel(name, fontsize=8)
            axes.set_ylabel(unit, fontsize=8)
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
        plt.close(figure)


@click.command()
@click.option("--rounds", type=click.IntRange(1, 20), default=3, show_default=True)
def main(rounds: int) -> None:
    """Show how cost grows with messages, users, inboxes, devices and connections."""
    screen = Console(stderr=True, highlight=False)
    folder = HERE / "linear"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    results = uvloop.run(measure(rounds, folder, screen))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    draw(results, PLOT)
    for table in tables(results):
        Console().print(table)
    screen.print(f"wrote {RESULTS.relative_to(ROOT)} and {PLOT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
