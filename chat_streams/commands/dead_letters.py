"""``faust -A chat_streams dead-letters list|show|redrive``: the records that could not be applied."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

import aiokafka
import click
from aiokafka.errors import KafkaError
from faust.cli.base import cli
from rich.markup import escape
from rich.table import Table

from chat_streams import dead_letters
from chat_streams.commands.output import Since, bar, console, utc
from chat_streams.dead_letters import CODECS, MESSAGING, Catalogue, Filter, Summary
from chat_streams.log_reader import LogReader, LogUnavailable, Span
from chat_streams.records import DEAD_LETTERS, DeadLetter, Redriven, Undecodable, UnknownVersion, now_ms
from chat_streams.service import Service
from chat_streams.settings import Settings
from chat_streams.topics import DEAD_LETTERS as TOPIC
from chat_streams.topics import INCOMING_MESSAGES, MAX_RECORD

HEX_BYTES: Final = 64
"""Shown of a record without ``--bodies``."""
HEX_ROW: Final = 32
BULK: Final = 1
"""More than so many are redriven only after a question, where there is someone to ask."""

F = TypeVar("F", bound=Callable[..., Any])


def register(app: Service) -> None:
    """Add the commands to Faust's command line."""
    # Faust's own commands have no commands below them, each with options of its own.
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

        A dead letter goes by its number, its offset in the topic dead_letters.
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

        This is the one exception to the order of messages: they come behind all that was accepted since. What fails
        again becomes a new dead letter. Of a record that messaging had applied in part, that part is dropped as a
        retry within the retry window and delivered a second time after it.
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
    except LogUnavailable as error:
        raise click.ClickException(str(error)) from error


async def _list(settings: Settings, wanted: Filter, limit: int, as_json: bool) -> None:
    found: deque[Summary] = deque(maxlen=limit)
    redriven: dict[int, Redriven] = {}
    matching = 0
    async with LogReader(settings) as reader:
        # A dead letter is written after it failed, and what is said of it comes after it.
        spans = await reader.spans(TOPIC, since_ms=wanted.since)
        with bar("reading dead letters") as progress:
            async for number, item in dead_letters.read(reader, spans, progress):
                if isinstance(item, Redriven):
                    redriven[item.number] = item
                elif wanted.matches(item):
                    found.append(Summary.of(number, item))
                    matching += 1
    if as_json:
        click.echo(json.dumps([_summary_json(s, redriven.get(s.number)) for s in found], indent=2))
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
            *(str(s.number), s.app, s.origin.topic, str(s.origin.partition), str(s.origin.offset), escape(s.reason)),
            *(utc(s.first_at), last, str(s.size), "open" if mark is None else f"redriven {utc(mark.at)}"),
        )
    out.print(table)


def _summary_json(summary: Summary, mark: Redriven | None) -> dict[str, Any]:
    return {
        "number": summary.number,
        "app": summary.app,
        **summary.origin._asdict(),
        "reason": summary.reason,
        "first_at": utc(summary.first_at),
        "last_at": utc(summary.last_at),
        "size": summary.size,
        "redriven_at": None if mark is None else utc(mark.at),
        "redriven_to_offset": None if mark is None else mark.offset,
    }


async def _show(settings: Settings, number: int, bodies: bool, as_json: bool) -> None:
    letter: DeadLetter | None = None
    mark: Redriven | None = None
    async with LogReader(settings) as reader:
        (span,) = await reader.spans(TOPIC)
        if span.first <= number < span.end:
            with bar("reading dead letters") as progress:
                async for offset, item in dead_letters.read(reader, [span._replace(first=number)], progress):
                    if offset == number and isinstance(item, DeadLetter):
                        letter = item
                    elif letter is None:
                        break
                    elif isinstance(item, Redriven) and item.number == number:
                        mark = item
    if letter is None:
        raise _unknown([str(number)])
    try:
        record, undecodable = dead_letters.readable(dead_letters.decode(letter), bodies), None
    except (Undecodable, UnknownVersion) as error:
        record, undecodable = None, str(error)
    value = letter.value or b""
    shown = value if bodies else value[:HEX_BYTES]
    found = _summary_json(Summary.of(number, letter), mark) | {
        "key": None if letter.key is None else letter.key.decode(errors="backslashreplace"),
        "traceback": letter.traceback,
        "record": record,
        "undecodable": undecodable,
        "hex": shown.hex(),
    }
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    out = console()
    table = Table(title=f"dead letter {number}", show_header=False)
    for name in ("app", "topic", "partition", "offset", "key", "reason", "first_at", "last_at"):
        table.add_row(name, escape(str(found[name])))
    table.add_row("size", f"{len(value)} bytes")
    table.add_row("state", "open" if mark is None else f"redriven {utc(mark.at)}, now at offset {mark.offset}")
    out.print(table)
    click.echo(f"\n{letter.traceback.rstrip()}\n")
    if record is None:
        click.echo(f"The record doesn't decode: {undecodable}")
    else:
        click.echo(f"The record: {len(record)} items")
        for entry in record:
            click.echo(json.dumps(entry, ensure_ascii=False))
    more = "" if len(shown) == len(value) else f", the first {len(shown)} (all with --bodies)"
    click.echo(f"\n{len(value)} bytes{more}:")
    for start in range(0, len(shown), HEX_ROW):
        click.echo(f"{start:08x}  {shown[start : start + HEX_ROW].hex(' ', 4)}")


def _unknown(numbers: Sequence[str]) -> click.ClickException:
    return click.ClickException(
        f"no dead letter has the number {', '.join(numbers)}; 'dead-letters list' shows which there are"
    )


