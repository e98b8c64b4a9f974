"""``faust -A chat_streams audit``: checks that each accepted message has exactly one fate, such as acknowledged."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import socket
from typing import IO, Any

import click
from faust.cli.base import cli
from rich.table import Table
from rich.text import Text

from chat_streams.commands.output import bar, console
from chat_streams.kafka import losses
from chat_streams.kafka.log_reader import LogReader
from chat_streams.kafka.names import partition_of
from chat_streams.model.errors import (
    HistoryUnavailable,
    KafkaUnavailable,
    RedisUnavailable,
    TopicsError,
    UnknownVersion,
)
from chat_streams.model.losses import MOST_SHOWN, Loss, Losses, records_of
from chat_streams.model.times import utc
from chat_streams.operations.audit import Options, audit
from chat_streams.operations.audit_report import MEANINGS, kept_summary, summary
from chat_streams.operations.audit_rules import Fate, Report
from chat_streams.processing.service import Service
from chat_streams.runtime.settings import Settings
from tables import last_audit
from tables.redis_cluster import Cluster


class EngineAway(click.ClickException):
    """An engine does not answer, so that there is no audit."""

    exit_code = 2


class Unclean(click.ClickException):
    """The audit has findings, which are printed already."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        """Print nothing more."""


def register(app: Service) -> None:
    """Add the command to Faust's command line."""
    # A command made by Faust's decorator runs in a worker, which reports an exit code as an error with a traceback.
    cli.add_command(_command(app.settings))


def _command(settings: Settings) -> click.Command:
    @click.command("audit")
    @click.option("--partition", type=click.IntRange(0), default=None, help="Only this partition; else all.")
    @click.option("--user", default=None, help="Only the messages to this user.")
    @click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
    @click.option("--no-history", is_flag=True, help="Do not look whether the chat database has each message.")
    @click.option(
        "--wait",
        "wait_s",
        type=click.FloatRange(0),
        default=30.0,
        show_default=True,
        help="Seconds to let the services catch up with the log.",
    )
    @click.option(
        "--acknowledge-loss",
        is_flag=True,
        help="Note first that you have seen which records retention removed before they were applied.",
    )
    def command(
        partition: int | None, user: str | None, as_json: bool, no_history: bool, wait_s: float, acknowledge_loss: bool
    ) -> None:
        """Check that no message is lost: show the fate of each message in the log, as of now.

        Exits with 1 if a message has no fate, has two, or is not applied yet, if records were gone before they were
        applied and nobody has acknowledged that, or if anything else is wrong, and lists the findings; with 2 if an
        engine is away. The services may run meanwhile.
        """
        partitions = None if partition is None else [partition]
        if partition is not None and partition >= settings.partitions:
            raise click.BadParameter(f"there are partitions 0 to {settings.partitions - 1}")
        if user is not None:
            of_user = partition_of(user, settings.partitions)
            if partition not in (None, of_user):
                raise click.BadParameter(f"user {user} is on partition {of_user}")
            partitions = [of_user]
        asyncio.run(_run(settings, Options(partitions, user, not no_history, wait_s), as_json, acknowledge_loss))

    return command


async def _run(settings: Settings, options: Options, as_json: bool, acknowledge_loss: bool) -> None:
    try:
        if acknowledge_loss:
            await _acknowledge(settings, options)
        with bar("auditing") as progress:
            report = await audit(settings, options, progress)
    except HistoryUnavailable as error:
        raise EngineAway(f"no audit: DynamoDB (CHAT_DYNAMODB_ENDPOINT): {error}; --no-history goes without") from error
    except (TopicsError, KafkaUnavailable, RedisUnavailable, UnknownVersion) as error:
        raise EngineAway(f"no audit: {error}") from error
    await _keep(settings, report, options)
    if as_json:
        click.echo(json.dumps(summary(report, options), indent=2))
    else:
        show(report, options)
    if not report.clean:
        raise Unclean("findings")


