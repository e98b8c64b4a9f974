"""The loop of an agent: applies the records of each partition in contiguous order, and marks as done what is done.

Nothing of Faust or Kafka is here, so that unit tests can drive it through every exception, rebalance and cancellation.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import structlog

from chat_streams.model.errors import Rewound, UndecodableRecord
from chat_streams.model.records import Codec, Record
from chat_streams.model.redrive import address_for
from chat_streams.processing.offsets import Admission, Progress
from chat_streams.runtime.retry import ENGINE_RETRIES
from chat_streams.runtime.tasks import raise_if_cancelled, spawn

log = structlog.get_logger()

T = TypeVar("T")

EFFECTS_UNDER_WAY: Final = 8
ATTEMPTS: Final = 3
RETRY_SECONDS: Final = 0.1
LONGEST_WAIT_SECONDS: Final = 2.0

Tp = tuple[str, int]
Apply = Callable[[list[Record[T]]], Awaitable[Awaitable[Any] | None]]
"""Carries out the effects of records; what it returns, if anything, is awaited before they count as done."""


class Message(Protocol):
    """A record as it came from Kafka."""

    tp: Any
    offset: int
    timestamp: float
    """Seconds since the epoch at which it was appended."""
    key: bytes | None
    value: bytes | None
    headers: Any


class Worker(Protocol):
    """The app, as a processor sees it."""

    def fill_hole(self, tp: Any, why: str) -> None:
        """Have the records of a partition come again from the one that is expected."""

    def go_on(self, tp: Any) -> None:
        """Begin another run through a partition at the first record that is not done."""

    async def bury(self, message: Any, error: BaseException) -> None:
        """Write a record to the dead letters, and wait until Kafka has it."""

    def note_failure(self, message: Any, attempt: int, error: BaseException) -> None:
        """Note that a record could not be applied, and will be tried again."""

    def note_done(self, topic: str, count: int, seconds: float) -> None:
        """Note that a batch is done."""

    def end(self, error: BaseException) -> None:
        """End the process by an error that no record explains."""


class _Admitted(NamedTuple, Generic[T]):
    """A record to apply, the message it came in, and the run through its partition in which it was admitted."""

    record: Record[T]
    message: Message
    epoch: int


class Processor(Generic[T]):
    """Applies the records of one topic.

    A record that does not decode, or fails by itself three times, becomes a dead letter and the next one goes on. What
    ``is_away`` says of an exception is that an engine is away: then the records are applied again until it is back. Any
    other but ``Rewound`` counts against the records.

    Up to 8 batches may have their last effects under way. Where such an effect fails, the partitions begin again at the
    first record that is not done, and up to the last one of that batch effects are awaited as a part of applying.
    """

    def __init__(
        self,
        app_id: str,
        codec: Codec[T],
        apply: Apply[T],
        progress: Progress[Any],
        worker: Worker,
        is_away: Callable[[BaseException], bool],
    ) -> None:
        self._app_id = app_id
        self._codec = codec
        self._apply_all = apply
        self._progress = progress
        self._worker = worker
        self._is_away = is_away
        self._seen: set[Tp] = set()
        self._careful_until: dict[Tp, int] = {}
        self._under_way: deque[asyncio.Task[None]] = deque()

    async def run(self, batches: AsyncIterator[list[Any]]) -> None:
        """Apply batches as they come; raises ``UnknownVersion``.

        However it ends, what it has not brought to an end comes again: the loop that may follow in this worker knows
        nothing of it, and would commit past it.
        """
        try:
            await self._run(batches)
        finally:
            for tp in self._seen:
                self._worker.go_on(tp)

    async def _run(self, batches: AsyncIterator[list[Any]]) -> None:
        async for messages in batches:
            began = time.monotonic()
            if admitted := [(message, epoch) for message in messages if (epoch := self._admit(message)) is not None]:
                effects = await self._attempt(await self._decode(admitted))
                before = self._under_way[-1] if self._under_way else None
                if not effects and before is None:
                    self._note_done(admitted, began)
                    continue
                settling = self._settle(before, effects, admitted, began)
                self._under_way.append(spawn("wait for effects", settling, self._worker.end))
            while self._under_way and (self._under_way[0].done() or len(self._under_way) > EFFECTS_UNDER_WAY):
                # Not awaited itself: a cancellation of this loop must not become one of the batch.
                await asyncio.wait([self._under_way.popleft()])

    def _admit(self, message: Message) -> int | None:
        """Return the run through its partition in which a record is to be applied, if it is the one that comes next."""
        verdict = self._progress.admit(message.tp, message.offset, time.monotonic())
        self._seen.add(message.tp)
        if verdict is Admission.HOLE:
            self._worker.fill_hole(message.tp, f"offset {message.offset} arrived")
        return self._progress.epoch(message.tp) if verdict is Admission.APPLY else None

    async def _decode(self, admitted: list[tuple[Message, int]]) -> list[_Admitted[T]]:
        records = []
        for message, epoch in admitted:
            at = round(1000 * message.timestamp)
            address = address_for(self._app_id, message.offset, at, message.headers)
            if address is None:
                continue
            try:
                value = self._codec.decode(message.value)
            except UndecodableRecord as error:
                await self._worker.bury(message, error)
            else:
                headers = message.headers or ()
                records.append(_Admitted(Record(message.tp[1], *address, value, headers), message, epoch))
        return records

    async def _attempt(self, records: list[_Admitted[T]]) -> list[Awaitable[Any]]:
        """Apply records, as far as their partitions are still in the run they were admitted in; returns the effects."""
        attempt = waits = 0
        while records := [r for r in records if self._progress.epoch(r.message.tp) == r.epoch]:
            try:
                effect = await self._apply_all([r.record for r in records])
                if effect is None or not self._is_careful(records):
                    return [] if effect is None else [effect]
                await effect
            except Rewound:
                continue  # Some partitions have begun another run.
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever it is, it counts against the records
                raise_if_cancelled(error)
                if self._is_away(error):
                    waits += 1
                    await self._wait_for_engine(records[0].message, waits, error)
                    continue
                attempt += 1
                if len(records) > 1:
                    half = len(records) // 2
                    return [*await self._attempt(records[:half]), *await self._attempt(records[half:])]
                message = records[0].message
                if attempt == ATTEMPTS:
                    await self._worker.bury(message, error)
                    return []
                self._worker.note_failure(message, attempt, error)
                await asyncio.sleep(RETRY_SECONDS * attempt)
            else:
                return []
        return []

    async def _wait_for_engine(self, message: Message, waits: int, error: BaseException) -> None:
        delay = min(RETRY_SECONDS * 2 ** min(waits, 10), LONGEST_WAIT_SECONDS)
        doing = f"apply {message.tp[0]}"
        ENGINE_RETRIES.labels(doing).inc()
        log.warning("an engine is away, waiting", doing=doing, retry_in_s=delay, error=repr(error))
        await asyncio.sleep(delay)

    def _is_careful(self, records: list[_Admitted[T]]) -> bool:
        return any(r.message.offset <= self._careful_until.get(r.message.tp, -1) for r in records)

    async def _settle(
        self,
        before: asyncio.Task[None] | None,
        effects: list[Awaitable[Any]],
        admitted: list[tuple[Message, int]],
        began: float,
    ) -> None:
        """Wait for the effects of a batch and of those before it; then it is done, or goes on from where it is done."""
        failed: BaseException | None = None
        try:
            await asyncio.gather(*effects)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - likewise
            raise_if_cancelled(error)
            failed = error
        if before is not None:
            await asyncio.wait([before])
            if before.cancelled() or before.exception() is not None:
                return  # What is not known to be done before this one, nothing may be done after.
        if failed is None:
            self._note_done(admitted, began)
            return
        for message, epoch in admitted:
            if self._progress.epoch(message.tp) == epoch:
                log.warning(
                    "an effect failed, going on from where all is done", topic=message.tp[0], error=repr(failed)
                )
                self._worker.go_on(message.tp)
            self._careful_until[message.tp] = message.offset

    def _note_done(self, admitted: list[tuple[Message, int]], began: float) -> None:
        now = time.monotonic()
        # A partition's records were admitted one after the other: from the first to the last none is missing.
        ranges: dict[Any, tuple[int, int, int]] = {}
        for message, epoch in admitted:
            first = ranges[message.tp][1] if message.tp in ranges else message.offset
            ranges[message.tp] = epoch, first, message.offset
        for tp, (epoch, first, last) in ranges.items():
            if not self._progress.done(tp, epoch, first, last, now):
                log.error("what is done leaves a gap, going on from where all is done", topic=tp[0], partition=tp[1])
                self._worker.go_on(tp)
        self._worker.note_done(admitted[0][0].tp[0], len(admitted), now - began)
