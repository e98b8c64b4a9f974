"""Listing, showing and redriving dead letters, for the commands and the inspector."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Final, NamedTuple

from chat_streams.kafka.client import KAFKA_AWAY
from chat_streams.kafka.log_reader import LogReader, Progress, Span
from chat_streams.kafka.names import DEAD_LETTERS as TOPIC
from chat_streams.kafka.names import INCOMING_MESSAGES, MESSAGING
from chat_streams.kafka.producer import KafkaProducer, ProducerRecord, connected
from chat_streams.model.errors import KafkaUnavailable, RedriveRefused, UndecodableRecord, UnknownVersion
from chat_streams.model.records import DEAD_LETTERS, DeadLetter, Redriven
from chat_streams.model.times import utc
from chat_streams.operations import dead_letters
from chat_streams.operations.dead_letters import CODECS, Catalogue, Filter, Summary
from chat_streams.runtime.settings import Settings

HEX_BYTES: Final = 64
"""The number of bytes shown of a record whose bodies are masked."""


class Listing(NamedTuple):
    """The newest dead letters that match a filter, the newest last, and how many match."""

    found: list[Summary]
    redriven: dict[int, Redriven]
    matching: int

    def as_json(self) -> list[dict[str, Any]]:
        """Return an object for each dead letter; times in RFC 3339, sizes in bytes."""
        return [_summary_json(summary, self.redriven.get(summary.number)) for summary in self.found]


async def listing(settings: Settings, wanted: Filter, limit: int, progress: Progress | None = None) -> Listing:
    """Return the newest ``limit`` dead letters that match; raises ``KafkaUnavailable``."""
    found: deque[Summary] = deque(maxlen=limit)
    redriven: dict[int, Redriven] = {}
    matching = 0
    async with LogReader(settings) as reader:
        # A dead letter is written after its record failed, and its ``Redriven`` after that.
        spans = await reader.spans(TOPIC, since_ms=wanted.since)
        async for number, item in dead_letters.read(reader, spans, progress):
            if isinstance(item, Redriven):
                redriven[item.number] = item
            elif wanted.matches(item):
                found.append(Summary.of(number, item))
                matching += 1
    return Listing(list(found), redriven, matching)


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


async def details(settings: Settings, number: int, bodies: bool, progress: Progress | None = None) -> dict[str, Any]:
    """Return all that is known of a dead letter as JSON values.

    Without ``bodies``, the bodies of messages are masked and only the first 64 bytes of the record are shown. Raises
    ``RedriveRefused`` if no dead letter has that number, and ``KafkaUnavailable``.
    """
    letter: DeadLetter | None = None
    mark: Redriven | None = None
    async with LogReader(settings) as reader:
        (span,) = await reader.spans(TOPIC)
        if span.first <= number < span.end:
            async for offset, item in dead_letters.read(reader, [span._replace(first=number)], progress):
                if offset == number and isinstance(item, DeadLetter):
                    letter = item
                elif letter is None:
                    break
                elif isinstance(item, Redriven) and item.number == number:
                    mark = item
    if letter is None:
        raise unknown([str(number)])
    try:
        record, undecodable = dead_letters.readable(dead_letters.decode(letter), bodies), None
    except (UndecodableRecord, UnknownVersion) as error:
        record, undecodable = None, str(error)
    value = letter.value or b""
    shown = value if bodies else value[:HEX_BYTES]
    return _summary_json(Summary.of(number, letter), mark) | {
        "key": None if letter.key is None else letter.key.decode(errors="backslashreplace"),
        "traceback": letter.traceback,
        "record": record,
        "undecodable": undecodable,
        "hex": shown.hex(),
    }


def unknown(numbers: Sequence[str]) -> RedriveRefused:
    """Return the error that says that no dead letter has these numbers."""
    return RedriveRefused(
        f"no dead letter has the number {', '.join(numbers)}; 'dead-letters list' shows which there are"
    )


async def redrive(
    settings: Settings,
    numbers: Sequence[int],
    wanted: Filter,
    *,
    dry_run: bool,
    again: bool,
    say: Callable[[str], None],
    warn: Callable[[str], None],
    confirm: Callable[[int], None] = lambda count: None,
    progress: Progress | None = None,
) -> None:
    """Write dead letters back to the topic and partition they came from.

    Args:
        settings: The settings, for Kafka's address and the retry window.
        numbers: The dead letters to redrive, ascending; if empty, all open ones that match ``wanted``.
        wanted: The filter that applies where ``numbers`` is empty.
        dry_run: Write nothing, only report what would be written.
        again: Redrive also dead letters that were redriven before.
        say: Called with a line for each dead letter that is redriven.
        warn: Called with a line for each dead letter that is refused.
        confirm: Called with their number before the first one is written; an exception from it ends the redrive.
        progress: Called with the offsets read and to be read.

    Raises:
        RedriveRefused: A number is unknown or redriven already, or some dead letters were refused.
        KafkaUnavailable: Kafka does not answer; the text says which dead letters were redriven before.
    """
    async with LogReader(settings) as reader:
        (span,) = await reader.spans(TOPIC)
        catalogue = Catalogue()
        async for number, item in dead_letters.read(reader, [span], progress):
            catalogue.add(number, item, wanted)
        if strange := [str(n) for n in numbers if n not in catalogue.numbers]:
            raise unknown(strange)
        chosen = list(numbers) or catalogue.chosen
        done = [n for n in chosen if n in catalogue.redriven]
        if done and not again:
            if numbers:
                raise RedriveRefused(
                    f"redriven already: {', '.join(map(str, done))}; once more only with --again: what has been applied"
                    " meanwhile may be delivered a second time"
                )
            chosen = [n for n in chosen if n not in catalogue.redriven]
        if not chosen:
            say("nothing to redrive")
            return
        confirm(len(chosen))
        partitions = {topic: len(await reader.spans(topic)) for topic in CODECS}
        async with contextlib.AsyncExitStack() as stack:
            producer = None if dry_run else await stack.enter_async_context(connected(settings))
            redriver = _Redriver(settings, catalogue, partitions, await reader.now_ms(), producer, say, warn)
            # The generator must be closed before its reader, also when an error ends the loop.
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
    """A writer of dead letters back to their topics; without a producer, it only reports what it would write."""

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        partitions: dict[str, int],
        now: int,
        producer: KafkaProducer | None,
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._say = say
        self._warn = warn
        self._settings = settings
        self._catalogue = catalogue
        self._partitions = partitions
        self._now = now
        self._producer = producer
        self._covered: set[int] = set()
        self._counts = {"redriven": 0, "refused": 0, "late": 0}

    async def redrive(self, number: int, letter: DeadLetter) -> None:
        """Write one back, then note so in ``dead_letters``: a crash in between redrives it twice, never loses it."""
        if number in self._covered:
            return
        name = f"dead letter {number} ({letter.app}, {dead_letters.origin_of(letter)})"
        if (refusal := self._refusal(letter)) is not None:
            self._counts["refused"] += 1
            self._warn(f"{name}: not redriven, {refusal}")
            return
        write = self._catalogue.write(number, letter)
        self._covered.update(write.covers)
        age = self._now - (letter.logged_at or letter.first_at)
        late = letter.app == MESSAGING and age > self._settings.retry_window * 1000
        self._counts["redriven"] += 1
        self._counts["late"] += late and letter.topic == INCOMING_MESSAGES
        also = "".join(f", and with it number {n}" for n in write.covers if n != number)
        goal = f"{letter.topic}/{letter.partition}, {len(letter.value or b'')} bytes, {_text(write.headers)}{also}"
        if self._producer is None:
            self._say(f"{name}: would go to {goal}")
            return
        try:
            record = ProducerRecord(letter.key, letter.value, write.headers)
            offset, at = await self._producer.write(letter.topic, letter.partition, [record])
            for covered in write.covers:
                mark = Redriven(covered, at, offset)
                # It has one partition (``topics.DEAD_LETTER_PARTITIONS``).
                await self._producer.write(TOPIC, 0, [ProducerRecord(letter.key, DEAD_LETTERS.encode(mark))])
                self._catalogue.redriven[covered] = mark
        except KAFKA_AWAY as error:
            raise KafkaUnavailable(
                f"{name}: {error!r}; redriven before it: {self._counts['redriven'] - 1}, those after it were not"
            ) from error
        self._say(f"{name}: went to {goal}, now at offset {offset}")

    def _refusal(self, letter: DeadLetter) -> str | None:
        there = self._partitions.get(letter.topic)
        if letter.topic in dead_letters.FORMER:
            return f"{letter.topic} has ended: the topics were repartitioned since, and its users are elsewhere now"
        if there is None:
            return f"{letter.topic} is no topic that is read by a service"
        if letter.partition >= there:
            return f"{letter.topic} has {there} partitions only"
        if (user := dead_letters.wrong_partition(letter, there)) is not None:
            return f"{user} is not on partition {letter.partition} any more: the topics were repartitioned"
        return None

    def report(self) -> None:
        """Report how many may be delivered twice; raises ``RedriveRefused`` if some were not redriven."""
        if self._counts["late"]:
            self._say(
                f"{self._counts['late']} failed in messaging before the retry window, {self._settings.retry_window} s:"
                " where a part of such a record was applied, its recipients get that twice"
            )
        if self._counts["refused"]:
            raise RedriveRefused(f"{self._counts['refused']} were not redriven")


def _text(headers: Sequence[tuple[str, bytes]]) -> str:
    return " ".join(f"{name}={value.decode()}" for name, value in headers)
