"""What clients that mean no good cost the others and the gateway: ``python -m bench.hostile``.

A bystander gets a message of his own every 20 ms, 5 s alone and then 5 s beside each hostile client, through the same
gateway. Prints his latencies in both times, and how much the gateway's memory grew.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import click
import uvloop
from rich.console import Console
from rich.table import Table

from bench.measure import resident_of
from docker.local.hostile import Bystander, connections, flood, one_byte_a_second, store
from docker.local.probes import user
from docker.local.temporary_stack import Stack

SECONDS = 5.0
MIB = 1024 * 1024
STORED_MIB = 40
COLUMNS = ("hostile client", "p50 alone", "p50 beside", "p99 alone", "p99 beside", "gateway grew")

Attack = Callable[[Stack], AbstractAsyncContextManager[object]]


@contextlib.asynccontextmanager
async def never_reads(stack: Stack) -> AsyncIterator[None]:
    """Connect with 40 MiB waiting, and read nothing."""
    name = user("bob")
    await store(stack, name, STORED_MIB)
    async with stack.raw(name):
        yield


@contextlib.asynccontextmanager
async def never_acks(stack: Stack) -> AsyncIterator[None]:
    """Connect with 40 MiB waiting, read all that comes and acknowledge nothing."""
    name = user("bob")
    await store(stack, name, STORED_MIB)
    async with stack.raw(name) as raw:
        reading = asyncio.create_task(raw.closed())
        yield
        reading.cancel()


@contextlib.asynccontextmanager
async def reads_slowly(stack: Stack) -> AsyncIterator[None]:
    """Connect with 40 MiB waiting, and read a byte a second."""
    name = user("bob")
    await store(stack, name, STORED_MIB)
    async with one_byte_a_second(stack, name):
        yield


@contextlib.asynccontextmanager
async def acks_ahead(stack: Stack) -> AsyncIterator[None]:
    """Acknowledge, again and again, what was never sent."""
    async with stack.raw(user("bob")) as raw:

        async def run() -> None:
            while True:
                await raw.send(*({"type": "ack", "pos": f"{random.randrange(1, 1 << 40)}-0"} for _ in range(100)))
                await raw.ping()

        task = asyncio.create_task(run())
        yield
        task.cancel()


@contextlib.asynccontextmanager
async def sends_garbage(stack: Stack) -> AsyncIterator[None]:
    """Send arrays of a hundred objects that are no frames, and read the answers."""
    async with stack.raw(user("bob")) as raw:

        async def run() -> None:
            while True:
                await raw.send_text(json.dumps([{"type": "nope", "id": n} for n in range(100)]))
                await raw.ping()

        task = asyncio.create_task(run())
        yield
        task.cancel()


ATTACKS: dict[str, Attack] = {
    "nobody": lambda _: contextlib.nullcontext(),
    "never reads": never_reads,
    "never acknowledges": never_acks,
    "reads a byte a second": reads_slowly,
    "acknowledges ahead": acks_ahead,
    "sends garbage": sends_garbage,
    "floods, reads no answer": lambda stack: flood(stack, user("flood"), user("nobody")),
    "opens 5,000 connections": lambda stack: connections(stack, user("crowd"), 5_000),
}


async def measure(stack: Stack, attack: Attack) -> dict[str, float]:
    """Latencies in ms and memory in bytes."""
    pid = stack.running["gateway"].pid
    async with Bystander(stack).running() as bystander:
        await asyncio.sleep(SECONDS)
        alone = sorted(bystander.mark())
        before = resident_of(pid)
        async with attack(stack):
            await asyncio.sleep(SECONDS)
            beside = sorted(bystander.mark())
            grown = resident_of(pid) - before
    found = {
        f"p{p}_{when}_ms": 1000 * values[len(values) * p // 100]
        for p in (50, 99)
        for when, values in (("alone", alone), ("beside", beside))
    }
    return found | {"grown_bytes": grown}


async def run() -> dict[str, dict[str, float]]:
    """Each on the same stack."""
    results = {}
    with tempfile.TemporaryDirectory(prefix="chat-hostile-", ignore_cleanup_errors=True) as folder:
        async with Stack(Path(folder)) as stack:
            for name, attack in ATTACKS.items():
                click.echo(f"{name} ...", err=True)
                results[name] = await measure(stack, attack)
    return results


@click.command(help=__doc__)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(as_json: bool) -> None:
    """Run all and print."""
    results = uvloop.run(run())
    if as_json:
        click.echo(json.dumps(results, indent=1))
        return
    table = Table(*COLUMNS)
    for name, values in results.items():
        times = (f"{values[f'p{p}_{when}_ms']:.1f} ms" for p in (50, 99) for when in ("alone", "beside"))
        table.add_row(name, *times, f"{values['grown_bytes'] / MIB:.1f} MiB")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