async def _acknowledge(settings: Settings, options: Options) -> None:
    async with LogReader(settings) as reader:
        found = Losses.of(await losses.read(reader), options.partitions).open
    who = f"{_user()}@{socket.gethostname()}"
    await losses.acknowledge(settings, found, who)
    click.echo(
        f"acknowledged by {who}: {records_of(found):,} records that were gone before they were applied", err=True
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # In a container this may be a user without a name.


async def _keep(settings: Settings, report: Report, options: Options) -> None:
    """Store the report for the inspector, if it is of all messages."""
    if options.partitions is not None or options.user is not None:
        return
    cluster = Cluster(settings)
    try:
        await last_audit.save(cluster, kept_summary(report, options))
    except RedisUnavailable as error:
        click.echo(f"the report is not kept for the inspector: {error}", err=True)
    finally:
        await cluster.close()


def show(report: Report, options: Options) -> None:
    """Print the report."""
    out = console()
    table = Table("", "messages", "meaning", title=Text(_title(options)), title_justify="left")
    table.columns[1].justify = "right"
    for fate in Fate:
        if report.fates[fate] or fate is not Fate.IN_FLIGHT:
            table.add_row(fate, f"{report.fates[fate]:,}", MEANINGS[fate])
    for name, count, meaning in (
        ("none of these", report.none, "lost, or removed by somebody else"),
        ("two of these", report.twice, ""),
    ):
        table.add_row(name, f"{count:,}", meaning, style="bold red" if count else None)
    table.add_section()
    table.add_row("accepted", f"{report.messages:,}", "in the log")
    if options.history:
        meaning = f"{report.history_missing:,} missing, {report.history_behind:,} not reached by history yet"
        style = "bold red" if report.history_missing else None
        table.add_row("in history", f"{report.history_checked - report.history_missing:,}", meaning, style=style)
    out.print(table)
    if report.losses.open:
        _show_losses(report.losses.open)
    if report.losses.acknowledged:
        out.print(
            f"{records_of(report.losses.acknowledged):,} records were lost to retention, and that is acknowledged"
        )
    if report.acks_in_flight:
        out.print(f"{report.acks_in_flight:,} records of acknowledgements are in flight: does notification run?")
    if report.findings:
        _show_findings(report)
    out.print("clean: each message is exactly one of these" if report.clean else "NOT clean", style="bold")


def _title(options: Options) -> str:
    if options.user is not None:
        return f"messages to {options.user}"
    return "all messages" if options.partitions is None else f"messages of partition {options.partitions[0]}"


def _show_losses(found: list[Loss]) -> None:
    table = Table(
        *("service", "topic", "partition", "offsets", "records", "noted"),
        title=f"gone by retention before it was applied: {records_of(found):,} records",
        title_justify="left",
    )
    for loss in found[:MOST_SHOWN]:
        noted = utc(loss.at) if loss.at else f"not yet: {loss.app} has not been back"
        offsets = f"{loss.first:,} to {loss.end - 1:,}"
        table.add_row(loss.app, loss.topic, str(loss.partition), offsets, f"{loss.end - loss.first:,}", noted)
    out = console()
    out.print(table)
    if len(found) > MOST_SHOWN:
        out.print(f"and {len(found) - MOST_SHOWN:,} more ranges")
    out.print("'audit --acknowledge-loss' notes that you have seen it")


def _show_findings(report: Report) -> None:
    out = console()
    table = Table("partition", "position", "to", "from", "id", "what is wrong", title="findings", title_justify="left")
    for found in report.findings:
        position = "" if found.position is None else str(found.position)
        # As Text, because ids and names that users chose must not be read as markup.
        cells = (str(found.partition), position, found.user, found.sender or "", found.id or "", found.problem)
        table.add_row(*map(Text, cells))
    out.print(table)
    if report.left_out:
        out.print(f"and {report.left_out:,} more")
