"""``faust -A chat_streams lag``: shows the consumer lag in messages and seconds, and the time to catch up."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

import click
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import TopicPartition
from faust.cli import option
from rich.table import Table

from chat_streams.commands.output import Command, console
from chat_streams.kafka.client import KAFKA_AWAY, client_options, explain_failure
from chat_streams.kafka.log_reader import LogReader
from chat_streams.model.errors import KafkaUnavailable
from chat_streams.operations.formats import empty_in, number, seconds
from chat_streams.operations.lag import Watermarks, summary
from chat_streams.operations.lag_reader import GROUPS, LOOK_S, look
from chat_streams.operations.lag_sampling import sample
from chat_streams.processing.service import Service
from chat_streams.runtime.settings import Settings

LOOKS: Final = 3
"""The number of looks at offsets that the rates are computed from."""


def register(app: Service) -> None:
    """Add the command to an app."""

    @app.command(
        option("--json", "as_json", is_flag=True, help="An array of objects, one for each group and topic."),
        option("--most", "most_s", type=click.FloatRange(0), help="Exit code 1 if anything waits longer, in seconds."),
        base=Command,
    )
    async def lag(self: Command, as_json: bool, most_s: float | None) -> None:
        """Show how far each service is behind the log, as the inspector does; it measures for a few seconds."""
        try:
            rows = await _measure(app.settings)
        except KafkaUnavailable as error:
            raise click.ClickException(str(error)) from error
        except KAFKA_AWAY as error:
            raise click.ClickException(await explain_failure(app.settings, error)) from error
        _show(rows, as_json)
        if most_s is not None and (late := [row for row in rows if (row["seconds"] or 0) > most_s]):
            names = ", ".join(f"{row['group']} on {row['topic']}" for row in late)
            raise click.ClickException(f"behind for more than {most_s:g} s: {names}")


async def _measure(settings: Settings) -> list[dict[str, Any]]:
    marks = Watermarks()
    topics = sorted({topic for of_group in GROUPS.values() for topic in of_group})
    tps = [TopicPartition(topic, p) for topic in topics for p in range(settings.partitions)]
    consumer = AIOKafkaConsumer(**client_options(settings), enable_auto_commit=False)
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        await consumer.start()
        await admin.start()
        for _ in range(LOOKS):
            await asyncio.sleep(LOOK_S)
            await look(marks, consumer, admin, tps)
    finally:
        await admin.close()
        await consumer.stop()
    async with LogReader(settings) as reader:
        _, lags = await sample(reader, marks)
    return summary(marks, lags, GROUPS)


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows))
        return
    table = Table("group", "topic")
    for name in ("messages", "records", "waiting for", "empty in"):
        table.add_column(name, justify="right")
    for row in rows:
        about = "" if row["exact"] else "≈"
        cells = (f"{about}{number(row['messages'])}", number(row["records"]), seconds(row["seconds"]), empty_in(row))
        table.add_row(row["group"], row["topic"], *cells)
    console().print(table)
