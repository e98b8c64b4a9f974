"""``python -m bench.scaling``: what more workers and gateways cost and how evenly they share, on this machine.

For each shape a stack of its own is started. Rates of a machine with a few cores say nothing of how a cluster scales:
all processes take them from each other. Processor time a message does: where it stays flat while workers are added,
work is divided and not added. Prints both; the results go to ``bench/results/scaling.json``.
"""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import statistics
import sys
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import uvloop
from rich.console import Console
from rich.table import Table

from bench.links import Watch, body
from bench.measure import CLIENT, machine
from bench.scale import Scale
from bench.systems import HERE, ROOT
from bench.systems.connect_chat import DEVICE, SETTINGS, ChatLink, ConnectChat
from bench.workloads import SIZE, crowd, drain, online, paced, store, store_many
from chat_streams.kafka.names import INBOX_REQUESTS, INCOMING_MESSAGES, OUTGOING_MESSAGES, SESSION_EVENTS, partition_of
from docker.local.layout import Layout
from docker.local.parts import Service

RESULTS: Final = ROOT / "bench" / "results" / "scaling.json"
PARTITIONS: Final = 8
USERS: Final = 400
RATE: Final = 1_000
SECONDS: Final = 8.0
ROUNDS: Final = 2
STORED: Final = Scale(messages=50_000, users=2_000)
BLOCK_INSTANCES: Final = 3
"""Instances of a service that have ports in the stack's own block."""
TOPICS: Final = (INCOMING_MESSAGES, SESSION_EVENTS, INBOX_REQUESTS, OUTGOING_MESSAGES)
_ASSIGNED: Final = re.compile(r"incoming_messages/(\d+):")


class Shape(NamedTuple):
    """How many of each there are: messaging and notification alike."""

    workers: int
    gateways: int


SHAPES: Final = (Shape(1, 1), Shape(2, 1), Shape(4, 1), Shape(1, 2), Shape(2, 2))


class Scaled(ConnectChat):
    """Connect Chat with several instances; clients connect to its gateways in turn."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        super().__init__(folder)
        self.shape = shape
        self._spare = Layout.free(folder)
        self._turn = count()

    async def start(self) -> None:
        """Start it, then the further instances."""
        await super().start()
        for name, wanted in (
            ("messaging", self.shape.workers),
            ("notification", self.shape.workers),
            ("gateway", self.shape.gateways),
        ):
            for instance in range(2, wanted + 1):
                service = Service(self._layout_of(instance), name, instance)
                service.environment |= SETTINGS
                await self._start(service)
        while sorted(p for held in self.partitions().values() for p in held) != list(range(PARTITIONS)):
            await asyncio.sleep(0.2)

    def _layout_of(self, instance: int) -> Layout:
        if instance <= BLOCK_INSTANCES:
            return self.layout
        back = 10 * (instance - 1)
        moved = {name: getattr(self._spare, name) - back for name in ("messaging_web", "notification_web")}
        return self.layout.model_copy(update=moved)

    def partitions(self) -> dict[str, list[int]]:
        """The partitions of each messaging worker, as it was given them last."""
        found = {}
        for name, running in self.running.items():
            if name.partition("-")[0] == "messaging":
                lines = [line for line in running.part.log.read_text().splitlines() if "partitions assigned" in line]
                found[name] = sorted(map(int, _ASSIGNED.findall(lines[-1]))) if lines else []
        return found

    def log_bytes(self) -> dict[str, int]:
        """Bytes of each topic's segments on disk."""
        found: dict[str, int] = {}
        for segment in self.running["kafka"].part.folder.glob("storage/*/*.log"):
            topic = segment.parent.name.rpartition("-")[0]
            found[topic] = found.get(topic, 0) + segment.stat().st_size
        return {topic: size for topic, size in found.items() if topic in TOPICS}

    async def connect(self, user: str, *, receive: bool, device: str = DEVICE) -> ChatLink:
        """Connect to the next gateway."""
        names = [name for name in self.running if name.partition("-")[0] == "gateway"]
        port = self.running[names[next(self._turn) % len(names)]].part.port
        first, self.layout = self.layout, self.layout.model_copy(update={"gateway": port})
        try:
            return await super().connect(user, receive=receive, device=device)
        finally:
            self.layout = first


