"""Fencing of Redis: detects a server that lost writes, and has them applied again from the log.

``docs/architecture.md``, "A Redis that lost its newest writes" and "A Redis that lost everything".
"""

from __future__ import annotations

import asyncio
import secrets
import time
from functools import partial
from typing import Final, NamedTuple

import structlog
from faust.types import TP
from redis.exceptions import ResponseError

from chat_streams.kafka import generations
from chat_streams.kafka.log_reader import LogReader
from chat_streams.kafka.names import INBOX_REQUESTS, INCOMING_MESSAGES, SESSION_EVENTS, Names, partition_of
from chat_streams.model.errors import (
    FencingTokenStale,
    RedisUnavailable,
    Rewound,
    UndecodableRecord,
    UnknownVersion,
)
from chat_streams.model.position import ORIGIN, Position
from chat_streams.model.records import REQUESTS, SESSIONS, Acknowledge, UserConnected
from chat_streams.processing.away import AWAY, is_away
from chat_streams.processing.ordered import OrderedApp
from chat_streams.recovery import previous_logs
from chat_streams.recovery.eviction import EvictionWatch
from chat_streams.recovery.former_libraries import FormerLibraries
from chat_streams.runtime.retry import retry_forever
from chat_streams.runtime.settings import Settings
from tables.inbox import Inbox, LoggedDevice

log = structlog.get_logger()

MARK_SECONDS: Final = 1.0
"""Seconds between two checks that all Redis primaries still know the fencing tokens."""
REGAIN_SECONDS: Final = 0.1
"""Seconds between two checks that this worker is still a member of its consumer group."""

Devices = dict[str, dict[str, LoggedDevice]]


class _Trace(NamedTuple):
    cursor: Position
    at: int
    number: int


