"""A Faust app whose agents apply the records of a partition in contiguous order and commit only what is done.

A record that fails again and again becomes a dead letter.

Faust by itself skips records when a rebalance finds a backlog: recovery lets the fetcher run before it seeks, what
is fetched in between is dropped, and the hole counts as acknowledged (faust-streaming issues 216, 221, 318). It also
acknowledges what an agent failed to process. Here neither its read offsets nor its acknowledgements are used: which
record comes next, and what may be committed, is kept in ``offsets.py``.
"""

from __future__ import annotations

import asyncio
import inspect
import time
import traceback
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

import faust
import msgspec
import structlog
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode.services import WaitResults
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from chat_streams.compat import eager
from chat_streams.model.errors import Rewound, UndecodableRecord, UnknownVersion
from chat_streams.model.records import DEAD_LETTERS, Codec, DeadLetter, Record
from chat_streams.model.redrive import Redrive, offset_for
from chat_streams.model.times import now_ms
from chat_streams.processing.offsets import Admission, Checkpoint, Progress, Start
from chat_streams.runtime.metrics import BUCKETS, REGISTRY
from chat_streams.runtime.retry import retry_forever
from chat_streams.runtime.statistics import Statistics

log = structlog.get_logger()

T = TypeVar("T")

BATCH_RECORDS: Final = 200
BATCH_BYTES: Final = 2 * 1024 * 1024
EFFECTS_UNDER_WAY: Final = 8
ATTEMPTS: Final = 3
WATCH_SECONDS: Final = 5.0
STALLED_SECONDS: Final = 10.0
SEEK_SECONDS: Final = 30.0
HEARTBEAT_SECONDS: Final = 2.0
SOON_SECONDS: Final = 0.02
BUSY_FETCH_MS: Final = 50
MAX_TRACEBACK: Final = 8_000
LOST: Final = "records are gone from the log before they were applied"
KAFKA_AWAY: Final = (KafkaError, faust.exceptions.FaustError, OSError, TimeoutError)

WORKER: Final = CollectorRegistry()
"""The metrics of apps that have agents: the inspector has none, and shows none of these."""
AGENT_RECORDS: Final = Counter("connect_chat_agent_records_total", "Records applied.", ["topic"], registry=WORKER)
AGENT_ERRORS: Final = Counter(
    "connect_chat_agent_errors_total", "Times that applying a record failed.", ["topic"], registry=WORKER
)
AGENT_BATCH_SECONDS: Final = Histogram(
    "connect_chat_agent_batch_seconds",
    "Applying a batch of records, with all its effects.",
    ["topic"],
    buckets=BUCKETS,
    registry=WORKER,
)
DEAD_LETTERS_WRITTEN: Final = Counter(
    "connect_chat_dead_letters_total", "Records that could not be applied.", ["topic"], registry=WORKER
)
PARTITIONS: Final = Gauge("connect_chat_worker_partitions", "Partitions this worker has.", ["topic"], registry=WORKER)
REBALANCES: Final = Counter("connect_chat_worker_rebalances_total", "Rebalances of its group.", registry=WORKER)
REBALANCING: Final = Gauge("connect_chat_worker_rebalancing", "1 during a rebalance.", registry=WORKER)
RECOVERING: Final = Gauge(
    "connect_chat_worker_recovering", "1 while its table is read from the changelog.", registry=WORKER
)
COMMIT_SECONDS: Final = Histogram(
    "connect_chat_worker_commit_seconds", "Committing offsets.", buckets=BUCKETS, registry=WORKER
)

Apply = Callable[[list[Record[T]]], Awaitable[Awaitable[Any] | None]]
"""Carries out the effects of records; what it returns, if anything, is awaited before they count as done."""


class _NoReadOffsets(dict[TP, Any]):
    """Faust's own idea of what comes next, without effect: a seek back would be overruled by it."""

    def __getitem__(self, key: TP) -> None:
        return None

    def __setitem__(self, key: TP, value: Any) -> None:
        pass

    def update(self, *_: Any, **__: Any) -> None:
        pass