async def _redrive(
    settings: Settings, numbers: Sequence[int], wanted: Filter, *, dry_run: bool, yes: bool, again: bool
) -> None:
    async with LogReader(settings) as reader:
        (span,) = await reader.spans(TOPIC)
        catalogue = Catalogue()
        with bar("reading dead letters") as progress:
            async for number, item in dead_letters.read(reader, [span], progress):
                catalogue.add(number, item, wanted)
        if unknown := [str(n) for n in numbers if n not in catalogue.numbers]:
            raise _unknown(unknown)
        chosen = list(numbers) or catalogue.chosen
        done = [n for n in chosen if n in catalogue.redriven]
        if done and not again:
            if numbers:
                raise click.ClickException(
                    f"redriven already: {', '.join(map(str, done))}; once more only with --again: what has been applied"
                    " meanwhile may be delivered a second time"
                )
            chosen = [n for n in chosen if n not in catalogue.redriven]
        if not chosen:
            click.echo("nothing to redrive")
            return
        if len(chosen) > BULK and not (yes or dry_run) and sys.stdin.isatty():
            click.confirm(f"Redrive {len(chosen)} dead letters?", abort=True)
        partitions = {topic: len(await reader.spans(topic)) for topic in CODECS}
        async with contextlib.AsyncExitStack() as stack:
            redriver = _Redriver(settings, catalogue, partitions)
            if not dry_run:
                await stack.enter_async_context(redriver)
            # Closed before the reader is, also on an error in the middle.
            letters = await stack.enter_async_context(contextlib.aclosing(_letters(reader, span, chosen)))
            async for number, letter in letters:
                await redriver.redrive(number, letter)
    redriver.report()


async def _letters(
    reader: LogReader, span: Span, numbers: Sequence[int]
) -> AsyncGenerator[tuple[int, DeadLetter], None]:
    wanted = set(numbers)
    for first, end in dead_letters.runs(numbers):
        async for number, item in dead_letters.read(reader, [span._replace(first=first, end=end)]):
            if number in wanted and isinstance(item, DeadLetter):
                yield number, item


class _Redriver:
    """Writes dead letters back, in the order of their numbers, or only says so where it was not entered."""

    def __init__(self, settings: Settings, catalogue: Catalogue, partitions: dict[str, int]) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._partitions = partitions
        self._producer: aiokafka.AIOKafkaProducer | None = None
        self._covered: set[int] = set()
        self._counts = {"redriven": 0, "refused": 0, "late": 0}

    async def __aenter__(self) -> None:
        self._producer = aiokafka.AIOKafkaProducer(
            bootstrap_servers=self._settings.kafka,
            acks="all",
            enable_idempotence=True,
            max_request_size=2 * MAX_RECORD,
        )
        try:
            await self._producer.start()
        except KafkaError as error:
            raise LogUnavailable(f"Kafka at {self._settings.kafka} (CHAT_KAFKA): {error!r}") from error

    async def __aexit__(self, *_: object) -> None:
        assert self._producer is not None
        await self._producer.stop()

    async def redrive(self, number: int, letter: DeadLetter) -> None:
        """Write one back, then note that it was: where that note is missing, it is redriven twice, never not."""
        if number in self._covered:
            return
        name = f"dead letter {number} ({letter.app}, {dead_letters.origin_of(letter)})"
        if (refusal := self._refusal(letter)) is not None:
            self._counts["refused"] += 1
            click.echo(f"{name}: not redriven, {refusal}", err=True)
            return
        write = self._catalogue.write(number, letter)
        self._covered.update(write.covers)
        late = letter.app == MESSAGING and now_ms() - letter.first_at > self._settings.retry_window * 1000
        self._counts["redriven"] += 1
        self._counts["late"] += late and letter.topic == INCOMING_MESSAGES
        also = "".join(f", and with it number {n}" for n in write.covers if n != number)
        goal = f"{letter.topic}/{letter.partition}, {len(letter.value or b'')} bytes, {_text(write.headers)}{also}"
        if self._producer is None:
            click.echo(f"{name}: would go to {goal}")
            return
        try:
            sent = await self._producer.send_and_wait(
                letter.topic, letter.value, letter.key, letter.partition, headers=write.headers
            )
            at = now_ms()
            for covered in write.covers:
                mark = DEAD_LETTERS.encode(Redriven(covered, at, sent.offset))
                self._catalogue.redriven[covered] = Redriven(covered, at, sent.offset)
                await self._producer.send_and_wait(TOPIC, mark, letter.key)
        except KafkaError as error:
            raise LogUnavailable(
                f"{name}: {error!r}; redriven before it: {self._counts['redriven'] - 1}, those after it were not"
            ) from error
        click.echo(f"{name}: went to {goal}, now at offset {sent.offset}")

    def _refusal(self, letter: DeadLetter) -> str | None:
        there = self._partitions.get(letter.topic)
        if there is None:
            return f"{letter.topic} is no topic that is read by a service"
        if letter.partition >= there:
            return f"{letter.topic} has {there} partitions only"
        if (user := dead_letters.wrong_partition(letter, there)) is not None:
            return f"{user} is not on partition {letter.partition} any more: the topics were repartitioned"
        return None

    def report(self) -> None:
        """Say how many; raises ``click.ClickException`` where some were refused."""
        if self._counts["late"]:
            click.echo(
                f"{self._counts['late']} failed in messaging before the retry window, {self._settings.retry_window} s:"
                " where a part of such a record was applied, its recipients get that twice"
            )
        if self._counts["refused"]:
            raise click.ClickException(f"{self._counts['refused']} were not redriven")


def _text(headers: Sequence[tuple[str, bytes]]) -> str:
    return " ".join(f"{name}={value.decode()}" for name, value in headers)