async def live(system: Scaled) -> dict[str, Any]:
    """Messages between connected users at a rate that leaves the processors room."""
    links = await crowd(system, USERS)
    users, connections = list(links), list(links.values())
    Watch(connections)
    total = int(SECONDS * RATE)
    recipients = [random.choice(users) for _ in range(total)]
    frames = [connections[n % USERS].frame(to, n, body(n, SIZE)) for n, to in enumerate(recipients)]
    send = partial(_send, connections, frames)
    result = await paced(system, SECONDS, RATE, send, connections)
    by_partition = [0] * PARTITIONS
    for to in recipients:
        by_partition[partition_of(to, PARTITIONS)] += 1
    for link in connections:
        link.close()
    return result | {"by_partition": by_partition}


def _send(connections: list[Any], frames: list[bytes], number: int) -> None:
    connections[number % len(connections)].write(frames[number])


async def measure(shape: Shape) -> dict[str, Any]:
    """All figures of one shape."""
    folder = HERE / "scaling"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    system = Scaled(folder, shape)
    try:
        async with asyncio.timeout(120):
            await system.start()
            inbox = await store(system, Scale(messages=10_000))
            for workload in (drain, online):
                await workload(system, Scale(messages=10_000))
        async with asyncio.timeout(240):
            before = system.log_bytes()
            lives = [await live(system) for _ in range(ROUNDS)]
            log = {topic: size - before.get(topic, 0) for topic, size in system.log_bytes().items()}
            rounds = [(found, await store_many(system, STORED)) for found in lives]
        held = system.partitions()
    finally:
        await system.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "workers": shape.workers,
        "gateways": shape.gateways,
        "partitions": held,
        "inbox_bytes": {name: round(inbox[name], 1) for name in ("json_bytes", "redis_stream_bytes", "redis_bytes")},
        "log_bytes": {topic: round(size / (ROUNDS * SECONDS * RATE), 1) for topic, size in log.items()},
        "live": _summary([found for found, _ in rounds]),
        "stored": _summary([found for _, found in rounds]),
    }


def _summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    by_service: dict[str, list[float]] = {}
    for found in rounds:
        of_round: dict[str, float] = {}
        for name, used in found["cpu"].items():
            if name != CLIENT:
                service = name.partition("-")[0]
                of_round[service] = of_round.get(service, 0.0) + 1e6 * used / found["messages"]
        for name, us in of_round.items():
            by_service.setdefault(name, []).append(us)
    workers = [used for name, used in rounds[-1]["cpu"].items() if name.partition("-")[0] == "messaging"]
    return {
        "cpu_us": {name: round(statistics.median(us), 1) for name, us in by_service.items()},
        "cpu_us_all": round(statistics.median(sum(us) for us in zip(*by_service.values(), strict=True)), 1),
        "per_s": round(statistics.median(found["messages"] / found["seconds"] for found in rounds)),
        "p50_ms": rounds[-1].get("p50"),
        "busiest_worker_over_mean": round(max(workers) * len(workers) / (sum(workers) or 1.0), 2),
        "by_partition": rounds[-1].get("by_partition"),
    }


def table(shapes: list[dict[str, Any]]) -> Table:
    """A row for each shape."""
    title = f"CPU us a message, live at {RATE:,}/s between {USERS} users | stored for {STORED.users:,} users"
    names = ("gateway", "messaging", "notification", "redis", "kafka")
    found = Table("workers", "gateways", *names, "all", "busiest/mean", "stored: all", "per s (noisy)", title=title)
    for shape in shapes:
        of_live, stored = shape["live"], shape["stored"]
        found.add_row(
            *(str(shape["workers"]), str(shape["gateways"])),
            *(f"{of_live['cpu_us'].get(name, 0):,.0f}" for name in names),
            f"{of_live['cpu_us_all']:,.0f}",
            f"{of_live['busiest_worker_over_mean']:.2f}",
            f"{stored['cpu_us_all']:,.1f}",
            f"{stored['per_s']:,}",
        )
    return found


async def play() -> None:
    """Measure all shapes, saving as it grows."""
    out = Console(width=160)
    report: dict[str, Any] = {"began": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
    report |= {"version": ConnectChat.version(), "rate": RATE, "users": USERS, "shapes": []}
    for shape in SHAPES:
        report["shapes"].append(await measure(shape))
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
        out.print(f"{shape.workers} workers, {shape.gateways} gateways: measured", highlight=False)
    out.print(table(report["shapes"]))
    out.print("Rates are those of one noisy machine, on which all processes and the clients compete: compare CPU only.")


if __name__ == "__main__":
    uvloop.run(play())
    sys.exit(0)