class _Thread(driver.AIOKafkaConsumerThread):
    async def on_start(self) -> None:
        """Connect, with fetches that are answered soon while records wait for their agent.

        aiokafka has one fetch under way to a broker. One that it sends while records wait is about the other
        partitions; where those have no news, the answer takes all of the longest wait, and nothing more comes of the
        first for so long. Faust's 1.5 s made 50,000 messages for 10,000 users take 3 s, of which nobody did anything
        in one.
        """
        await super().on_start()
        fetcher = self._ensure_consumer()._fetcher
        next_requests, longest_wait = fetcher._get_actions_per_node, fetcher._fetch_max_wait_ms

        def next_requests_of(assignment: Any) -> Any:
            # A changelog's records stay here once its table has recovered: nobody waits for those.
            is_behind = any(self.consumer.gives_out(tp) for tp in fetcher._records)
            fetcher._fetch_max_wait_ms = BUSY_FETCH_MS if is_behind else longest_wait
            return next_requests(assignment)

        fetcher._get_actions_per_node = next_requests_of

    async def checkpoints(self, tps: Iterable[TP]) -> dict[TP, OffsetAndMetadata]:
        """The committed offset and metadata of each partition that has one."""
        wanted = [TopicPartition(tp.topic, tp.partition) for tp in tps]
        # AIOKafkaConsumer.committed() does this and then drops the metadata.
        found: dict[TP, OffsetAndMetadata] = await self.call_thread(self._fetch_committed, wanted)
        return found

    async def _fetch_committed(self, wanted: list[TopicPartition]) -> dict[TP, OffsetAndMetadata]:
        found = await self._ensure_consumer()._coordinator.fetch_committed_offsets(wanted)
        return {TP(tp.topic, tp.partition): value for tp, value in found.items() if value.offset >= 0}

    async def is_member(self) -> bool:
        """Ask Kafka whether the group counts on this worker, and goes on doing so."""
        found: bool = await self.call_thread(self._heartbeat)
        return found

    async def _heartbeat(self) -> bool:
        coordinator = self._ensure_consumer()._coordinator
        if coordinator.coordinator_id is None or not coordinator.member_id:
            return False
        try:
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                # In a rebalance it is answered, too.
                return await coordinator._do_heartbeat() and not coordinator._rejoin_needed_fut.done()
        except (KafkaError, TimeoutError):
            return False

    @property
    def is_fetching(self) -> bool:
        """Whether aiokafka's fetcher lives: an error it does not know ends it, and its consumer gets nothing more."""
        return not self._ensure_consumer()._fetcher._fetch_task.done()

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        progress = self.consumer.progress
        values, tokens = {}, {}
        for tp, offset in offsets.items():
            checkpoint = progress.checkpoint(tp)
            # Read in this order: a token is adopted after the rewind it calls for, and with it nothing may be committed
            # beyond what is applied again by then.
            applied = progress.committable(tp)
            if tp in self.assignment() and applied is not None and offset <= applied:
                metadata = msgspec.json.encode(checkpoint).decode()
                values[TopicPartition(tp.topic, tp.partition)] = OffsetAndMetadata(offset, metadata)
                tokens[tp] = checkpoint.token
        if not values:
            return False
        try:
            await self._ensure_consumer().commit(values)
        except (CommitFailedError, IllegalStateError) as error:
            log.info("not committed, the partitions moved on", error=repr(error))
            return False
        except KafkaError as error:
            log.warning("not committed, will be tried again", error=repr(error))
            return False
        self.consumer.committed_tokens.update(tokens)
        return True


