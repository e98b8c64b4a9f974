"""The messaging service: appends messages to inboxes and pushes them to connected users. Owns the session registry.

faust -A chat_streams.messaging worker
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import Any, Final

import structlog
from faust.types import TP
from prometheus_client import Counter, Gauge, Histogram

from chat_streams.kafka import names
from chat_streams.kafka.names import INCOMING_MESSAGES, SESSION_EVENTS
from chat_streams.model.errors import FencingTokenStale, LaneDropped, RedisUnavailable, Rewound
from chat_streams.model.position import Position
from chat_streams.model.records import (
    INCOMING,
    PUSH,
    SESSIONS,
    Announce,
    Displaced,
    InboxAdvanced,
    Messages,
    Record,
    Registered,
    SessionEvents,
    UserConnected,
)
from chat_streams.processing.delivery_buffer import DeliveryBuffer
from chat_streams.processing.grouping import by_recipient
from chat_streams.processing.lasting import run_lasting
from chat_streams.processing.offsets import LostRange
from chat_streams.processing.service import Service
from chat_streams.recovery.eviction import EvictionWatch
from chat_streams.recovery.fencing import Fencing
from chat_streams.recovery.former_libraries import FormerLibraries
from chat_streams.recovery.lost_ranges import LostRanges
from chat_streams.runtime.metrics import BUCKETS, REGISTRY
from chat_streams.runtime.retry import retry_forever
from chat_streams.runtime.spans import traceparent
from tables.inbox import Appended, Batch, Inbox
from tables.inbox_index import InboxIndex
from tables.redis_cluster import Cluster
from tables.sessions import Sessions

log = structlog.get_logger()

APPENDED: Final = Counter("connect_chat_inbox_messages_appended_total", "Messages new in an inbox.", registry=REGISTRY)
OVERFLOWED: Final = Counter(
    "connect_chat_inbox_messages_overflowed_total", "Past a quota: in history only.", registry=REGISTRY
)
RETRIED: Final = Counter("connect_chat_inbox_messages_retried_total", "There already.", registry=REGISTRY)
APPEND_SECONDS: Final = Histogram(
    "connect_chat_inbox_append_seconds",
    "A batch's appends, waiting for Redis included.",
    buckets=BUCKETS,
    registry=REGISTRY,
)
TABLE_ROWS: Final = Gauge(
    "connect_chat_worker_table_rows", "Rows of its part of a table.", ["table"], registry=REGISTRY
)

app = Service("messaging")
incoming_messages = app.topic(INCOMING_MESSAGES)
session_events = app.topic(SESSION_EVENTS)
registry = app.Table(names.REGISTRY, partitions=app.settings.partitions, key_type=bytes, value_type=bytes)
TABLE_ROWS.labels(names.REGISTRY).set_function(lambda: len(registry))
sessions = Sessions(registry, most=app.settings.max_devices)
cluster = Cluster(app.settings)
app.to_close["redis"] = cluster.close
inbox = Inbox(cluster, app.settings)
evictions = EvictionWatch(cluster)
app.hindrances = lambda: evictions.warnings
fencing = Fencing(app, inbox, evictions, FormerLibraries(cluster), app.settings)
lost_ranges = LostRanges(app, inbox, InboxIndex(cluster), fencing, sessions, app.settings.partitions)
run_lasting(app, fencing.watch)
partitions_held: set[int] = set()


@app.agent(incoming_messages)
async def route(stream: Any) -> None:
    """Append each message to its recipient's inbox, then push it to the recipient's connections."""
    await app.process(stream, INCOMING, append_then_look_up)


@app.agent(session_events)
async def register(stream: Any) -> None:
    """Update the registry, then send each new connection's gateway the inbox's highest position."""
    # One record at a time, since Faust takes the changelog's partition from the event that is being processed.
    await app.process(stream, SESSIONS, register_then_read, most_records=1)


async def append_then_look_up(records: list[Record[Messages]]) -> Awaitable[Any] | None:
    """Append all messages to inboxes, then push them where the recipient is connected (invariants 2 and 3)."""
    batches = by_recipient(records, app.kafka_log.generation, app.settings.retry_window)
    spans = app.begin_spans("append", records)
    results = await _append(batches)
    APPENDED.inc(sum(len(appended.json) for appended in results))
    OVERFLOWED.inc(sum(appended.overflow for appended in results))
    RETRIED.inc(sum(appended.retries for appended in results))
    for span in spans.values():
        span.end()
    buffer = DeliveryBuffer(app)
    sampled_and_stored: list[tuple[str, Position, str]] = []
    for (user, _, messages), appended in zip(batches, results, strict=True):
        sampled = [(p, traceparent(spans[user, p])) for p, _, _ in messages if (user, p) in spans] if spans else []
        pushed = _push(buffer, user, appended, sampled)
        # Messages that were in the inbox before this batch are not in the pushed pages.
        sampled_and_stored += [(user, p, parent) for p, parent in sampled if not pushed or p <= appended.former]
    if sampled_and_stored:
        await inbox.keep_parents(sampled_and_stored)
    return buffer.send()


async def _append(batches: Sequence[Batch]) -> list[Appended]:
    """Append with the fencing tokens of the partitions; raises ``Rewound`` when Redis may have lost earlier writes."""
    tokens = {partition: await fencing.token(partition) for partition in {batch.partition for batch in batches}}
    began = time.monotonic()
    try:
        appended = await inbox.append(batches, tokens)
    except FencingTokenStale as error:
        log.warning("redis refused to append", error=repr(error))
        for partition, token in tokens.items():
            await fencing.fence(partition, refused=token)
        raise Rewound from error
    APPEND_SECONDS.observe(time.monotonic() - began)
    return appended


def _push(buffer: DeliveryBuffer, user: str, appended: Appended, sampled: Sequence[tuple[Position, str]]) -> bool:
    """Add the new messages for each connection of a user, or else a notice; returns whether messages were added.

    The notice alone (``InboxAdvanced``) is sent when messages went to history only, or when none is new because the
    record is applied again. ``sampled`` has the positions and traceparents of the sampled messages.
    """
    connections = sessions.of(user)
    pages = list(appended.pages(app.settings.read_bytes)) if connections and not appended.overflow else []
    for session in connections:
        for page in pages:
            parents = [parent for position, parent in sampled if page.after < position <= page.until]
            buffer.page(session.slot, user, session.connection, session.epoch, PUSH, page, parents)
        if not pages:
            buffer.add(session.slot, InboxAdvanced(user, session.connection, session.epoch, appended.until))
    return bool(pages)


async def register_then_read(records: list[Record[SessionEvents]]) -> Awaitable[Any] | None:
    """Write the registry, then read the inbox's highest position: no concurrent append is overlooked (invariant 3)."""
    buffer = DeliveryBuffer(app)
    connected: list[UserConnected] = []
    for record in records:
        for event in record.value:
            if isinstance(event, UserConnected):
                for lost in sessions.connected(event):
                    buffer.add(lost.slot, Displaced(event.user, lost.connection, lost.epoch))
                connected.append(event)
            else:
                sessions.disconnected(event)
    if connected:
        tops = await inbox.tops([event.user for event in connected])
        for event, top in zip(connected, tops, strict=True):
            buffer.add(event.slot, Registered(event.user, event.connection, event.epoch, top))
    return buffer.send()


