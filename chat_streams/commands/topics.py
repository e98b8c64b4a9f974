"""``faust -A chat_streams topics create|check|repartition``: creates, checks or repartitions the topics."""

from __future__ import annotations

from typing import Final

import click
from aiokafka.errors import KafkaError
from faust.cli import AppCommand, argument, option

from chat_streams.commands.output import Command
from chat_streams.kafka import topics
from chat_streams.model import errors
from chat_streams.model.errors import HistoryUnavailable
from chat_streams.operations import repartition
from chat_streams.processing.service import Service
from tables.chat_history import ChatHistory

ACTIONS: Final = ("create", "check", "repartition")


def register(app: Service) -> None:
    """Add the command to an app."""

    @app.command(
        argument("action", type=click.Choice(ACTIONS)),
        option("--partitions", type=click.IntRange(1, 10_000), help="repartition: how many there shall be."),
        option("--dry-run", is_flag=True, help="repartition: only say what would be done."),
        option(
            "--wait",
            "wait_s",
            type=click.FloatRange(1, 3600),
            default=60.0,
            show_default=True,
            help="repartition: seconds for messaging and history to apply what is in the log; then all stays as it is.",
        ),
        base=Command,
    )
    async def topics(self: AppCommand, action: str, partitions: int | None, dry_run: bool, wait_s: float) -> None:
        """Create what is missing (topics, the table of the chat database), check what is there, or repartition.

        A repartition is done while the services run. Afterwards restart them with the settings that it prints.
        """
        if (action == "repartition") != (partitions is not None):
            raise click.UsageError("--partitions goes with repartition, and repartition needs it")
        if partitions is not None:
            await _repartition(app, partitions, dry_run, wait_s)
        else:
            await _run(app, action)


async def _repartition(app: Service, partitions: int, dry_run: bool, wait_s: float) -> None:
    settings = app.settings
    try:
        plan = await repartition.plan(settings, partitions)
        names = ", ".join(topic.name for topic in plan.new)
        click.echo(
            f"from {plan.old.partitions} to {partitions} partitions, generation {plan.generation}: {plan.old.name} is"
            f" closed and read to its end, then these begin: {names}"
        )
        if dry_run:
            click.echo("dry run: nothing is changed")
            return
        await repartition.repartition(settings, plan, wait_s, click.echo)
    except (errors.TopicsError, KafkaError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"now restart the workers, then the gateways, with {plan.settings}")


async def _run(app: Service, action: str) -> None:
    settings = app.settings
    history = ChatHistory(settings)
    try:
        if action == "create":
            # Not concurrently: if one fails, no creation of the other is left unfinished.
            (made, configured), table_made = await topics.create(settings), await history.create()
            made_all = [*made, *([f"table {settings.history_table}"] if table_made else [])]
            click.echo(f"created: {', '.join(made_all) or 'nothing was missing'}")
            if configured:
                click.echo(f"have the log's time now ({topics.TIME}={topics.LOG_TIME}): {', '.join(configured)}")
        log = await topics.check(settings)
        click.echo(f"the log is generation {log.generation} with {log.partitions} partitions; all topics are right")
    except (errors.TopicsError, HistoryUnavailable) as error:
        raise click.ClickException(str(error)) from error
    finally:
        await history.close()
