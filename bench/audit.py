"""The memory and time of an audit over many messages: ``python -m bench.audit 10000000``.

The messages are written to the log directly, so that no gateway is measured: 1,000 in a record, for 1,000 users. Then a
tenth of the users acknowledges all of theirs. The chat database is left out: DynamoDB Local takes some hundred messages
a second.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import TopicPartition
from rich.console import Console
from rich.progress import Progress

from chat_streams.kafka.names import INCOMING_MESSAGES, MAX_RECORD, partition_of
from chat_streams.model.records import INCOMING, LOGGED, MAX_MESSAGES, Message, Messages
from docker.local.layout import ROOT
from docker.local.probes import Received
from docker.local.temporary_stack import Stack
from gateway.protocol import message_tail

USERS = 1_000
ACKNOWLEDGING = 10
"""One user in this many acknowledges."""
BODY = b'"' + 106 * b"x" + b'"'
UNDER_WAY = 64
APPLIED_S = 3_600.0
MIB = 1024 * 1024


async def fill(stack: Stack, done: int, count: int, progress: Progress) -> None:
    """Write messages ``[done, count)``, each record for the next user, and wait until all are applied."""
    task = progress.add_task("writing", total=count - done)
    producer = AIOKafkaProducer(
        bootstrap_servers=stack.settings.kafka, acks="all", enable_idempotence=True, max_request_size=MAX_RECORD
    )
    await producer.start()
    try:
        under_way: set[asyncio.Future[object]] = set()
        for first in range(done, count, MAX_MESSAGES):
            to = f"user-{first // MAX_MESSAGES % USERS}"
            messages = tuple(
                Message(to, "alice", str(n), LOGGED, message_tail(str(n), "alice", BODY))
                for n in range(first, min(count, first + MAX_MESSAGES))
            )
            record = INCOMING.encode(Messages(messages))
            under_way.add(
                await producer.send(INCOMING_MESSAGES, record, partition=partition_of(to, stack.settings.partitions))
            )
            if len(under_way) >= UNDER_WAY:
                _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            progress.advance(task, len(messages))
        await asyncio.gather(*under_way)
    finally:
        await producer.stop()
    await _applied(stack, progress)


async def _applied(stack: Stack, progress: Progress) -> None:
    tps = [TopicPartition(INCOMING_MESSAGES, n) for n in range(stack.settings.partitions)]
    consumer = AIOKafkaConsumer(bootstrap_servers=stack.settings.kafka)
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.settings.kafka)
    await consumer.start()
    await admin.start()
    try:
        ends = await consumer.end_offsets(tps)
        task = progress.add_task("applying", total=sum(ends.values()))
        async with asyncio.timeout(APPLIED_S):
            while True:
                committed = await admin.list_consumer_group_offsets("messaging", partitions=tps)
                done = sum(max(0, value.offset) for value in committed.values())
                progress.update(task, completed=done)
                if done >= sum(ends.values()):
                    return
                await asyncio.sleep(0.5)
    finally:
        await consumer.stop()
        await admin.close()


async def acknowledge(stack: Stack, count: int) -> None:
    """Let one user in ten drain their inbox."""
    for number in range(0, min(USERS, count // MAX_MESSAGES), ACKNOWLEDGING):
        name = f"user-{number}"
        waiting = await stack.stored(name)
        async with stack.connect(name, received := Received()):
            await received.wait(waiting)
            await stack.wait_stored(name, 0)


async def run(counts: list[int]) -> list[dict[str, float]]:
    """Fill the log up to each of the counts, and audit it."""
    results, done = [], 0
    with tempfile.TemporaryDirectory(prefix="chat-audit-", ignore_cleanup_errors=True) as folder:
        async with Stack(Path(folder)) as stack:
            stack.forget(stack.running["history"])
            for count in counts:
                with Progress(console=Console(stderr=True)) as progress:
                    await fill(stack, done, count, progress)
                done = count
                await acknowledge(stack, count)
                results.append(await asyncio.to_thread(_audit, stack))
    return results


def _audit(stack: Stack) -> dict[str, float]:
    began = time.perf_counter()
    command = [sys.executable, "-c", _MEASURED]
    done = subprocess.run(command, cwd=ROOT, env=stack.environment, stdout=subprocess.PIPE, check=True)
    report: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return report | {"seconds": time.perf_counter() - began}


# A process of its own, since the parent can only ask for the peak memory of all its children so far.
_MEASURED = """
import json, resource, subprocess, sys
command = [sys.executable, "-m", "faust", "-A", "chat_streams", "audit", "--json", "--no-history"]
done = subprocess.run(command, stdout=subprocess.PIPE)
report = json.loads(done.stdout)
print(json.dumps({
    "messages": report["messages"], "acknowledged": report["acknowledged"], "pending": report["pending"],
    "clean": report["clean"], "peak_kib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
}))
"""


@click.command(help=__doc__)
@click.argument("counts", type=click.IntRange(1_000), nargs=-1, required=True)
def main(counts: tuple[int, ...]) -> None:
    """Run the audits and print a line for each count."""
    for result in uvloop.run(run(sorted(counts))):
        click.echo(
            f"{result['messages']:>12,} messages: {result['peak_kib'] / 1024:.1f} MiB at most,"
            f" {result['seconds']:.1f} s, {result['acknowledged']:,} acknowledged, {result['pending']:,} pending,"
            f" {'clean' if result['clean'] else 'NOT CLEAN'}"
        )


if __name__ == "__main__":
    main()
