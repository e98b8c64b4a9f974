"""``faust -A chat_streams trace MESSAGE_ID``: shows the journey of one message, by the log and the stores."""

from __future__ import annotations

import json
from typing import Final

import click
from faust.cli import argument, option
from rich.console import Console
from rich.table import Table

from chat_streams.commands.output import Command, Since, bar, cell, console, duration, utc
from chat_streams.model import errors
from chat_streams.model.errors import KafkaUnavailable, RedisUnavailable
from chat_streams.model.text import escaped
from chat_streams.operations.journey import Journey, Rules, Verdict, journey_json, verdict
from chat_streams.operations.journey_reader import Tracer
from chat_streams.processing.service import Service

MAX_TRAILS: Final = 10
"""The largest number of journeys shown: an id is chosen by its sender, so that several messages may have the same."""


def register(app: Service) -> None:
    """Add the command to an app."""

    @app.command(
        argument("message_id"),
        option("--sender", help="Only a message of this user."),
        option("--to", help="Only a message to this user; only that partition of the log is read then."),
        option("--since", type=Since(), help="Accepted since: 30m, 7d or 2026-01-31T14:02:00Z; else all of the log."),
        option("--json", "as_json", is_flag=True, help="A line with an object for each message; RFC 3339, ms."),
        base=Command,
    )
    async def trace(
        self: Command, message_id: str, sender: str | None, to: str | None, since: int | None, as_json: bool
    ) -> None:
        """Show the journey of one message, with the time of each stage, and the reason if it was not delivered.

        It reads the log, which keeps deliveries to connections for one hour. Exits with 1 if there is no such message.
        """
        try:
            async with Tracer(app.settings, bar) as tracer:
                found, searched = await tracer.find(message_id, sender, to, since)
                if not found:
                    raise click.ClickException(f"no message {message_id!r}{_whose(sender, to)}: {searched}")
                for journey in found[:MAX_TRAILS]:
                    rules = await tracer.follow(journey)
                    _show(journey, verdict(journey, rules, utc), rules, as_json)
        except (KafkaUnavailable, RedisUnavailable, errors.TopicsError) as error:
            raise click.ClickException(str(error)) from error
        if len(found) > MAX_TRAILS:
            click.echo(f"{len(found) - MAX_TRAILS} more: narrow it down with --sender and --to", err=True)


def _whose(sender: str | None, to: str | None) -> str:
    return (f" of {sender}" if sender else "") + (f" to {to}" if to else "")


def _show(journey: Journey, found: Verdict, rules: Rules, as_json: bool) -> None:
    if as_json:
        click.echo(escaped(json.dumps(journey_json(journey, found, utc), ensure_ascii=False)))
        return
    out = console()
    name = journey.name
    table = Table(title=f"message {name.id} from {name.sender} to {name.to}")
    for column, right in (("time (UTC)", False), ("since accepted", True), ("since last", True)):
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("detail", overflow="fold")
    start = before = journey.first.accepted_at
    for hop in journey.ordered():
        table.add_row(utc(hop.at), duration(hop.at - start), duration(hop.at - before), hop.what, cell(hop.detail))
        before = hop.at
    for what, detail in _now(journey, rules):
        table.add_row("now", "", "", what, cell(detail))
    out.print(table)
    _print(out, found)


def _print(out: Console, found: Verdict) -> None:
    out.print(escaped(f"{found.fate}: {found.text}"), markup=False, soft_wrap=True)


def _now(journey: Journey, rules: Rules) -> list[tuple[str, str]]:
    inbox, copy = journey.inbox, journey.applied
    rows = []
    if copy is not None:
        stored = f"there, {inbox.before} before it" if inbox.stored and inbox.gap is None else "not there"
        cursors = ", ".join(f"{device} {cursor}" for device, cursor in sorted(inbox.cursors.items())) or "none"
        rows.append(("inbox", f"{stored}; top {inbox.top}, floor {inbox.floor}, cursors of devices: {cursors}"))
        if copy.accepted_at < rules.sent_from:
            rows.append(("deliveries", f"those before {utc(rules.sent_from)} are no longer known"))
    history = {True: "there", False: "not there", None: "unknown: the database does not answer"}[journey.in_history]
    if journey.in_history is False and (following := journey.next_offsets["history"]) is not None:
        history += f"; the history service is at offset {following}"
    rows.append(("history", history))
    return rows
