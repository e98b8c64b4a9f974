"""Helpers that the commands share: times as texts and back, a console, a progress bar, a base class."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import click
from faust.cli import AppCommand
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from chat_streams.kafka.log_reader import Progress as Report
from chat_streams.model.text import escaped
from chat_streams.model.times import duration, utc

__all__ = ["Command", "Since", "bar", "cell", "console", "duration", "utc"]

WIDTH: Final = 200
"""The width in columns of a table that is written to a file or a pipe."""
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_AGE: Final = re.compile(r"([0-9]{1,9})([smhd])", re.ASCII)


def console() -> Console:
    """Return a console on stdout, as wide as the terminal; without a terminal, wide enough for any table."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def cell(text: str) -> str:
    """Return the text for a cell of a table, in which nothing is markup and nothing steers the terminal."""
    return escape(escaped(text))


class Command(AppCommand):
    """A base for ``app.command`` that reports an error as click does, in one line and with its exit code.

    Faust runs a command as a service, and logs an exception that ends it with two tracebacks.
    """

    abstract = True

    def run_using_worker(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run the command and end the process."""
        try:
            asyncio.run(self.execute(*self.args, *args, **(self.kwargs | kwargs)))
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("Aborted!", err=True)
            sys.exit(1)
        sys.exit(0)


@contextlib.contextmanager
def bar(what: str) -> Iterator[Report]:
    """Show a progress bar on stderr while something is read; nothing if stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class Since(click.ParamType):
    """A point in time, as ms since the epoch: an age as in ``30m``, or a time in RFC 3339 (UTC without an offset)."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the time that a text stands for, in ms since the epoch."""
        if isinstance(value, int):
            return value
        now = datetime.now(UTC)
        if match := _AGE.fullmatch(value):
            return max(0, int(now.timestamp() * 1000) - int(match[1]) * _UNITS[match[2]] * 1000)
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither an age (90s, 30m, 12h, 7d) nor a time (2026-01-31T14:02:00Z)", param, ctx)
        return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)
