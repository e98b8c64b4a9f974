"""The notification service: joins ``user_connected`` events and inbox requests with the stored inboxes.

faust -A chat_streams.notification worker
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from chat_streams.kafka.names import INBOX_REQUESTS, SESSION_EVENTS
from chat_streams.model.position import Position
from chat_streams.model.records import (
    FIRST_REQUEST,
    REQUESTS,
    SESSIONS,
    Acknowledge,
    Fetch,
    InboxRequests,
    Record,
    SessionEvents,
    UserConnected,
)
from chat_streams.model.times import now_ms
from chat_streams.processing.delivery_buffer import DeliveryBuffer
from chat_streams.processing.service import Service
from tables.inbox import Inbox
from tables.redis_cluster import Cluster

READ_AT_ONCE: Final = 8 * 1024 * 1024
"""Bytes asked of Redis in one round."""

app = Service("notification")
session_events = app.topic(SESSION_EVENTS)
inbox_requests = app.topic(INBOX_REQUESTS)
inbox = Inbox(Cluster(app.settings), app.settings)


class Wanted(NamedTuple):
    """A page of an inbox, and the connection it is for."""

    user: str
    device: str
    connection: bytes
    slot: int
    epoch: int
    request: int
    after: Position
    limit: int
    limit_bytes: int


@app.agent(session_events)
async def greet(stream: Any) -> None:
    """Send the first page of the inbox to a user who has connected."""
    await app.process(stream, SESSIONS, send_first_pages)


@app.agent(inbox_requests)
async def serve(stream: Any) -> None:
    """Send the page of the inbox that is asked for; remove what is acknowledged."""
    await app.process(stream, REQUESTS, acknowledge_and_send)


async def send_first_pages(records: list[Record[SessionEvents]]) -> Awaitable[Any] | None:
    """The join: each new connection with what is stored for its user."""
    now = now_ms()
    return await _send_pages(
        Wanted(e.user, e.device, e.connection, e.slot, e.epoch, FIRST_REQUEST, e.after, e.limit, e.limit_bytes)
        for record in records
        for e in record.value
        if isinstance(e, UserConnected) and e.drain and e.deadline > now
    )


async def acknowledge_and_send(records: list[Record[InboxRequests]]) -> Awaitable[Any] | None:
    """Acknowledgements first, the highest of each device only; of a connection's requests only its newest."""
    acks: dict[tuple[str, str], Position] = {}
    fetches: dict[bytes, Fetch] = {}
    now = now_ms()
    for record in records:
        for request in record.value:
            if isinstance(request, Acknowledge):
                device = request.user, request.device
                acks[device] = max(request.position, acks.get(device, request.position))
            elif request.deadline > now:
                fetches[request.connection] = request
    if acks:
        removed = await inbox.acknowledge([(user, device, position) for (user, device), position in acks.items()])
        app.statistics.counters["acknowledged"] += removed
    return await _send_pages(
        Wanted(f.user, f.device, f.connection, f.slot, f.epoch, f.request, f.after, f.limit, f.limit_bytes)
        for f in fetches.values()
    )


async def _send_pages(wanted: Iterable[Wanted]) -> Awaitable[Any] | None:
    sent: list[Awaitable[Any]] = []
    for some in _rounds(wanted):
        with app.statistics.timed("read"):
            pages = await inbox.read([(w.user, w.device, w.after, w.limit, w.limit_bytes) for w in some])
        parents: Sequence[Sequence[str]] = [()] * len(pages)
        if app.traces is not None:
            parents = await inbox.parents([(w.user, page) for w, page in zip(some, pages, strict=True)])
        buffer = DeliveryBuffer(app)
        for w, page, of_page in zip(some, pages, parents, strict=True):
            buffer.page(w.slot, w.user, w.connection, w.epoch, w.request, page, of_page)
        if (effect := buffer.send()) is not None:
            sent.append(effect)
    return asyncio.gather(*sent) if sent else None


def _rounds(wanted: Iterable[Wanted]) -> Iterable[list[Wanted]]:
    """Split so that one round reads ``READ_AT_ONCE`` bytes at most, within the limits of one page."""
    settings = app.settings
    some: list[Wanted] = []
    size = 0
    for w in wanted:
        limited = w._replace(
            limit=max(1, min(w.limit, settings.read_messages)),
            limit_bytes=max(1, min(w.limit_bytes, settings.read_bytes)),
        )
        if some and size + limited.limit_bytes > READ_AT_ONCE:
            yield some
            some, size = [], 0
        some.append(limited)
        size += limited.limit_bytes
    if some:
        yield some
