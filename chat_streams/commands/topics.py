"""``faust -A chat_streams topics create|check``."""

from __future__ import annotations

import asyncio

import click
from faust.cli import AppCommand, argument

from chat_streams import topics
from chat_streams.commands.output import Command
from chat_streams.service import Service
from tables.chat_history import ChatHistory, HistoryUnavailable


def register(app: Service) -> None:
    """Add the command to an app."""

    @app.command(argument("action", type=click.Choice(["create", "check"])), base=Command)
    async def topics(self: AppCommand, action: str) -> None:
        """Create what is missing (topics, the table of the chat database), or check what is there."""
        await _run(app, action)


async def _run(app: Service, action: str) -> None:
    settings = app.settings
    history = ChatHistory(settings)
    try:
        if action == "create":
            made, table_made = await asyncio.gather(topics.create(settings), history.create())
            made_all = [*made, *([f"table {settings.history_table}"] if table_made else [])]
            click.echo(f"created: {', '.join(made_all) or 'nothing was missing'}")
        log = await topics.check(settings)
        click.echo(f"the log is generation {log.generation} with {log.partitions} partitions; all topics are right")
    except (topics.TopicsError, HistoryUnavailable) as error:
        raise click.ClickException(str(error)) from error
    finally:
        await history.close()
