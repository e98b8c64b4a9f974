"""The messaging service: ``incoming_messages`` -> inboxes, and a push to whoever is connected. Owns the registry.

faust -A chat_streams.messaging worker
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

import structlog
from faust.types import TP

from chat_streams.kafka.names import INCOMING_MESSAGES, REGISTRY, SESSION_EVENTS
from chat_streams.model.errors import FencingTokenStale, Rewound
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
from chat_streams.processing.service import Service
from chat_streams.recovery.fencing import Fencing
from chat_streams.runtime.spans import traceparent
from tables.inbox import Appended, Batch, Inbox
from tables.redis_cluster import Cluster
from tables.sessions import Sessions

log = structlog.get_logger()

app = Service("messaging")
incoming_messages = app.topic(INCOMING_MESSAGES)
session_events = app.topic(SESSION_EVENTS)
sessions = Sessions(
    app.Table(REGISTRY, partitions=app.settings.partitions, key_type=bytes, value_type=bytes),
    most=app.settings.max_devices,
)
inbox = Inbox(Cluster(app.settings), app.settings)
fencing = Fencing(app, inbox, app.settings)
app.task(fencing.watch)
partitions_held: set[int] = set()


@app.agent(incoming_messages)
async def route(stream: Any) -> None:
    """Append each message to its recipient's inbox, then push it to the recipient's connections."""
    await app.process(stream, INCOMING, append_then_look_up)


@app.agent(session_events)
async def register(stream: Any) -> None:
    """Keep the registry, and tell each gateway what the inbox held once its connection was registered."""
    # One record at a time: Faust takes the changelog's partition from the event that is being processed.
    await app.process(stream, SESSIONS, register_then_read, most_records=1)


async def append_then_look_up(records: list[Record[Messages]]) -> Awaitable[Any] | None:
    """Inbox first; online or offline only decides whether a push follows (invariants 2 and 3)."""
    batches = by_recipient(records, app.kafka_log.generation, app.settings.retry_window)
    spans = app.begin_spans("append", records)
    results = await _append(batches)
    for span in spans.values():
        span.end()
    counters = app.statistics.counters
    buffer = DeliveryBuffer(app)
    sampled_and_stored: list[tuple[str, Position, str]] = []
    for (user, _, messages), appended in zip(batches, results, strict=True):
        counters["appended"] += len(appended.json)
        counters["overflowed"] += appended.overflow
        counters["retries"] += appended.retries
        sampled = [(p, traceparent(spans[user, p])) for p, _ in messages if (user, p) in spans] if spans else []
        pushed = _push(buffer, user, appended, sampled)
        # What was there before this batch is not in what is pushed.
        sampled_and_stored += [(user, p, parent) for p, parent in sampled if not pushed or p <= appended.former]
    if sampled_and_stored:
        await inbox.keep_parents(sampled_and_stored)
    return buffer.send()


async def _append(batches: Sequence[Batch]) -> list[Appended]:
    """Append with the tokens of their partitions; raises ``Rewound`` where Redis may have lost what was applied."""
    tokens = {partition: await fencing.token(partition) for partition in {batch.partition for batch in batches}}
    try:
        with app.statistics.timed("append"):
            return await inbox.append(batches, tokens)
    except FencingTokenStale as error:
        log.warning("redis refused to append", reason=str(error))
        for partition, token in tokens.items():
            await fencing.fence(partition, refused=token)
        raise Rewound from error


def _push(buffer: DeliveryBuffer, user: str, appended: Appended, sampled: Sequence[tuple[Position, str]]) -> bool:
    """Add what is new for a user's connections, or only that there is something; whether it was added.

    Only that where some of it went to history, or nothing is new: the record is applied again. ``sampled`` has the
    traceparents of some of its messages, by position.
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
    """Write the registry, then read the inbox's top: one side always sees the other (invariant 3)."""
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


@app.on_partitions_assigned.connect
async def ask_for_announcements(_: Any, assigned: set[TP], **__: Any) -> None:
    """Ask the gateways to announce their connections on partitions this worker did not have."""
    held = {tp.partition for tp in assigned if tp.topic == INCOMING_MESSAGES}
    new = held - partitions_held
    partitions_held.clear()
    partitions_held.update(held)
    if new:
        app.add_future(_announce(tuple(sorted(new))))


async def _announce(partitions: tuple[int, ...]) -> None:
    buffer = DeliveryBuffer(app)
    for slot in range(app.settings.slots):
        buffer.add(slot, Announce(partitions))
    await (buffer.send() or asyncio.sleep(0))
