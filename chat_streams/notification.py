"""The notification service: sends stored inboxes in pages, and removes messages that are acknowledged.

faust -A chat_streams.notification worker
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

from chat_streams.kafka.names import INBOX_REQUESTS, SESSION_EVENTS
from chat_streams.model.position import Position
from chat_streams.model.records import (
    FIRST_REQUEST,
    REQUESTS,
    SESSIONS,
    Acknowledge,
    InboxRequests,
    Record,
    SessionEvents,
    UserDisconnected,
)
from chat_streams.processing.page_requests import Asked, NewestTimes, worth_answering
from chat_streams.processing.page_sender import PageSender, Wanted
from chat_streams.processing.service import Service
from tables.acknowledged import REMOVED
from tables.inbox import Inbox
from tables.redis_cluster import Cluster

app = Service("notification")
session_events = app.topic(SESSION_EVENTS)
inbox_requests = app.topic(INBOX_REQUESTS)
cluster = Cluster(app.settings)
app.to_close["redis"] = cluster.close
inbox = Inbox(cluster, app.settings)
pages = PageSender(app, inbox)
newest_events = app.newest_times(SESSION_EVENTS)
newest_requests = app.newest_times(INBOX_REQUESTS)


@app.agent(session_events)
async def greet(stream: Any) -> None:
    """Send the first page of the inbox to a user who has connected."""
    await app.process(stream, SESSIONS, send_first_pages)


@app.agent(inbox_requests)
async def serve(stream: Any) -> None:
    """Send the requested pages of inboxes, and remove messages that are acknowledged."""
    await app.process(stream, REQUESTS, acknowledge_and_send)


async def send_first_pages(records: list[Record[SessionEvents]]) -> Awaitable[Any] | None:
    """Send each new connection the first page of its user's inbox, unless it is gone or has asked otherwise by now."""
    asked: dict[bytes, Asked[Wanted]] = {}
    for record in records:
        for e in record.value:
            if isinstance(e, UserDisconnected):
                asked.pop(e.connection, None)
            elif e.drain:
                wanted = Wanted(
                    *(e.user, e.device, e.connection, e.slot, e.epoch, FIRST_REQUEST),
                    *(e.after, e.limit, e.limit_bytes, record.at),
                )
                asked[e.connection] = Asked(e.connection, record.partition, record.at, e.timeout_ms, wanted)
    return await _answer(list(asked.values()), newest_events)


async def acknowledge_and_send(records: list[Record[InboxRequests]]) -> Awaitable[Any] | None:
    """Apply the highest acknowledgement of each device, then answer the newest request of each connection."""
    acks: dict[tuple[str, str], Position] = {}
    asked: list[Asked[Wanted]] = []
    for record in records:
        for r in record.value:
            if isinstance(r, Acknowledge):
                device = r.user, r.device
                acks[device] = max(r.position, acks.get(device, r.position))
            else:
                wanted = Wanted(
                    *(r.user, r.device, r.connection, r.slot, r.epoch, r.request),
                    *(r.after, r.limit, r.limit_bytes, record.at),
                )
                asked.append(Asked(r.connection, record.partition, record.at, r.timeout_ms, wanted))
    if acks:
        removed = await inbox.acknowledge([(user, device, position) for (user, device), position in acks.items()])
        REMOVED.inc(removed)
    return await _answer(asked, newest_requests)


async def _answer(asked: Sequence[Asked[Wanted]], newest: NewestTimes) -> Awaitable[Any] | None:
    if not asked:
        return None
    times = await newest.of(a.partition for a in asked)
    return await pages.send(a.wanted for a in worth_answering(asked, times))
