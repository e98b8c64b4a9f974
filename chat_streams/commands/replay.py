"""``faust -A chat_streams replay``: has the workers restore the inboxes from the log, while everything runs."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import click
from faust.cli import option
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from chat_streams.commands.output import Command
from chat_streams.kafka.log_reader import LogReader
from chat_streams.kafka.names import INCOMING_MESSAGES
from chat_streams.model.errors import KafkaUnavailable, RedisUnavailable
from chat_streams.processing.service import Service
from tables.inbox import Inbox
from tables.redis_cluster import Cluster

LOOK_SECONDS: Final = 0.5


def register(app: Service) -> None:
    """Add the command to an app."""

    @app.command(
        option("--partition", type=click.IntRange(0), default=None, help="Only this partition; else all."),
        option("--wait", "wait_s", type=click.IntRange(1), default=600, help="Seconds to wait for the workers."),
        base=Command,
    )
    async def replay(self: Command, partition: int | None, wait_s: int) -> None:
        """Restore inboxes from the log: cursors first, then all messages above them.

        The messaging workers do this by themselves when they find that Redis is empty or does not have their fencing
        token; this command makes them do it now. If nothing is lost, it changes nothing. Acknowledged messages do not
        come back.
        """
        if partition is not None and partition >= app.settings.partitions:
            raise click.BadParameter(f"there are partitions 0 to {app.settings.partitions - 1}")
        partitions = list(range(app.settings.partitions)) if partition is None else [partition]
        cluster = Cluster(app.settings)
        try:
            await _replay(app, Inbox(cluster, app.settings), partitions, wait_s)
        except (RedisUnavailable, KafkaUnavailable) as error:
            raise click.ClickException(str(error)) from error
        finally:
            await cluster.close()


async def _replay(app: Service, inbox: Inbox, partitions: list[int], wait_s: int) -> None:
    async with LogReader(app.settings) as reader:
        ends = {span.partition: span.end for span in await reader.spans(INCOMING_MESSAGES, partitions)}
    for partition in partitions:
        await inbox.invalidate(partition)
    deadline = time.monotonic() + wait_s
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bars: dict[int, TaskID] = {
            partition: progress.add_task(f"partition {partition}, records", total=ends[partition])
            for partition in partitions
        }
        while bars:
            for partition, bar in list(bars.items()):
                applied = await inbox.applied(partition)
                progress.update(bar, completed=min(applied, ends[partition]))
                if applied >= ends[partition]:
                    del bars[partition]
            if bars and time.monotonic() > deadline:
                raise click.ClickException(
                    f"after {wait_s} s partitions {sorted(bars)} are not restored yet: do messaging workers run?"
                )
            await asyncio.sleep(LOOK_SECONDS)
    click.echo(f"restored: {len(partitions)} partitions up to where the log ended when this began")
