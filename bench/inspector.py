"""The cost of the inspector for the delivery of messages: ``python -m bench.inspector``.

Each round has three states, in random order: the inspector stopped; running with no viewer; and running with a viewer
of the streams and of a tail of ``incoming_messages``. In each state it stores messages for an offline user, sends
messages to one who is online, and rests while nothing happens. Prints rates and the CPU time of a message over all
processes, the ratios of both to the same round without the inspector, and the shares of the inspector and of Kafka in
all CPU time (in the rest: in the machine's).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import click
import uvloop
from rich.console import Console
from rich.table import Table

from bench.measure import Meter
from bench.scale import Scale
from bench.systems import HERE
from bench.systems.connect_chat import ConnectChat
from bench.workloads import online, store
from chat_streams.runtime.tokens import mint

ROUNDS = 7
MESSAGES = 250_000
"""Messages of a workload. It then takes seconds, and the tail's initial reading budget is used up early on."""
REST_S = 8.0
LOOKED_AT = {
    "stopped": None,
    "nobody looks": (),
    "looked at": ("/live/streams", "/live/tail?topic=incoming_messages"),
}
COLUMNS = (
    "workload",
    "inspector",
    "messages/s",
    "with / without",
    "us a message",
    "with / without",
    "CPU: inspector",
    "Kafka",
)


async def rest(system: ConnectChat, scale: Scale) -> dict[str, Any]:
    """Measure a rest; shares of CPU time are then of what all processors could do."""
    with Meter(system.processes()) as meter:
        await asyncio.sleep(REST_S)
    cpu = meter.cpu | {"unused": meter.seconds * len(os.sched_getaffinity(0)) - sum(meter.cpu.values())}
    return {"value": None, "cpu": cpu}


WORKLOADS: dict[str, Callable[[ConnectChat, Scale], Awaitable[dict[str, Any]]]] = {
    "store": store,
    "online": online,
    "rest": rest,
}


@contextlib.asynccontextmanager
async def looking(system: ConnectChat, paths: tuple[str, ...] | None) -> AsyncIterator[None]:
    """Run the inspector with a viewer of these live pages, of none with an empty tuple; do nothing with ``None``."""
    if paths is None:
        yield
        return
    await system.start_service("inspector")
    token = mint(system.layout.secret_file.read_text().strip(), "eve", 3600, ["viewer"])
    base = f"http://127.0.0.1:{system.layout.inspector}"
    seen = {path: asyncio.Event() for path in paths}

    async def look(session: aiohttp.ClientSession, path: str) -> None:
        async with session.get(base + path) as response:
            response.raise_for_status()
            async for data in response.content.iter_any():
                if b"event:" in data:
                    seen[path].set()

    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
        tasks = [asyncio.create_task(look(session, path)) for path in paths]
        try:
            async with asyncio.timeout(30):
                for event in seen.values():
                    await event.wait()
            # The inspector has read its last hour of statistics by then.
            await asyncio.sleep(2)
            yield
            for task in tasks:
                if task.done():
                    task.result()
                    raise RuntimeError("a live part ended by itself")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            system.stop_service("inspector")


async def run(rounds: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return the results by workload and state, in the order of the rounds."""
    folder = HERE / "data" / "inspector"
    shutil.rmtree(folder, ignore_errors=True)
    results: dict[tuple[str, str], list[dict[str, Any]]] = {(w, s): [] for w in WORKLOADS for s in LOOKED_AT}
    system = ConnectChat(folder)
    try:
        await system.start()
        await store(system, Scale())
        await online(system, Scale())
        for number in range(rounds):
            click.echo(f"round {number + 1} of {rounds}", err=True)
            # Random, so that no state always runs right after the previous state's messages were deleted.
            for state, paths in random.sample(list(LOOKED_AT.items()), len(LOOKED_AT)):
                async with looking(system, paths):
                    for name, workload in WORKLOADS.items():
                        results[name, state].append(await workload(system, Scale(messages=MESSAGES)))
                # These belong to users that nobody writes to again.
                async for key in system.redis.scan_iter(match="{u:*", count=10_000):
                    await system.redis.unlink(key)
    finally:
        await system.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return results


@click.command(help=__doc__)
@click.option("--rounds", type=click.IntRange(1), default=ROUNDS, show_default=True)
def main(rounds: int) -> None:
    """Run all rounds and print a table."""
    table = Table(*COLUMNS)
    results = uvloop.run(run(rounds))
    for (name, state), found in results.items():
        cells = ["", "", "", ""]
        if name != "rest":
            cells = [
                cell
                for key in ("value", "server_cpu_us")
                for cell in _beside([r[key] for r in found], [r[key] for r in results[name, "stopped"]])
            ]
        shares = [
            f"{100 * statistics.median(one['cpu'].get(part, 0) / sum(one['cpu'].values()) for one in found):.2f} %"
            for part in ("inspector", "kafka")
        ]
        table.add_row(name, state, *cells, *shares)
    Console(width=140).print(table)


def _beside(values: list[float], others: list[float]) -> tuple[str, str]:
    """Return as texts the median of ``values``, and the median ratio to ``others`` with its interquartile range."""
    ratios = sorted(a / b for a, b in zip(values, others, strict=True))
    quarter = len(ratios) // 4
    low, high = ratios[quarter], ratios[len(ratios) - quarter - 1]
    return f"{statistics.median(values):,.0f}", f"{statistics.median(ratios):.2f} ({low:.2f} - {high:.2f})"


if __name__ == "__main__":
    main()