async def applied_by_inboxes(partition: int) -> int:
    """Return the offset below which all is in the inboxes, by the marks in Redis."""
    return await retry_forever("look for marks", RedisUnavailable, lambda: inbox.applied(partition))


async def tell_missed(partition: int, lost: LostRange) -> None:
    """Have each user of a partition told ``missed`` over records that are gone: at once, or when they come."""
    await lost_ranges.tell(partition, app.kafka_log.generation, lost)


async def announce_again(partition: int, _: LostRange) -> None:
    """Have the gateways announce their connections on a partition whose session events are gone."""
    await retry_forever("ask for announcements", LaneDropped, lambda: _announce((partition,)))


app.applied_elsewhere[INCOMING_MESSAGES] = applied_by_inboxes
app.on_loss[INCOMING_MESSAGES] = tell_missed
app.on_loss[SESSION_EVENTS] = announce_again


@app.on_partitions_assigned.connect
async def ask_for_announcements(_: Any, assigned: set[TP], **__: Any) -> None:
    """Ask the gateways to announce their connections on partitions that are new to this worker."""
    held = {tp.partition for tp in assigned if tp.topic == INCOMING_MESSAGES}
    new = held - partitions_held
    partitions_held.clear()
    partitions_held.update(held)
    if new:
        partitions = tuple(sorted(new))
        app.add_future(retry_forever("ask for announcements", LaneDropped, lambda: _announce(partitions)))


async def _announce(partitions: tuple[int, ...]) -> None:
    buffer = DeliveryBuffer(app)
    for slot in range(app.settings.slots):
        buffer.add(slot, Announce(partitions))
    await (buffer.send() or asyncio.sleep(0))
