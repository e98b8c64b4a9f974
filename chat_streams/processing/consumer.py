"""The consumer under Faust: records go from Kafka into the streams of the agents, in one task of the app's loop.

Faust's own consumer runs in a thread, gives each record out by four tasks, skips records when a rebalance finds a
backlog (faust-streaming issues 216, 221, 318), and acknowledges what an agent failed to process. Here neither its
conductor nor its acknowledgements are used (``docs/adr/0007-own-transport.md``): which record comes next, and what to
commit, is kept in ``offsets.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
import structlog
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import InvalidSessionTimeoutError
from aiokafka.structs import OffsetAndMetadata
from faust.types import TP, Message

from chat_streams.compat.faust import UnusedConsumer
from chat_streams.kafka import consumer as kafka
from chat_streams.kafka.client import KAFKA_AWAY
from chat_streams.model.errors import Rewound, SettingsError
from chat_streams.processing.away import AWAY
from chat_streams.processing.lasting import lasting
from chat_streams.processing.offsets import Checkpoint, LostRange, Progress, Start
from chat_streams.processing.page_requests import End
from chat_streams.processing.worker_metrics import COMMIT_SECONDS
from chat_streams.runtime.retry import retry_forever

log = structlog.get_logger()

HELD_RECORDS: Final = 500
HELD_BYTES: Final = 8 * 1024 * 1024
"""The records, and their bytes, that wait for the agent of a topic; no more are polled of it until it takes some."""
POLL_SECONDS: Final = 1.0
POLL_AGAIN_SECONDS: Final = 0.02
"""The longest poll while the agent of another topic has no room, which it may have soon."""
AGAIN_SECONDS: Final = 0.5
"""The time until a request is made again that Kafka did not answer."""
COMMIT_WITHIN: Final = 5.0
LAST_COMMIT_WITHIN: Final = 3.0
MEMBER_WITHIN: Final = 2.0
JOIN_LOOK_SECONDS: Final = 1.0
DONE_LOOK_SECONDS: Final = 0.05
"""Seconds between two looks whether all before a lost range is done."""
LOST: Final = "records are gone from the log before they were applied"
ANEW: Final = "the committed offset is of a topic that was deleted, the one made anew is applied from its beginning"


class Consumer(UnusedConsumer):
    """The consumer of an app: each partition begins at what is committed, and is committed as far as it is done."""

    def __init__(
        self,
        transport: Any,
        callback: Any,
        on_partitions_revoked: Callable[[set[TP]], Awaitable[None]],
        on_partitions_assigned: Callable[[set[TP], int], Awaitable[None]],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.transport = transport
        self.app = transport.app
        self.progress: Progress[TP] = self.app.progress
        self.randomly_assigned_topics: set[str] = set()
        self._tell_revoked = on_partitions_revoked
        self._tell_assigned = on_partitions_assigned
        self._flowing = asyncio.Event()
        self._has_room = asyncio.Event()
        self._held: dict[str, list[int]] = {}
        self._rebalances = 0
        self._has_joined = False
        self._is_to_begin = False
        self._read: dict[TP, tuple[int, int]] = {}
        self._committed: dict[TP, tuple[int, Checkpoint]] = {}
        self._commit_lock = asyncio.Lock()
        # The run through a partition in which it stands still, until the records that the log has lost are told of.
        self._losing: dict[TP, int] = {}
        self._client = self._new_client()

    # What Faust calls: the life of the service, and the group

    def _new_client(self) -> kafka.Consumer:
        conf = self.app.conf
        return kafka.Consumer(
            self.app.client_options,
            group_id=conf.id,
            client_id=conf.broker_client_id,
            # Of every app, as Faust has it: members with different assignors can't share a group, also in an upgrade.
            partition_assignment_strategy=[self.app.assignor],
            auto_offset_reset="earliest",
            session_timeout_ms=int(1000 * conf.broker_session_timeout),
            heartbeat_interval_ms=int(1000 * conf.broker_heartbeat_interval),
            rebalance_timeout_ms=int(1000 * conf.broker_rebalance_timeout),
            # A worker that waits for an engine, or restores inboxes from the log, does not poll for long. It must not
            # lose its partitions to another worker, which would have to start over. Heartbeats go on meanwhile.
            max_poll_interval_ms=24 * 3600 * 1000,
        )

    async def on_start(self) -> None:
        """Connect; raises ``KafkaError``."""
        await self._client.start()

    async def on_stop(self) -> None:
        """Commit what is done and leave the group, as far as Kafka answers in time."""
        try:
            # With the one that may be under way.
            async with asyncio.timeout(LAST_COMMIT_WITHIN):
                await self._commit(LAST_COMMIT_WITHIN, self._is_uncommitted)
        except TimeoutError as error:
            log.warning("what is done last is not committed", error=repr(error))
        await self._client.stop()

    @lasting
    async def commit_regularly(self) -> None:
        """Commit what is done, for as long as the app runs."""
        while not self.should_stop:
            await self.sleep(self.app.conf.broker_commit_interval)
            if not self.should_stop:
                await self.commit()

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Join the group."""
        self._client.subscribe(topics, Listener(self))
        self.add_future(self._watch_joining())

    async def _watch_joining(self) -> None:
        """End the app if Kafka refuses our session timeout: aiokafka tells nobody but who polls, and then we do not."""
        while not self._has_joined and not self.should_stop:
            try:
                await self._client.poll(0, 1)
            except InvalidSessionTimeoutError:
                seconds = self.app.conf.broker_session_timeout
                text = (
                    f"CHAT_SESSION_TIMEOUT is {seconds:g}: a number from the broker's group.min.session.timeout.ms to"
                    " its group.max.session.timeout.ms is wanted, in seconds"
                )
                self.app.end(SettingsError(text))
                return
            except KAFKA_AWAY as error:
                log.warning("the group is not joined yet", error=repr(error))
            await self.sleep(JOIN_LOOK_SECONDS)

    async def on_revoked(self, revoked: set[TP]) -> None:
        """Commit what is done, and forget all partitions: those which stay ours begin again, too."""
        log.info("partitions revoked", count=len(revoked))
        self._rebalances += 1
        self.app.on_rebalance_start()
        await self._tell_revoked(revoked)
        await self.commit()
        self._forget()

    async def on_assigned(self, assigned: set[TP]) -> None:
        """Fetch nothing yet: Faust restores its tables first, then what is ours begins (``perform_seek``)."""
        self._has_joined = True
        self._rebalances += 1
        self._forget()
        self._client.pause(assigned)
        self.app.consumer_generation_id = self._rebalances
        await self._tell_assigned(assigned, self._rebalances)
        self.app.on_rebalance_return()

    def _forget(self) -> None:
        self._is_to_begin = False
        self.progress.clear()
        self._committed.clear()
        self._losing.clear()
        self._read.clear()
        # Faust has emptied the queues.
        self._held.clear()
        self._has_room.set()

    def assignment(self) -> set[TP]:
        """Return the partitions that are assigned."""
        return {TP(*tp) for tp in self._client.assignment()}

    # What Faust calls: the flow

    def stop_flow(self) -> None:
        """Hand out nothing."""
        self._flowing.clear()

    def resume_flow(self) -> None:
        """Hand out records again."""
        self._flowing.set()

    def pause_partitions(self, tps: Iterable[TP]) -> None:
        """Fetch nothing of these partitions."""
        self._client.pause(tps)

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """Fetch the changelogs among these partitions; the others once they have begun."""
        self._client.resume(
            tp for tp in tps if self._is_changelog(tp) or (tp in self.progress and tp not in self._losing)
        )

    async def perform_seek(self) -> None:
        """Have all partitions begin, once the flow goes on; Faust calls this when its tables are restored."""
        self.stop_flow()
        self._is_to_begin = True

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Read partitions from some offsets on."""
        for tp, offset in partitions.items():
            self._client.seek(tp, offset)

    async def earliest_offsets(self, *partitions: TP) -> dict[TP, int]:
        """Return the first offset that the log has of each partition; waits while Kafka is away."""
        return await retry_forever(
            "ask where partitions begin", KAFKA_AWAY, lambda: self._client.beginnings(partitions)
        )

    async def highwaters(self, *partitions: TP) -> dict[TP, int]:
        """Return the offset of the next record of each partition; waits while Kafka is away."""
        return await retry_forever("ask where partitions end", KAFKA_AWAY, lambda: self._client.ends(partitions))

    def highwater(self, tp: TP) -> int | None:
        """Return where a partition ended at its last fetch; ``None`` before that."""
        return self._client.highwater(tp)

    def topic_partitions(self, topic: str) -> int | None:
        """Return the number of partitions of a topic, if it is known here."""
        return self._client.partition_count(topic)

    def read_to(self, tp: TP) -> End | None:
        """Return how far a partition was read; ``None`` before the first record."""
        if (read := self._read.get(tp)) is None:
            return None
        return End(*read, self._client.highwater(tp) or 0)

    def _is_changelog(self, tp: tuple[str, int]) -> bool:
        return tp[0] in self.app.tables.changelog_topics

    # From Kafka to the agents

    async def hand_out(self) -> None:
        """Put records into the queues of their agents as they come, until cancelled; raises ``ConsumerEnded``."""
        while True:
            await self._flowing.wait()
            try:
                if self._is_to_begin:
                    await self._begin()
                elif full := self._full():
                    await self._hand_out_beside(full)
                else:
                    self._put(await self._client.poll(POLL_SECONDS, HELD_RECORDS))
            except KAFKA_AWAY as error:
                log.warning("no records can be read, waiting", error=repr(error))
                await asyncio.sleep(AGAIN_SECONDS)

    async def _hand_out_beside(self, full: set[str]) -> None:
        self._has_room.clear()
        others = [tp for tp in self.assignment() if tp.topic not in full]
        if others:
            self._put(await self._client.poll(POLL_AGAIN_SECONDS, HELD_RECORDS, others))
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_AGAIN_SECONDS):
                    await self._has_room.wait()

    def _full(self) -> set[str]:
        """Return the topics of which nothing more is to be polled now."""
        full = {t for t, (records, size) in self._held.items() if records >= HELD_RECORDS or size >= HELD_BYTES}
        # Faust's recovery takes from one queue for all changelogs, and does not tell.
        if self.app.in_recovery and self.app.tables.changelog_queue.full():
            full |= self.app.tables.changelog_topics
        return full

    def _put(self, records: kafka.Records) -> None:
        if not self._flowing.is_set():
            return  # A rebalance has begun: what is ours after it begins again.
        channels = {topic: channel for channel in self.app.topics for topic in channel.topics} if records else {}
        generation = self.app.consumer_generation_id
        for tp, found in records.items():
            channel = channels[tp.topic]
            self._read[TP(*tp)] = found[-1].offset, found[-1].timestamp
            held = [0, 0] if self._is_changelog(tp) else self._held.setdefault(tp.topic, [0, 0])
            for r in found:
                message = Message(
                    *(r.topic, r.partition, r.offset, r.timestamp / 1000, r.timestamp_type, r.headers, r.key, r.value),
                    None,
                    generation_id=generation,
                )
                message.acked = True  # So that no stream tells us: what is done is not told by that.
                channel.queue.force_put_nowait(self.app.create_event(r.key, r.value, r.headers, message))
                held[0] += 1
                held[1] += len(r.value or b"")

    def took(self, topic: str, records: int, size: int) -> None:
        """Note that the agent of a topic has taken records, of ``size`` bytes together, out of its queue."""
        if (held := self._held.get(topic)) is not None:
            held[0] -= records
            held[1] -= size
            self._has_room.set()

    async def _begin(self) -> None:
        """Begin each partition where its committed offset says, or at the beginning of the log."""
        rebalances = self._rebalances
        await self.app.check_topics()
        tps = [tp for tp in self.assignment() if not self._is_changelog(tp)]
        committed = {tp: (c.offset, checkpoint_of(tp, c)) for tp, c in (await self._client.committed(tps)).items()}
        for tp in [tp for tp, (_, found) in committed.items() if not found.is_of(self._topic_id(tp))]:
            log_at(tp, committed.pop(tp)[0]).error(ANEW)
        earliest = await self._client.beginnings(tps) if tps else {}
        # A group that has committed nothing may be new, or have been away for so long that Kafka has forgotten it.
        unknown = {tp: await self.app.first_unapplied(tp) for tp in tps if tp not in committed and earliest[tp]}
        if rebalances != self._rebalances:
            # A partition that went away meanwhile would be begun again where it was then, and if it ever came back,
            # that would be committed before anybody looked at what is committed by now.
            return
        self._client.resume(tps)
        for tp in tps:
            offset, checkpoint = min(unknown.get(tp, 0), earliest[tp]), Checkpoint()
            if tp in committed:
                offset, checkpoint = committed[tp]
            self.progress.start(tp, Start(offset, checkpoint), time.monotonic())
            self._go_to(tp, LostRange(offset, offset, earliest[tp]))
        self._is_to_begin = False
        starts = " ".join(f"{tp.topic}/{tp.partition}:{self.progress.committable(tp)}" for tp in sorted(tps))
        log.info("partitions assigned", offsets=starts)

    def rewind(self, tp: TP, offset: int, earliest: int) -> None:
        """Begin another run through a partition at an earlier offset; the log has the records from ``earliest`` on."""
        log_at(tp, offset).warning("applying records again")
        applied = self.progress.committable(tp) or 0
        first = self.progress.rewind(tp, offset, time.monotonic())
        self._go_to(tp, LostRange(first, applied, earliest))

    def go_on(self, tp: TP) -> None:
        """Begin another run through a partition at the first record that is not done."""
        if (offset := self.progress.restart(tp, time.monotonic())) is not None:
            self._client.seek(tp, offset)

    def fill_hole(self, tp: TP, why: str) -> None:
        """Go back to the record that comes next in a partition, or to the first one that the log still has."""
        if self._losing.get(tp) == self.progress.epoch(tp):
            return
        offset = self.progress.reseek(tp, time.monotonic())
        if offset is not None:
            self.add_future(self._fill_hole(tp, offset, self.progress.epoch(tp), why))

    async def _fill_hole(self, tp: TP, offset: int, epoch: int | None, why: str) -> None:
        try:
            earliest = (await self._client.beginnings([tp]))[tp]
        except KAFKA_AWAY as error:
            # The next record out of order, or the watchdog, tries again.
            log_at(tp, offset).warning("a hole in a partition, and Kafka is away", error=repr(error))
            return
        if self.progress.epoch(tp) != epoch:
            return
        offset = self.progress.expected(tp)
        log_at(tp, offset).warning("a hole in a partition, going back", why=why)
        self._go_to(tp, LostRange(offset, offset, earliest))

    def _go_to(self, tp: TP, lost: LostRange) -> None:
        """Read a partition from the first of these records on, or from the one behind them if they are lost."""
        epoch = self.progress.epoch(tp)
        if lost.first >= lost.end:
            self._client.seek(tp, lost.first)
        elif epoch is not None and self._losing.get(tp) != epoch:
            log_at(tp, lost.first).error(LOST, to_offset=lost.end)
            self._losing[tp] = epoch
            self._client.pause([tp])
            self.add_future(self._lose(tp, lost, epoch))

    async def _lose(self, tp: TP, lost: LostRange, epoch: int) -> None:
        """Have the app tell of a lost range before anything behind it is applied, then go on there."""
        try:
            # What was taken before may have effects under way.
            while self.progress.epoch(tp) == epoch and (self.progress.committable(tp) or 0) < lost.first:
                await asyncio.sleep(DONE_LOOK_SECONDS)
            if self.progress.epoch(tp) == epoch:
                # So that another worker, or this one after a crash, does not take for lost what is done.
                await self.commit()
                await retry_forever("tell of what is lost", AWAY, lambda: self.app.lost(tp, lost))
                self.progress.skip_to(tp, epoch, lost.end, time.monotonic())
        except Rewound:
            pass  # Another run has begun, which finds the range lost by itself.
        except Exception as error:  # noqa: BLE001 - whatever it is, the partition would stand still for ever
            self.app.end(error)
        finally:
            if self._losing.get(tp) == epoch:
                del self._losing[tp]
        if self.progress.epoch(tp) == epoch:
            self._client.seek(tp, lost.end)
            self._client.resume([tp])

    # Commits

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commit what is done and was not committed yet; returns whether there was some, and Kafka took it."""
        return await self._commit(COMMIT_WITHIN, self._is_uncommitted)

    async def is_member(self) -> bool:
        """Ask Kafka whether our partitions are still ours: it takes a commit from their owner only.

        A worker that was cut off may have lost them to another one, and nobody told it. While aiokafka joins the group
        again, its old membership does not count.
        """
        return await self._commit(MEMBER_WITHIN, lambda tp, done: True)

    def _is_uncommitted(self, tp: TP, done: tuple[int, Checkpoint]) -> bool:
        return done != self._committed.get(tp)

    async def _commit(self, within_s: float, wanted: Callable[[TP, tuple[int, Checkpoint]], bool]) -> bool:
        async with self._commit_lock:
            began = time.monotonic()
            # A changelog's writes go before the commit of what caused them.
            if self.app.tables and not await self.app.producer.flush():
                return False
            # No await between a token and an offset: a token is adopted after the rewind it calls for.
            done = {tp: found for tp in self.assignment() if (found := self.progress.to_commit(tp)) is not None}
            done = {tp: found for tp, found in done.items() if wanted(tp, found)}
            rebalances = self._rebalances
            values = {tp: self._to_write(tp, *found) for tp, found in done.items()}
            if not values or not await self._client.commit(values, within_s):
                return False
            COMMIT_SECONDS.observe(time.monotonic() - began)
            if rebalances == self._rebalances:
                self._committed.update(done)
            return True

    def _to_write(self, tp: TP, offset: int, checkpoint: Checkpoint) -> OffsetAndMetadata:
        of_topic = msgspec.structs.replace(checkpoint, topic_id=self._topic_id(tp))
        return OffsetAndMetadata(offset, msgspec.json.encode(of_topic).decode())

    def _topic_id(self, tp: TP) -> str:
        topic_id: str = self.app.topic_ids.get(tp.topic, "")
        return topic_id