class Fencing:
    """Fences the partitions of ``incoming_messages`` that a messaging worker is assigned, on all Redis primaries.

    To fence a partition is to set a new random token for it on every primary; an append for the partition needs that
    token. A server that does not have the token expected from before may have lost writes; one that was flushed, or has
    evicted keys, has lost more. Then the partition is applied again from the start of the loss window; or, when a
    server lost more than that, from the server's mark (0 without one), after the cursors of devices were restored from
    the log.
    """

    def __init__(
        self,
        app: OrderedApp,
        inbox: Inbox,
        evictions: EvictionWatch,
        libraries: FormerLibraries,
        settings: Settings,
    ) -> None:
        self._app = app
        self._inbox = inbox
        self._evictions = evictions
        self._libraries = libraries
        self._settings = settings
        self._lock = asyncio.Lock()

    async def token(self, partition: int) -> str:
        """Return the token to append with; raises ``Rewound`` when older records must be applied first."""
        return self._app.progress.token(_tp(partition)) or await self.fence(partition, refused="")

    async def fence(self, partition: int, refused: str) -> str:
        """Return a token other than the ``refused`` one, setting new tokens if necessary.

        Raises ``Rewound`` when the partition was revoked or rewound: its records are delivered again.
        """
        tp, progress = _tp(partition), self._app.progress
        async with self._lock:
            # A worker cut off from Kafka, but not from Redis, must not replace the tokens of the worker that took over.
            while tp in progress and not await self._app.consumer.is_member():
                await asyncio.sleep(REGAIN_SECONDS)
            if tp not in progress:
                raise Rewound
            if (current := progress.token(tp)) and current != refused:
                return current
            epoch = progress.epoch(tp)
            # A server that lost the writes of one partition lost those of the others, too: one seek serves them all.
            await self._fence_all()
            if progress.epoch(tp) != epoch:
                raise Rewound
            return progress.token(tp)

    async def _fence_all(self) -> None:
        progress = self._app.progress
        # What is restored into a server that evicts would be evicted again.
        await retry_forever("fence", RedisUnavailable, self._evictions.demand)
        tokens = {tp: secrets.token_hex(8) for tp in self._held()}
        epochs = {tp: progress.epoch(tp) for tp in tokens}
        # Looked up before the first await, since a partition may be revoked during it.
        expected = {tp: progress.expected_token(tp) for tp in tokens}
        marks = await asyncio.gather(
            *(
                retry_forever("fence", RedisUnavailable, partial(self._inbox.fence, tp.partition, expected[tp], token))
                for tp, token in tokens.items()
            )
        )
        # Where nothing is missing, nothing has to be known of the log.
        refused = [tp for tp, mark in zip(tokens, marks, strict=True) if mark is not None]
        earliest = await self._app.consumer.earliest_offsets(*refused) if refused else {}
        rewinds: dict[TP, int] = {}
        restores: dict[int, str] = {}
        new: dict[int, str] = {}
        for (tp, token), mark in zip(tokens.items(), marks, strict=True):
            if mark is None or progress.epoch(tp) != epochs[tp]:
                continue
            if not progress.committable(tp) and not earliest[tp]:
                new[tp.partition] = token
                continue
            # Below the mark every server has all, so that what the log no longer has of it is not missing. A server
            # without a mark is restored, and that tells whose inbox is gone what the log no longer has.
            begin = min(mark, progress.rewind_offset(tp))
            rewinds[tp] = begin if begin >= earliest[tp] else min(mark or earliest[tp], earliest[tp])
            # A server without a mark may have lost everything, also when the loss window reaches back to offset 0.
            if mark < progress.rewind_offset(tp) or not mark:
                restores[tp.partition] = token
        # Of these partitions nothing of the current log was applied, so only writes from previous logs can be missing.
        if new and not await self._has_previous_logs():
            restores |= new
        if restores:
            log.error("redis has lost more than the loss window, restoring from the log", partitions=list(restores))
            from_the_beginning = {tp.partition for tp, mark in zip(tokens, marks, strict=True) if mark == 0}
            await self._restore(restores, from_the_beginning)
        if rewinds:
            await self._app.rewind(rewinds)
        for tp, token in tokens.items():
            if tp in rewinds or progress.epoch(tp) == epochs[tp]:
                progress.fence(tp, token)

    def _held(self) -> list[TP]:
        assigned = self._app.consumer.assignment()
        return [tp for tp in assigned if tp.topic == INCOMING_MESSAGES and tp in self._app.progress]

    async def watch(self) -> None:
        """Check every second that the servers still know the tokens and evict nothing, for as long as the app runs.

        Without this check, the lost inboxes of a partition that gets no messages would stay lost.
        """
        while not self._app.should_stop:
            await self._app.sleep(MARK_SECONDS)
            if self._app.rebalancing or self._app.in_recovery:
                continue
            try:
                await self._evictions.look()
            except RedisUnavailable as error:
                log.warning("redis is away", doing="watch", error=repr(error))
                continue
            try:
                await self._libraries.look(time.monotonic())
            except (RedisUnavailable, ResponseError) as error:
                # Looked at again after some minutes: nothing waits for it.
                log.warning("former function libraries cannot be deleted", error=repr(error))
            for tp in self._held():
                try:
                    await self._check(tp)
                except Rewound:
                    continue
                except Exception as error:
                    if not is_away(error):
                        raise
                    log.warning("an engine is away", doing="watch", error=repr(error))
                    break

    async def _check(self, tp: TP) -> None:
        progress = self._app.progress
        if tp not in progress:
            return
        token, applied = progress.token(tp), progress.committable(tp)
        if not token or applied is None:
            await self.fence(tp.partition, refused="")
        elif not await self._inbox.mark(tp.partition, token, applied) and progress.token(tp) == token:
            log.warning(
                "a redis server does not know this worker, or has lost keys", topic=tp.topic, partition=tp.partition
            )
            await self.fence(tp.partition, refused=token)

    async def _has_previous_logs(self) -> bool:
        async def are_applied() -> bool:
            return all(
                [
                    await previous_logs.is_applied(self._settings, self._inbox, previous)
                    for previous in await generations.previous(self._settings)
                ]
            )

        return await retry_forever("look for marks", AWAY, are_applied)

    async def _restore(self, tokens: dict[int, str], from_the_beginning: set[int]) -> None:
        async def apply() -> None:
            # Read again at each attempt, since Kafka may have deleted a log meanwhile.
            for previous in await generations.previous(self._settings):
                await previous_logs.apply(self._settings, self._inbox, previous, tokens)
                log.warning("a former log was applied again", generation=previous.generation)

        devices = await retry_forever(
            "read cursors from the log", AWAY, lambda: logged_devices(self._settings, list(tokens))
        )
        logs = await retry_forever("look where the log begins", AWAY, lambda: previous_logs.kept(self._settings))

        def gone(user: str) -> Position | None:
            partition = partition_of(user, self._settings.partitions)
            return previous_logs.gone_up_to(logs, user) if partition in from_the_beginning else None

        await self._inbox.restore(devices, gone)
        log.warning("cursors are restored from the log", users=len(devices))
        try:
            # Commands that Redis refuses are tried again, too: no newer message may be appended before these.
            await retry_forever("apply former logs", (*AWAY, ResponseError), apply)
        except FencingTokenStale as error:
            # Redis lost writes once more, or another worker took over: the next append shows it.
            raise Rewound from error


