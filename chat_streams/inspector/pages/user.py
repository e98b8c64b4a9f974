"""A user: their devices, connections and inbox, and the last messages to and from them."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import Any, Final

from aiohttp import web

from chat_streams.inspector.access import Viewer
from chat_streams.inspector.site import Answer, NotFound, Site
from chat_streams.log_reader import LogReader, LogUnavailable, Span
from chat_streams.position import MAX_PLACE, ORIGIN, Position
from chat_streams.records import INCOMING, SESSIONS, Undecodable, UnknownVersion, now_ms
from chat_streams.times import utc
from chat_streams.topics import INCOMING_MESSAGES, SESSION_EVENTS, partition_of
from chat_streams.tracing import Connection, Name, Trail
from gateway.protocol import is_id
from tables import inbox_view
from tables.chat_history import HistoryUnavailable
from tables.cluster import StoreUnavailable

LAST: Final = 20
KAFKA_S: Final = 8.0
OUT_RECORDS: Final = 2_000
"""Of each partition, the newest: where messages from a user are looked for."""
OUT_MS: Final = 15 * 60 * 1000
END: Final = Position(2**63, MAX_PLACE)


def register(site: Site) -> None:
    """Add ``/user/{user}`` and, slower, ``/sent-by/{user}``."""

    async def model(request: web.Request, viewer: Viewer) -> Answer:
        user = request.match_info["user"]
        if not is_id(user):
            raise NotFound(f"{user[:60]!r} is no user id: 1-128 characters of A-Z a-z 0-9 . _ ~ @ : -")
        (inbox, inbox_error), (connections, connections_error), (messages, history_error) = await asyncio.gather(
            _inbox(site, user), _connections(site, user), _received(site, user, viewer.bodies)
        )
        errors = [error for error in (inbox_error, connections_error, history_error) if error]
        if not inbox.known and not connections and not messages and not errors:
            partition = partition_of(user, site.settings.partitions)
            raise NotFound(
                f"There is no user {user}: no inbox and no devices in Redis, no connection in the last"
                f" {2 * site.settings.announce_sweep:g} s of {SESSION_EVENTS}/{partition}, and no message in the"
                " chat database. Who never connected and was never written to is nowhere."
            )
        now, sweep = now_ms(), int(site.settings.announce_sweep * 2000)
        leases = {(slot.slot, slot.epoch) for slot in site.collector.slots}
        # A gateway that was killed told nobody; without Redis it is not known which of them are there.
        redis_away = site.collector.engines["Redis"].up is not True
        living = [
            c
            for c in connections.values()
            if c.gone_at is None and now - c.heard_at <= sweep and (redis_away or (c.slot, c.epoch) in leases)
        ]
        return Answer(
            {
                "user": user,
                "partition": partition_of(user, site.settings.partitions),
                "online": bool(living),
                "last_seen": max((c.gone_at or c.heard_at for c in connections.values()), default=None),
                "inbox": inbox._asdict(),
                "oldest_ms": inbox.oldest_at * 1000 if inbox.oldest_at else None,
                "connections": [as_json(key, c, site) for key, c in connections.items()][-LAST:],
                "received": messages,
                "inbox_error": inbox_error,
                "connections_error": connections_error,
                "history_error": history_error,
            }
        )

    async def sent(request: web.Request, viewer: Viewer) -> Answer:
        user = request.match_info["user"]
        found, searched = await _sent(site, user)
        return Answer({"user": user, "sent": found, "searched": searched})

    site.page("/user/{user}", "user.html", model, live="_user.html")
    site.page("/sent-by/{user}", "_sent.html", sent, needs=("Kafka",))


async def _inbox(site: Site, user: str) -> tuple[inbox_view.InboxView, str | None]:
    try:
        return await inbox_view.look(site.cluster, user), None
    except StoreUnavailable as error:
        return inbox_view.NOTHING, f"Redis does not answer: {error}"


async def _connections(site: Site, user: str) -> tuple[dict[bytes, Connection], str | None]:
    engine = site.collector.engines["Kafka"]
    if engine.up is False:
        return {}, f"Kafka is away since {utc(engine.since)}"
    try:
        async with asyncio.timeout(KAFKA_S), LogReader(site.settings) as reader:
            return await connections_of(site, reader, user), None
    except (LogUnavailable, TimeoutError) as error:
        return {}, f"Kafka does not answer: {error!r}"


async def connections_of(site: Site, reader: LogReader, user: str) -> dict[bytes, Connection]:
    """The connections of a user as the log of the last two sweeps has them; a living one is announced once in each."""
    trail = Trail(Name("", user, ""), [])
    needle = user.encode()
    since = now_ms() - int(site.settings.announce_sweep * 2000)
    partition = partition_of(user, site.settings.partitions)
    async for record in reader.read(await reader.spans(SESSION_EVENTS, [partition], since_ms=since)):
        if record.value is not None and needle in record.value:
            try:
                trail.add_sessions(SESSIONS.decode(record.value), record.at)
            except (Undecodable, UnknownVersion):
                continue
    return trail.connections


def as_json(key: bytes, connection: Connection, site: Site) -> dict[str, Any]:
    """A connection as JSON values; ``gateway`` says whether its slot is leased in its epoch."""
    lease = next((s for s in site.collector.slots if s.slot == connection.slot), None)
    if lease is None:
        gateway = "the slot has no lease: its gateway is gone"
    elif lease.epoch != connection.epoch:
        gateway = "the slot is another gateway's by now"
    else:
        gateway = "leased"
    return {
        "connection": key.hex(),
        "device": connection.device,
        "slot": connection.slot,
        "epoch": connection.epoch,
        "gateway": gateway,
        "since": connection.since,
        "heard_at": connection.heard_at,
        "gone_at": connection.gone_at,
    }


async def _received(site: Site, user: str, bodies: bool) -> tuple[list[dict[str, Any]], str | None]:
    try:
        page = await site.history.range(user, ORIGIN, END, None, LAST)
    except HistoryUnavailable as error:
        return [], str(error)
    found = []
    for text in reversed(page.messages):
        message = json.loads(text)
        body = message.get("body")
        found.append(
            {
                **{name: message.get(name) for name in ("pos", "id", "from", "at")},
                "size": len(text),
                "body": json.dumps(body, ensure_ascii=False)[:2000] if bodies else None,
            }
        )
    return found, None


async def _sent(site: Site, user: str) -> tuple[list[dict[str, Any]], str]:
    needle, found = user.encode(), deque[dict[str, Any]](maxlen=LAST)
    async with LogReader(site.settings) as reader:
        spans = await reader.spans(INCOMING_MESSAGES, since_ms=now_ms() - OUT_MS)
        spans = [Span(s.topic, s.partition, max(s.first, s.end - OUT_RECORDS), s.end) for s in spans]
        async for record in reader.read(spans):
            if record.value is None or needle not in record.value:
                continue
            try:
                messages = INCOMING.decode(record.value).messages
            except (Undecodable, UnknownVersion):
                continue
            found.extend(
                {"to": m.to, "id": m.id, "at": utc(m.at), "size": len(m.json)} for m in messages if m.sender == user
            )
    searched = f"the newest {sum(s.end - s.first for s in spans):,} records of {INCOMING_MESSAGES}, at most 15 min"
    return sorted(found, key=lambda m: str(m["at"]), reverse=True), searched
