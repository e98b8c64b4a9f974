"""The page of a user: their devices, connections and inbox, and the latest messages to and from them."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from aiohttp import web

from chat_streams.inspector.access import Viewer
from chat_streams.inspector.site import Answer, NotFound, Site
from chat_streams.kafka.log_reader import LogReader, Span
from chat_streams.kafka.names import INCOMING_MESSAGES
from chat_streams.model.errors import UndecodableRecord, UnknownUser, UnknownVersion
from chat_streams.model.ids import is_id
from chat_streams.model.records import INCOMING
from chat_streams.model.times import utc
from chat_streams.operations import user_state
from chat_streams.operations.user_state import LAST, Sources

OUT_RECORDS: Final = 2_000
"""The number of records of each partition, the newest, that are searched for messages from a user."""
OUT_MS: Final = 15 * 60 * 1000
"""The age in ms up to which records are searched for messages from a user."""


def register(site: Site) -> None:
    """Add ``/user/{user}``, and ``/sent-by/{user}``, which is slower because it searches the log."""

    async def model(request: web.Request, viewer: Viewer) -> Answer:
        user = request.match_info["user"]
        if not is_id(user):
            raise NotFound(f"{user[:60]!r} is no user id: 1-128 characters of A-Z a-z 0-9 . _ ~ @ : -")
        kafka = site.collector.engines["Kafka"]
        away = f"Kafka is away since {utc(kafka.since)}" if kafka.up is False else ""
        sources = Sources(site.settings, site.cluster, site.history, away)
        try:
            return Answer(await user_state.look(sources, user, site.collector.leases, viewer.bodies))
        except UnknownUser as error:
            raise NotFound(str(error)) from error

    async def sent(request: web.Request, viewer: Viewer) -> Answer:
        user = request.match_info["user"]
        found, searched = await _sent(site, user)
        return Answer({"user": user, "sent": found, "searched": searched})

    site.page("/user/{user}", "user.html", model, live="_user.html")
    site.page("/sent-by/{user}", "_sent.html", sent, needs=("Kafka",))


async def _sent(site: Site, user: str) -> tuple[list[dict[str, Any]], str]:
    needle, found = user.encode(), deque[dict[str, Any]](maxlen=LAST)
    async with LogReader(site.settings) as reader:
        spans = await reader.spans(INCOMING_MESSAGES, since_ms=await reader.now_ms() - OUT_MS)
        spans = [Span(s.topic, s.partition, max(s.first, s.end - OUT_RECORDS), s.end) for s in spans]
        async for record in reader.read(spans):
            if record.value is None or needle not in record.value:
                continue
            try:
                messages = INCOMING.decode(record.value).messages
            except (UndecodableRecord, UnknownVersion):
                continue
            found.extend(
                {"to": m.to, "id": m.id, "at": utc(m.time_in(record.at)), "size": len(m.json)}
                for m in messages
                if m.sender == user
            )
    searched = f"the newest {sum(s.end - s.first for s in spans):,} records of {INCOMING_MESSAGES}, at most 15 min"
    return sorted(found, key=lambda m: str(m["at"]), reverse=True), searched
