"""The state of a user in the stores and the log, for the command and the inspector's page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from chat_streams.kafka.log_reader import LogReader
from chat_streams.kafka.names import SESSION_EVENTS, partition_of
from chat_streams.model.errors import (
    HistoryUnavailable,
    KafkaUnavailable,
    RedisUnavailable,
    UndecodableRecord,
    UnknownUser,
    UnknownVersion,
)
from chat_streams.model.position import MAX_INDEX, ORIGIN, Position
from chat_streams.model.records import SESSIONS
from chat_streams.operations.journey import Connection, Journey, Name
from chat_streams.operations.leases import Slot
from chat_streams.runtime.settings import Settings
from tables import inbox_view
from tables.chat_history import ChatHistory
from tables.redis_cluster import Cluster

LAST: Final = 20
"""The number of messages, and of connections, that are shown: the latest."""
KAFKA_S: Final = 8.0
"""Seconds after which reading the log is given up."""
END: Final = Position(2**63, MAX_INDEX)
"""A position above all others."""


@dataclass(frozen=True)
class Sources:
    """The engines to ask about a user; ``kafka_away`` is the reason not to read the log, empty if there is none."""

    settings: Settings
    cluster: Cluster
    history: ChatHistory
    kafka_away: str = ""


async def look(sources: Sources, user: str, slots: Sequence[Slot] | None, bodies: bool) -> dict[str, Any]:
    """Return all that is known of a user as JSON values, times in ms since the epoch; raises ``UnknownUser``.

    ``slots`` are the gateways' leases, ``None`` while Redis does not answer. If an engine is away, its part is empty,
    and ``inbox_error``, ``connections_error`` or ``history_error`` gives the reason.
    """
    settings = sources.settings
    (inbox, inbox_error), ((connections, now), connections_error), (messages, history_error) = await asyncio.gather(
        _inbox(sources, user), _connections(sources, user), _received(sources, user, bodies)
    )
    errors = [error for error in (inbox_error, connections_error, history_error) if error]
    partition = partition_of(user, settings.partitions)
    if not inbox.known and not connections and not messages and not errors:
        raise UnknownUser(
            f"There is no user {user}: no inbox and no devices in Redis, no connection in the last"
            f" {2 * settings.announce_sweep:g} s of {SESSION_EVENTS}/{partition}, and no message in the"
            " chat database. Who never connected and was never written to is nowhere."
        )
    sweep = int(settings.announce_sweep * 2000)
    leases = {(slot.slot, slot.epoch) for slot in slots or ()}
    # A gateway that was killed announced no disconnections: its connections end with its lease. Without Redis the
    # leases are not known.
    living = [
        c
        for c in connections.values()
        if c.gone_at is None and now - c.heard_at <= sweep and (slots is None or (c.slot, c.epoch) in leases)
    ]
    return {
        "user": user,
        "partition": partition,
        "online": bool(living),
        "last_seen": max((c.gone_at or c.heard_at for c in connections.values()), default=None),
        "inbox": inbox._asdict(),
        "oldest_ms": inbox.oldest_at * 1000 if inbox.oldest_at else None,
        "connections": [as_json(key, c, slots) for key, c in connections.items()][-LAST:],
        "received": messages,
        "inbox_error": inbox_error,
        "connections_error": connections_error,
        "history_error": history_error,
    }


async def _inbox(sources: Sources, user: str) -> tuple[inbox_view.InboxView, str | None]:
    try:
        return await inbox_view.look(sources.cluster, user), None
    except RedisUnavailable as error:
        return inbox_view.NOTHING, f"Redis does not answer: {error}"


async def _connections(sources: Sources, user: str) -> tuple[tuple[dict[bytes, Connection], int], str | None]:
    if sources.kafka_away:
        return ({}, 0), sources.kafka_away
    try:
        async with asyncio.timeout(KAFKA_S), LogReader(sources.settings) as reader:
            return await _connections_of(sources.settings, reader, user), None
    except (KafkaUnavailable, TimeoutError) as error:
        return ({}, 0), f"Kafka does not answer: {error!r}"


async def _connections_of(settings: Settings, reader: LogReader, user: str) -> tuple[dict[bytes, Connection], int]:
    """Return a user's connections by the log of the last two sweeps, and the log's time (ms since the epoch).

    An open connection is announced once in each sweep.
    """
    journey = Journey(Name("", user, ""), [])
    needle = user.encode()
    now = await reader.now_ms()
    since = now - int(settings.announce_sweep * 2000)
    partition = partition_of(user, settings.partitions)
    async for record in reader.read(await reader.spans(SESSION_EVENTS, [partition], since_ms=since)):
        if record.value is not None and needle in record.value:
            try:
                journey.add_sessions(SESSIONS.decode(record.value), record.at)
            except (UndecodableRecord, UnknownVersion):
                continue
    return journey.connections, now


def as_json(key: bytes, connection: Connection, slots: Sequence[Slot] | None) -> dict[str, Any]:
    """Return a connection as JSON values; ``gateway`` states whether its slot is leased in its epoch."""
    lease = next((s for s in slots or () if s.slot == connection.slot), None)
    if slots is None:
        gateway = "unknown: Redis does not answer"
    elif lease is None:
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


async def _received(sources: Sources, user: str, bodies: bool) -> tuple[list[dict[str, Any]], str | None]:
    try:
        page = await sources.history.range(user, ORIGIN, END, None, LAST)
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
