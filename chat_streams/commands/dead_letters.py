"""``faust -A chat_streams dead-letters list|show|redrive``: the records that could not be applied."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

import click
from faust.cli.base import cli
from rich.table import Table

from chat_streams.commands.output import Since, bar, cell, console, utc
from chat_streams.model import errors
from chat_streams.model.errors import KafkaUnavailable
from chat_streams.model.text import escaped
from chat_streams.operations import redrive_service
from chat_streams.operations.dead_letters import CODECS, Filter
from chat_streams.processing.service import Service
from chat_streams.runtime.settings import Settings

HEX_BYTES: Final = 64
"""The number of bytes shown of a record without ``--bodies``."""
HEX_ROW: Final = 32
"""The number of bytes in a row of the hex dump."""
BULK: Final = 1
"""The largest number of dead letters that are redriven without a confirmation; none is asked for without a terminal."""

F = TypeVar("F", bound=Callable[..., Any])


def register(app: Service) -> None:
    """Add the commands to Faust's command line."""
    # Faust's own commands cannot have subcommands with options of their own.
    cli.add_command(_group(app.settings))


def _filters(command: F) -> F:
    for decorator in reversed(
        (
            click.option("--app", help="Only those of an app: messaging, notification, history."),
            click.option("--topic", type=click.Choice(sorted(CODECS)), help="Only those of a topic."),
            click.option("--reason", metavar="TEXT", help="Only those with TEXT in the reason."),
            click.option(
                "--since", type=Since(), help="Only those that failed since: 30m, 7d or 2026-01-31T14:02:00Z."
            ),
        )
    ):
        command = decorator(command)
    return command


def _group(settings: Settings) -> click.Group:
    @click.group("dead-letters")
    def group() -> None:
        """List, show and redrive the records that could not be applied.

        A dead letter is identified by its number, which is its offset in the topic dead_letters.
        """

    @group.command("list")
    @_filters
    @click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="The newest so many.")
    @click.option("--json", "as_json", is_flag=True, help="An array of objects; times in RFC 3339, sizes in bytes.")
    def list_(as_json: bool, limit: int, **wanted: Any) -> None:
        """List dead letters, the newest last."""
        _run(_list(settings, Filter(**wanted), limit, as_json))

    @group.command()
    @click.argument("number", type=click.IntRange(0))
    @click.option("--bodies", is_flag=True, help="With the bodies of messages, and all bytes.")
    @click.option("--json", "as_json", is_flag=True, help="An object; times in RFC 3339, sizes in bytes.")
    def show(number: int, bodies: bool, as_json: bool) -> None:
        """Show all that is known of a dead letter: why it failed, and what is in it."""
        _run(_show(settings, number, bodies, as_json))

    @group.command()
    @click.argument("numbers", type=click.IntRange(0), nargs=-1)
    @click.option("--all", "everything", is_flag=True, help="All that match the filters.")
    @_filters
    @click.option("--dry-run", is_flag=True, help="Only print what would be done.")
    @click.option("--yes", is_flag=True, help="Don't ask.")
    @click.option(
        "--again",
        is_flag=True,
        help="Also those redriven already. What has been applied meanwhile is delivered a second time, unless it is"
        " within the retry window (CHAT_RETRY_WINDOW, from when it was accepted).",
    )
    def redrive(
        numbers: tuple[int, ...], everything: bool, dry_run: bool, yes: bool, again: bool, **wanted: Any
    ) -> None:
        """Write records back to the topic and partition they came from, for the app that failed on them.

        This is the one exception to the order of messages: they come after all that was accepted since. A record that
        fails again becomes a new dead letter. If messaging had applied a part of a record, that part is dropped as a
        retry within the retry window, and delivered a second time after it.
        """
        if everything == bool(numbers):
            raise click.UsageError("which ones? give their numbers, or --all with filters")
        if numbers and any(value is not None for value in wanted.values()):
            raise click.UsageError("filters go with --all, not with numbers")
        _run(_redrive(settings, sorted(set(numbers)), Filter(**wanted), dry_run=dry_run, yes=yes, again=again))

    return group


def _run(command: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.run(command)
    except (KafkaUnavailable, errors.RedriveRefused) as error:
        raise click.ClickException(str(error)) from error


async def _list(settings: Settings, wanted: Filter, limit: int, as_json: bool) -> None:
    with bar("reading dead letters") as progress:
        listing = await redrive_service.listing(settings, wanted, limit, progress)
    found, redriven, matching = listing
    if as_json:
        click.echo(json.dumps(listing.as_json(), indent=2))
        return
    out = console()
    table = Table(title=f"{matching} dead letters" + (f", the newest {limit}" if matching > limit else ""))
    for name in (
        "number",
        "app",
        "topic",
        "partition",
        "offset",
        "reason",
        "failed first (UTC)",
        "last",
        "bytes",
        "state",
    ):
        right = name in ("number", "partition", "offset", "bytes")
        table.add_column(name, justify="right" if right else "left", overflow="fold", max_width=60)
    for s in found:
        mark = redriven.get(s.number)
        last = "" if s.last_at == s.first_at else utc(s.last_at)
        table.add_row(
            *(
                str(s.number),
                s.app,
                s.origin.topic,
                str(s.origin.partition),
                str(s.origin.offset),
                cell(s.reason),
            ),
            *(utc(s.first_at), last, str(s.size), "open" if mark is None else f"redriven {utc(mark.at)}"),
        )
    out.print(table)


async def _show(settings: Settings, number: int, bodies: bool, as_json: bool) -> None:
    with bar("reading dead letters") as progress:
        found = await redrive_service.details(settings, number, bodies, progress)
    if as_json:
        click.echo(escaped(json.dumps(found, indent=2, ensure_ascii=False), keep="\n"))
        return
    out = console()
    table = Table(title=f"dead letter {number}", show_header=False)
    for name in ("app", "topic", "partition", "offset", "key", "reason", "first_at", "last_at"):
        table.add_row(name, cell(str(found[name])))
    table.add_row("size", f"{found['size']} bytes")
    table.add_row("state", _state(found))
    out.print(table)
    click.echo(escaped(f"\n{found['traceback'].rstrip()}\n", keep="\n"))
    record, shown, size = found["record"], bytes.fromhex(found["hex"]), found["size"]
    if record is None:
        click.echo(escaped(f"The record doesn't decode: {found['undecodable']}"))
    else:
        click.echo(f"The record: {len(record)} items")
        for entry in record:
            click.echo(escaped(json.dumps(entry, ensure_ascii=False)))
    more = "" if len(shown) == size else f", the first {len(shown)} (all with --bodies)"
    click.echo(f"\n{size} bytes{more}:")
    for start in range(0, len(shown), HEX_ROW):
        click.echo(f"{start:08x}  {shown[start : start + HEX_ROW].hex(' ', 4)}")


def _state(found: dict[str, Any]) -> str:
    if found["redriven_at"] is None:
        return "open"
    return f"redriven {found['redriven_at']}, now at offset {found['redriven_to_offset']}"


async def _redrive(
    settings: Settings, numbers: Sequence[int], wanted: Filter, *, dry_run: bool, yes: bool, again: bool
) -> None:
    def confirm(count: int) -> None:
        if count > BULK and not (yes or dry_run) and sys.stdin.isatty():
            click.confirm(f"Redrive {count} dead letters?", abort=True)

    with bar("reading dead letters") as progress:
        await redrive_service.redrive(
            settings,
            numbers,
            wanted,
            dry_run=dry_run,
            again=again,
            say=click.echo,
            warn=lambda line: click.echo(line, err=True),
            confirm=confirm,
            progress=progress,
        )
