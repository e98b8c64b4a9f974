"""The cost of hostile clients for the others and for the gateway: ``python -m bench.hostile``.

A bystander gets a message every 20 ms through the same gateway, for 5 s alone, twice 5 s beside each hostile client,
and 5 s alone again: on a machine that others use, too, either time may be the worse one. The client that does its worst
(``bench.worst``) has 60 s each time, and a gateway with the default limits. Prints the bystander's latencies, alone and
beside, how far the gateway's memory grew at most, and by how much it is larger in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import click
import uvloop
from rich.console import Console
from rich.table import Table

from bench.measure import resident_of
from chat_streams.runtime.settings import Settings
from docker.local.hostile import Bystander, connections, flood, one_byte_a_second, store
from docker.local.part import Running
from docker.local.probes import user
from docker.local.temporary_stack import GENEROUS, Stack

SECONDS = 5.0
WORST = "does its worst"
WORST_SECONDS = 60.0
MIB = 1024 * 1024
STORED_MIB = 40
COLUMNS = ("hostile client", "p50 alone", "p50 beside", "p99 alone", "p99 beside", "gateway grew", "and kept")

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
    """Acknowledge, again and again, messages that were never sent."""
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


def nobody(_: Stack) -> AbstractAsyncContextManager[object]:
    """Do nothing."""
    return contextlib.nullcontext()


@contextlib.asynccontextmanager
async def does_its_worst(gateway: Running, stack: Stack) -> AsyncIterator[None]:
    """Run ``bench.worst``, and say what it did."""
    name = user("worst")
    command = (sys.executable, "-m", "bench.worst", gateway.part.url, name)
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(f"{stack.token(name)}\n".encode())
    try:
        yield
    finally:
        process.terminate()
        done, _ = await process.communicate()
        click.echo(done.decode(), err=True)
    assert process.returncode == 0


ATTACKS: dict[str, Attack] = {
    "nobody": nobody,
    "never reads": never_reads,
    "never acknowledges": never_acks,
    "reads a byte a second": reads_slowly,
    "acknowledges ahead": acks_ahead,
    "sends garbage": sends_garbage,
    "floods, reads no answer": lambda stack: flood(stack, user("flood"), user("nobody")),
    "opens 5,000 connections": lambda stack: connections(stack, user("crowd"), 5_000),
}


async def measure(stack: Stack, gateway: Running, attack: Attack, seconds: float) -> dict[str, float]:
    """Return latencies in ms and memory in bytes, with and without the attack."""
    alone: list[float] = []
    beside: list[float] = []
    async with Bystander(stack, gateway.part.url).running() as bystander:
        await asyncio.sleep(min(seconds, SECONDS))
        bystander.mark()
        before = most = resident_of(gateway.pid)
        for times, client in ((alone, nobody), (beside, attack), (beside, attack), (alone, nobody)):
            async with client(stack):
                for _ in range(round(seconds)):
                    await asyncio.sleep(1)
                    most = max(most, resident_of(gateway.pid))
                times += bystander.mark()
            # Connections that end take their time, which is neither.
            await asyncio.sleep(1)
            bystander.mark()
    found = {
        f"p{p}_{when}_ms": 1000 * sorted(values)[len(values) * p // 100]
        for p in (50, 99)
        for when, values in (("alone", alone), ("beside", beside))
    }
    return found | {"grown_bytes": most - before, "kept_bytes": resident_of(gateway.pid) - before}


async def run(only: str | None) -> dict[str, dict[str, float]]:
    """Measure each attack, all on the same stack."""
    results = {}
    with tempfile.TemporaryDirectory(prefix="chat-hostile-", ignore_cleanup_errors=True) as folder:
        async with Stack(Path(folder)) as stack:
            for name, attack in ATTACKS.items():
                if only in (None, name):
                    click.echo(f"{name} ...", err=True)
                    results[name] = await measure(stack, stack.running["gateway"], attack, SECONDS)
            if only in (None, WORST):
                click.echo(f"{WORST} ...", err=True)
                limits = (name.removeprefix("CHAT_").lower() for name in GENEROUS)
                own = {name: Settings.model_fields[name].default for name in limits}
                gateway = await stack.start(stack.service("gateway", **own))
                results[WORST] = await measure(stack, gateway, partial(does_its_worst, gateway), WORST_SECONDS)
    return results


@click.command(help=__doc__)
@click.option("--only", type=click.Choice([*ATTACKS, WORST]), help="Measure this client alone.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(only: str | None, as_json: bool) -> None:
    """Run the attacks and print their cost."""
    results = uvloop.run(run(only))
    if as_json:
        click.echo(json.dumps(results, indent=1))
        return
    table = Table(*COLUMNS)
    for name, values in results.items():
        times = (f"{values[f'p{p}_{when}_ms']:.1f} ms" for p in (50, 99) for when in ("alone", "beside"))
        memory = (f"{values[f'{what}_bytes'] / MIB:.1f} MiB" for what in ("grown", "kept"))
        table.add_row(name, *times, *memory)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
