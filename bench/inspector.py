"""What the inspector costs the path: ``python -m bench.inspector``.

In turn with the inspector stopped, and running with somebody who looks at the streams and at a tail of
``incoming_messages``: 50,000 messages stored for an offline user, and 50,000 to one who is there. Prints the rates'
ratio (with / without), its spread over the rounds, and the inspector's share of all CPU time.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import click
import uvloop
from rich.console import Console
from rich.table import Table

from bench.systems import HERE
from bench.systems.connect_chat import ConnectChat
from bench.workloads import Scale, online, store
from gateway.auth import mint

ROUNDS = 9
WORKLOADS: dict[str, Callable[[ConnectChat, Scale], Awaitable[dict[str, Any]]]] = {"store": store, "online": online}
LOOKED_AT = ("/live/streams", "/live/tail?topic=incoming_messages")
COLUMNS = ("workload", "without", "with", "with / without", "smallest", "largest", "inspector's CPU")


@contextlib.asynccontextmanager
async def watched(system: ConnectChat) -> AsyncIterator[None]:
    """Run the inspector, with somebody looking at two of its live pages."""
    await system.start_service("inspector")
    token = mint(system.layout.secret_file.read_text().strip(), "eve", 3600)
    base = f"http://127.0.0.1:{system.layout.inspector}"
    looked_at = asyncio.Event()

    async def look(session: aiohttp.ClientSession, path: str) -> None:
        async with session.get(base + path) as response:
            response.raise_for_status()
            async for _ in response.content.iter_any():
                looked_at.set()

    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
        tasks = [asyncio.create_task(look(session, path)) for path in LOOKED_AT]
        try:
            async with asyncio.timeout(30):
                await looked_at.wait()
            yield
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            system.stop_service("inspector")


async def run(rounds: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Results by workload, without and with, in the order of the rounds."""
    folder = HERE / "data" / "inspector"
    shutil.rmtree(folder, ignore_errors=True)
    results: dict[str, dict[str, list[dict[str, Any]]]] = {name: {"without": [], "with": []} for name in WORKLOADS}
    system = ConnectChat(folder)
    try:
        await system.start()
        await store(system, Scale())
        await online(system, Scale())
        for number in range(rounds):
            click.echo(f"round {number + 1} of {rounds}", err=True)
            for name, workload in WORKLOADS.items():
                results[name]["without"].append(await workload(system, Scale()))
            async with watched(system):
                for name, workload in WORKLOADS.items():
                    results[name]["with"].append(await workload(system, Scale()))
    finally:
        await system.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return results


@click.command(help=__doc__)
@click.option("--rounds", type=click.IntRange(3), default=ROUNDS, show_default=True)
def main(rounds: int) -> None:
    """Run and print a table."""
    table = Table(*COLUMNS)
    for name, found in uvloop.run(run(rounds)).items():
        rates = {kind: [one["value"] for one in some] for kind, some in found.items()}
        ratios = [a / b for a, b in zip(rates["with"], rates["without"], strict=True)]
        shares = [one["cpu"]["inspector"] / sum(one["cpu"].values()) for one in found["with"]]
        medians = (f"{statistics.median(rates[kind]):,.0f}/s" for kind in ("without", "with"))
        spread = (f"{value:.2f}" for value in (statistics.median(ratios), min(ratios), max(ratios)))
        table.add_row(name, *medians, *spread, f"{100 * statistics.median(shares):.1f} %")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