class Listener(ConsumerRebalanceListener):
    """aiokafka's callbacks. It logs and forgets their exceptions: here they end the worker."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        """Tell the consumer."""
        await self._or_crash(self._consumer.on_revoked({TP(*tp) for tp in revoked}))

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        """Tell the consumer."""
        await self._or_crash(self._consumer.on_assigned({TP(*tp) for tp in assigned}))

    async def _or_crash(self, callback: Awaitable[None]) -> None:
        try:
            await callback
        except Exception as error:  # noqa: BLE001 - whatever it is, what is ours is not known
            await self._consumer.crash(error)


def log_at(tp: tuple[str, int], offset: int) -> Any:
    """Return the logger with the place in Kafka that a line is about."""
    return log.bind(topic=tp[0], partition=tp[1], offset=offset)


def checkpoint_of(tp: tuple[str, int], committed: OffsetAndMetadata) -> Checkpoint:
    """Return the checkpoint that was committed with an offset; an empty one where it cannot be read."""
    try:
        return msgspec.json.decode(committed.metadata, type=Checkpoint)
    except msgspec.DecodeError as error:
        # Without the token, the next append asks every Redis server for its mark and begins there.
        if committed.metadata:
            log_at(tp, committed.offset).error("committed metadata cannot be read", error=repr(error))
        return Checkpoint()