async def logged_devices(settings: Settings, partitions: list[int]) -> Devices:
    """Read the devices of the users on some partitions from the current log and all previous ones.

    Returns user -> device -> state. Devices not seen for ``inbox_ttl``, by the newest record that was read, are left
    out. Raises ``KafkaUnavailable``, ``TopicsError``, and ``KafkaError``.
    """
    found: dict[str, dict[str, _Trace]] = {}
    newest = 0
    previous = [Names.of(generation.version) for generation in await generations.previous(settings)]

    def note(user: str, device: str, cursor: Position, at: int, number: int) -> None:
        nonlocal newest
        newest = max(newest, at)
        if previous and partition_of(user, settings.partitions) not in partitions:
            return
        user_devices = found.setdefault(user, {})
        old = user_devices.get(device, _Trace(ORIGIN, 0, 0))
        user_devices[device] = _Trace(max(cursor, old.cursor), max(at, old.at), max(number, old.number))

    async with LogReader(settings) as reader:
        # A previous log has another number of partitions: its users of these partitions may be on any.
        sessions = [span for names in previous for span in await reader.spans(names.session_events)]
        sessions += await reader.spans(SESSION_EVENTS, partitions)
        requests = [span for names in previous for span in await reader.spans(names.inbox_requests)]
        requests += await reader.spans(INBOX_REQUESTS, partitions)
        async for record in reader.read(sessions):
            try:
                events = SESSIONS.decode(record.value)
            except (UndecodableRecord, UnknownVersion):
                continue
            for event in events:
                # ``after`` is an acknowledged cursor at the start of a connection only; later it is what was forwarded.
                if isinstance(event, UserConnected):
                    cursor = event.after if event.drain else ORIGIN
                    note(event.user, event.device, cursor, record.at, event.number)
        async for record in reader.read(requests):
            try:
                batch = REQUESTS.decode(record.value)
            except (UndecodableRecord, UnknownVersion):
                continue
            for request in batch:
                if isinstance(request, Acknowledge):
                    note(request.user, request.device, request.position, record.at, 0)
    oldest = newest - 1000 * settings.inbox_ttl
    return {
        user: recent
        for user, user_devices in found.items()
        if (
            recent := {
                name: LoggedDevice(device.cursor, (newest - device.at) // 1000, device.number)
                for name, device in user_devices.items()
                if device.at >= oldest
            }
        )
    }


def _tp(partition: int) -> TP:
    return TP(INCOMING_MESSAGES, partition)
