"""What the inspector costs the path: ``python -m bench.inspector``.

In turn, in another order in each round, with the inspector stopped, running with nobody looking, and with somebody who
looks at the streams and at a tail of ``incoming_messages``: messages stored for an offline user, messages to one who is
there, and a rest in which nothing happens. Prints rates and the CPU time of a message over all processes, their ratios
to those of the same round without it, and of all CPU time (of the machine, in the rest) the share of the inspector and
of Kafka.
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
"""So that a workload takes seconds: what a tail may read at once is long used up then."""
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
    """Nothing: shares are of what all processors could do."""
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
    """Run the inspector, with somebody looking at its live pages; with ``None``, don't."""
    if paths is None:
        yield
        return
    await system.start_service("inspector")
    token = mint(system.layout.secret_file.read_text().strip(), "eve", 3600)
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
            # It has read its hour by then.
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
    """Results by workload and state, in the order of the rounds."""
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
            # What runs right after the others' messages were deleted must not always be the same.
            for state, paths in random.sample(list(LOOKED_AT.items()), len(LOOKED_AT)):
                async with looking(system, paths):
                    for name, workload in WORKLOADS.items():
                        results[name, state].append(await workload(system, Scale(messages=MESSAGES)))
                # Of users that nobody writes to again.
                async for key in system.redis.scan_iter(match="{u:*", count=10_000):
                    await system.redis.unlink(key)
    finally:
        await system.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return results


@click.command(help=__doc__)
@click.option("--rounds", type=click.IntRange(1), default=ROUNDS, show_default=True)
def main(rounds: int) -> None:
    """Run and print a table."""
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
    """The median, and that of the ratios with the range of the middle half of them."""
    ratios = sorted(a / b for a, b in zip(values, others, strict=True))
    quarter = len(ratios) // 4
    low, high = ratios[quarter], ratios[len(ratios) - quarter - 1]
    return f"{statistics.median(values):,.0f}", f"{statistics.median(ratios):.2f} ({low:.2f} - {high:.2f})"


if __name__ == "__main__":
    main()
