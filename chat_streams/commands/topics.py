"""``faust -A chat_streams topics create|check|repartition``: creates, checks or repartitions the topics."""

from __future__ import annotations

import json
from typing import Final

import click
from faust.cli import AppCommand, argument, option

from chat_streams.commands.output import Command
from chat_streams.kafka import topics
from chat_streams.kafka.client import KAFKA_AWAY
from chat_streams.kafka.generations import why_closed
from chat_streams.model import errors
from chat_streams.model.errors import HistoryUnavailable
from chat_streams.operations import repartition
from chat_streams.operations.repartition import Status
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
            help="repartition: seconds for the services to apply what is in the log; then all stays as it is.",
        ),
        option("--json", "as_json", is_flag=True, help="repartition: an object a line, one for each step."),
        base=Command,
    )
    async def topics(
        self: AppCommand, action: str, partitions: int | None, dry_run: bool, wait_s: float, as_json: bool
    ) -> None:
        """Create what is missing (topics, the table of the chat database), check what is there, or repartition.

        A repartition is done while the services run. Afterwards restart them with the settings that it prints. One that
        was interrupted is run again: it goes on, or opens the log again.
        """
        if (action == "repartition") != (partitions is not None):
            raise click.UsageError("--partitions goes with repartition, and repartition needs it")
        if partitions is not None:
            await _repartition(app, partitions, dry_run, wait_s, as_json)
        else:
            await _run(app, action)


async def _repartition(app: Service, partitions: int, dry_run: bool, wait_s: float, as_json: bool) -> None:
    settings = app.settings

    def say(status: Status) -> None:
        click.echo(json.dumps(status._asdict()) if as_json else f"{status.seconds:5.1f} s  {status.text}")

    try:
        plan = await repartition.plan(settings, partitions)
        new = ", ".join(topic.name for topic in plan.new)
        was_interrupted = "; one was interrupted, this goes on with it" * bool(plan.current.closing)
        text = (
            f"from {plan.old.partitions} to {partitions} partitions, generation {plan.generation}: {plan.old.name} is"
            f" closed and read to its end, then these begin: {new}{was_interrupted}"
        )
        say(Status(plan.stage, text, 0.0))
        if dry_run:
            say(Status(plan.stage, "dry run: nothing is changed", 0.0))
            return
        await repartition.repartition(settings, plan, wait_s, say)
    except (errors.TopicsError, errors.KafkaUnavailable, *KAFKA_AWAY) as error:
        raise click.ClickException(str(error) or repr(error)) from error
    if as_json:
        click.echo(json.dumps({"settings": plan.settings}))
    else:
        values = " ".join(f"{name}={value}" for name, value in plan.settings.items())
        click.echo(f"now restart the workers, then the gateways, with {values}")


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
        if why := why_closed([log.current], log.current.topic_id):
            raise click.ClickException(why)
        click.echo(f"the log is generation {log.generation} with {log.partitions} partitions; all topics are right")
    except (errors.TopicsError, HistoryUnavailable) as error:
        raise click.ClickException(str(error)) from error
    finally:
        await history.close()