class Consumer(driver.Consumer):
    """Faust's consumer, with offsets that ``progress`` rules."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.progress: Progress[TP] = self.app.progress
        self._read_offset = _NoReadOffsets()
        self._rebalances = 0
        self.committed_tokens: dict[TP, str] = {}

    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    @property
    def is_fetching(self) -> bool:
        """Whether records can still come."""
        return bool(self._thread.is_fetching)

    async def wait_first(self, *coros: Any, timeout: Any = None) -> WaitResults:
        """Give a record to its agent at once, where Faust calls this for it and nothing is to be waited for.

        Faust starts four tasks for each record. While the loop goes round for them the agent begins, with the first
        record of a fetch alone, and makes two or three batches of what can be one.
        """
        if not (len(coros) == 2 and all(map(inspect.iscoroutine, coros))):
            return await super().wait_first(*coros, timeout=timeout)
        give_out, suspended = coros
        rest = None
        try:
            rest = eager.begin(give_out)
        finally:
            if rest is None:
                suspended.close()
        if rest is None:
            return WaitResults([give_out], [None], stopped=False)
        return await super().wait_first(rest, suspended, timeout=timeout)

    def gives_out(self, tp: TP) -> bool:
        """Whether records of a partition go to agents, now or once those have room; asked in the consumer's thread."""
        return tp in (self._active_partitions or ()) or tp in self._buffered_partitions

    async def _wait_next_records(self, timeout: float) -> Any:
        """Look soon again for the records of a partition that is not fetched because its agent's queue was nearly full.

        Faust looks again once another partition has some, or after a second.
        """
        if not (self.flow_active and self._buffered_partitions):
            return await super()._wait_next_records(timeout)
        if not self._get_active_partitions():
            await asyncio.sleep(SOON_SECONDS)
            return {}, set()
        return await super()._wait_next_records(SOON_SECONDS)

    async def is_member(self) -> bool:
        """Whether our partitions are ours: without Kafka, another worker may have them and nobody told us."""
        return bool(await self._thread.is_member())

    async def perform_seek(self) -> None:
        """Seek to what is committed, with nothing fetched meanwhile; the caller lets the flow go on."""
        self.stop_flow()
        await super().perform_seek()

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Begin each partition where its committed offset says, or at the beginning of the log.

        Raises ``IllegalStateError`` when a rebalance came in between, which Faust takes for just that.
        """
        rebalances = self._rebalances
        tps = [tp for tp in self.assignment() if not self._is_changelog_tp(tp)]
        if not tps:
            return {}
        committed = await self._thread.checkpoints(tps)
        earliest = await self.earliest_offsets(*tps)
        if rebalances != self._rebalances:
            # A partition that went away meanwhile would be begun again where it was then, and if it ever came back,
            # that would be committed before anybody looked at what is committed by now.
            raise IllegalStateError("another rebalance has begun")
        starts = {}
        for tp in tps:
            offset, checkpoint = earliest[tp], Checkpoint()
            if tp in committed:
                offset = max(offset, committed[tp].offset)
                checkpoint = _checkpoint(committed[tp].metadata)
                if offset > committed[tp].offset:
                    _log_at(tp, committed[tp].offset).error(LOST, to_offset=offset)
            starts[tp] = offset
            self.progress.start(tp, Start(offset, checkpoint), time.monotonic())
        await self.seek_wait(starts)
        log.info("partitions assigned", offsets=" ".join(f"{tp.topic}/{tp.partition}:{o}" for tp, o in starts.items()))
        return starts

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Forget all partitions: those which stay ours are begun again, too."""
        log.info("partitions revoked", count=len(revoked))
        self._rebalances += 1
        await super().on_partitions_revoked(revoked)
        self.progress.clear()

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Begin with nothing: what is ours now is begun by ``seek_to_committed``."""
        self._rebalances += 1
        self.progress.clear()
        await super().on_partitions_assigned(assigned, generation_id)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """A hole is never legitimate: our topics are neither compacted nor transactional."""

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's own watch, which takes a quiet partition for one that hangs; ``OrderedApp.watch`` knows better."""

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        return (
            tp
            for tp in self.assignment()
            if tp in self.progress and (topics is None or tp in topics or tp.topic in topics)
        )

    def _should_commit(self, tp: TP, offset: int) -> bool:
        # Without the newest token, the next owner of a partition would have to apply the loss window again.
        token = self.progress.token(tp)
        if token and token != self.committed_tokens.get(tp, self.progress.committed(tp).token):
            return True
        return bool(super()._should_commit(tp, offset))

    def _new_offset(self, tp: TP) -> int | None:
        self._acked.pop(tp, None)
        self._acked_index.pop(tp, None)
        return self.progress.committable(tp)


def _log_at(tp: TP, offset: int) -> Any:
    """The logger with the place in Kafka that a line is about."""
    return log.bind(topic=tp.topic, partition=tp.partition, offset=offset)


def _checkpoint(metadata: str) -> Checkpoint:
    try:
        return msgspec.json.decode(metadata, type=Checkpoint)
    except msgspec.DecodeError:
        return Checkpoint()


class Producer(driver.Producer):
    """Faust's producer, idempotent: what aiokafka tries again is neither doubled nor swapped."""

    def _settings_extra(self) -> Mapping[str, Any]:
        return {"acks": "all", "enable_idempotence": True}


class Transport(driver.Transport):
    """Connects an app to Kafka through the consumer and producer above."""

    Consumer = Consumer
    Producer = Producer


class _Commits(faust.Sensor):
    """Counts how long commits take; what agents do, ``process`` counts.

    Faust's own sensors hear of the first record of a batch only: the others are taken from the stream's queue.
    """

    def on_commit_initiated(self, consumer: Any) -> float:
        return time.monotonic()

    def on_commit_completed(self, consumer: Any, state: float) -> None:
        COMMIT_SECONDS.observe(time.monotonic() - state)


class OrderedApp(faust.App):
    """A Faust app with contiguous partitions; its agents hand their stream to ``process``."""

    def __init__(self, *args: Any, loss_window: float, dead_letters: str, **kwargs: Any) -> None:
        self.progress: Progress[TP] = Progress(loss_window)
        self._dead_letters = dead_letters
        self.statistics = Statistics(args[0], REGISTRY, WORKER)
        # Since when the agent of each topic has nothing to do; None while it works.
        self._idle_since: dict[str, float | None] = {}
        self._turns: defaultdict[tuple[str, int | None], asyncio.Lock] = defaultdict(asyncio.Lock)
        super().__init__(*args, **kwargs)
        self.sensors.add(_Commits())
        REBALANCING.set_function(lambda: self.rebalancing)
        RECOVERING.set_function(lambda: self.in_recovery)

    def _new_transport(self) -> Transport:
        return Transport(self.conf.broker_consumer, self)

    def _new_producer_transport(self) -> Transport:
        return Transport(self.conf.broker_producer, self)

    def on_rebalance_start(self) -> None:
        """Count it."""
        REBALANCES.inc()
        super().on_rebalance_start()

    def partitions(self) -> dict[str, list[int]]:
        """The partitions whose records this worker applies, by topic."""
        found: dict[str, list[int]] = {}
        for tp in sorted(self.consumer.assignment()):
            if tp in self.progress:
                found.setdefault(tp.topic, []).append(tp.partition)
        return found

    async def process(self, stream: Any, codec: Codec[T], apply: Apply[T], most_records: int = BATCH_RECORDS) -> None:
        """Apply all records of a stream, in the order of each partition, as many at once as are waiting.

        A record that doesn't decode, or fails by itself three times, becomes a dead letter and the next one goes on.
        ``apply`` waits for an engine that is away; any exception from it but ``Rewound`` counts against the record.
        Up to 8 batches may have their last effects under way.
        """
        under_way: deque[asyncio.Task[None]] = deque()
        async for events in self._waiting(stream, most_records):
            admitted: list[faust.EventT[Any]] = []
            epochs: dict[TP, int | None] = {}
            for event in events:
                if await self._admit(event):
                    admitted.append(event)
                    # Read now: a rebalance during one of the next awaits begins another run.
                    epochs[event.message.tp] = self.progress.epoch(event.message.tp)
            if not admitted:
                continue
            began = time.monotonic()
            effects = await self._apply(admitted, codec, apply, epochs)
            before = under_way[-1] if under_way else None
            under_way.append(asyncio.create_task(self._settle(before, effects, admitted, epochs, began)))
            while under_way and (under_way[0].done() or len(under_way) > EFFECTS_UNDER_WAY):
                await under_way.popleft()

    async def rewind(self, offsets: Mapping[TP, int]) -> None:
        """Apply partitions again from an offset, or what the log still has; ``apply`` raises ``Rewound`` after it."""
        earliest = await self.consumer.earliest_offsets(*offsets)
        # What is gone by now must not be begun again.
        starts = {tp: max(offset, earliest[tp]) for tp, offset in offsets.items() if tp in self.progress}
        for tp, offset in starts.items():
            _log_at(tp, offset).warning("applying records again")
            self.progress.start(tp, Start(offset, Checkpoint()), time.monotonic())
        await self._seek(starts)

    async def produce(
        self,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: Callable[[], bytes],
        headers: list[tuple[str, bytes]] | None = None,
    ) -> None:
        """Write a record and wait until Kafka has it, for as long as it is away.

        To a partition, records leave in the order of the calls; one that Kafka failed goes behind the others. Its
        ``value`` is asked for when it is its turn, anew for each try, and must not raise: what waits for a slow Kafka
        has no bytes of its own yet.
        """
        doing = f"write to {topic}"

        async def once() -> None:
            # aiokafka lets whoever finds room pass those who wait for it, in vain where Kafka is away for long.
            async with self._turns[topic, partition]:
                written = await retry_forever(
                    doing, KAFKA_AWAY, lambda: self.producer.send(topic, key, value(), partition, None, headers)
                )
            await written

        await retry_forever(doing, KAFKA_AWAY, once)

    async def watch(self) -> None:
        """Seek where a partition stands still though the log goes on; for as long as the app runs.

        A worker whose consumer has ended crashes: its supervisor starts another one.
        """
        while not self.should_stop:
            await self.sleep(WATCH_SECONDS)
            if not self.should_stop and not self.consumer.is_fetching:
                ended = RuntimeError("the consumer has ended by an error")
                log.critical("stopping", error=repr(ended))
                await self.crash(ended)
                return
            if self.rebalancing or not self.flow_control.is_active():
                continue
            now = time.monotonic()
            for tp in [tp for tp in self.consumer.assignment() if tp in self.progress]:
                idle_since = self._idle_since.get(tp.topic)
                if idle_since is None or now - idle_since < STALLED_SECONDS:
                    continue
                end = self.consumer.highwater(tp)
                if end is not None and self.progress.stalled(tp, end, now, STALLED_SECONDS):
                    await self._fill_hole(tp, "no progress")

    async def _waiting(self, stream: Any, most: int) -> AsyncIterator[list[faust.EventT[Any]]]:
        queue = stream.channel.queue
        topic = stream.channel.topics[0]
        PARTITIONS.labels(topic).set_function(lambda: len(self.partitions().get(topic, ())))
        for metric in (AGENT_RECORDS, AGENT_ERRORS, AGENT_BATCH_SECONDS, DEAD_LETTERS_WRITTEN):
            metric.labels(topic)
        self._idle_since[topic] = time.monotonic()
        async for event in stream.events():
            self._idle_since[topic] = None
            events = [event]
            size = len(event.message.value or b"")
            while len(events) < most and size < BATCH_BYTES and not queue.empty():
                extra = queue.get_nowait()
                events.append(extra)
                size += len(extra.message.value or b"")
            yield events
            self._idle_since[topic] = time.monotonic()

    async def _admit(self, event: faust.EventT[Any]) -> bool:
        tp = event.message.tp
        verdict = self.progress.admit(tp, event.message.offset, time.monotonic())
        if verdict is Admission.HOLE:
            await self._fill_hole(tp, f"offset {event.message.offset} arrived")
        return verdict is Admission.APPLY

    async def _fill_hole(self, tp: TP, why: str) -> None:
        offset = self.progress.reseek(tp, time.monotonic())
        if offset is None:
            return
        earliest = (await self.consumer.earliest_offsets(tp))[tp]
        if earliest > offset:
            _log_at(tp, offset).error(LOST, to_offset=earliest)
            self.progress.skip_to(tp, earliest)
            offset = earliest
        _log_at(tp, offset).warning("a hole in a partition, going back", why=why)
        await self._seek({tp: offset})

    async def _seek(self, offsets: Mapping[TP, int]) -> None:
        try:
            async with asyncio.timeout(SEEK_SECONDS):
                await self.consumer.seek_wait(offsets)
        except (KafkaError, TimeoutError) as error:
            # A partition moved, or Kafka is away: the next record out of order, or the watchdog, tries again.
            log.warning("seek failed", offsets=str(offsets), error=repr(error))

    async def _apply(
        self, events: list[faust.EventT[Any]], codec: Codec[T], apply: Apply[T], epochs: Mapping[TP, int | None]
    ) -> list[Awaitable[Any]]:
        records: list[tuple[Record[T], Any]] = []
        for event in events:
            message = event.message
            offset = offset_for(self.conf.id, message.offset, message.headers)
            if offset is None:
                continue
            try:
                value = codec.decode(message.value)
                records.append((Record(message.partition, offset, value, message.headers or ()), message))
            except UndecodableRecord as error:
                await self._write_dead_letter(message, error)
            except UnknownVersion as error:
                _log_at(message.tp, message.offset).critical("stopping", error=repr(error))
                await self.crash(error)
                raise
        return await self._apply_some(records, apply, epochs)

    async def _apply_some(
        self, records: list[tuple[Record[T], Any]], apply: Apply[T], epochs: Mapping[TP, int | None]
    ) -> list[Awaitable[Any]]:
        attempt = 0
        while records := [r for r in records if self.progress.epoch(r[1].tp) == epochs[r[1].tp]]:
            try:
                effect = await apply([record for record, _ in records])
            except Rewound:
                # Those partitions have begun another run.
                continue
            except Exception as error:  # noqa: BLE001 - nothing escapes an agent's loop: Faust would skip the record
                attempt += 1
                if len(records) > 1:
                    halves = records[: len(records) // 2], records[len(records) // 2 :]
                    return [e for half in halves for e in await self._apply_some(half, apply, epochs)]
                ((_, message),) = records
                if attempt == ATTEMPTS:
                    await self._write_dead_letter(message, error)
                    return []
                self._count_failure(message.topic, error)
                _log_at(message.tp, message.offset).warning(
                    "applying a record failed, trying again", attempt=attempt, error=repr(error)
                )
                await asyncio.sleep(0.1 * attempt)
            else:
                return [] if effect is None else [effect]
        return []

    async def _settle(
        self,
        before: asyncio.Task[None] | None,
        effects: list[Awaitable[Any]],
        events: list[faust.EventT[Any]],
        epochs: Mapping[TP, int | None],
        began: float,
    ) -> None:
        if effects:
            await asyncio.gather(*effects)
        if before is not None:
            await before
        now = time.monotonic()
        topic = events[0].message.topic
        AGENT_RECORDS.labels(topic).inc(len(events))
        AGENT_BATCH_SECONDS.labels(topic).observe(now - began)
        last = {event.message.tp: event.message.offset for event in events}
        for tp, offset in last.items():
            epoch = epochs[tp]
            if epoch is not None:
                self.progress.done(tp, epoch, offset, now)

    def _count_failure(self, topic: str, error: Exception) -> None:
        AGENT_ERRORS.labels(topic).inc()
        self.statistics.failed(topic, error)

    async def _write_dead_letter(self, message: Any, error: Exception) -> None:
        _log_at(message.tp, message.offset).error("dead letter", error=repr(error))
        self._count_failure(message.topic, error)
        DEAD_LETTERS_WRITTEN.labels(message.topic).inc()
        now = now_ms()
        redrive = Redrive.of(message.headers) or Redrive(frozenset())
        letter = DeadLetter(
            app=self.conf.id,
            topic=message.topic,
            partition=message.partition,
            offset=message.offset if redrive.offset is None else redrive.offset,
            key=message.key,
            value=message.value,
            reason=f"{type(error).__name__}: {error}"[:1000],
            traceback="".join(traceback.format_exception(error))[-MAX_TRACEBACK:],
            first_at=now if redrive.first_at is None else redrive.first_at,
            last_at=now,
        )
        await self.produce(self._dead_letters, None, message.key, lambda: DEAD_LETTERS.encode(letter))
