"""The page of a connection, by its id or the first 8 digits of it: its user, device, start, end and slot's lease."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from chat_streams.inspector.access import Viewer
from chat_streams.inspector.site import Answer, NotFound, Site
from chat_streams.kafka.log_reader import LogReader
from chat_streams.kafka.names import SESSION_EVENTS
from chat_streams.model.errors import UndecodableRecord, UnknownVersion
from chat_streams.model.records import SESSIONS
from chat_streams.operations.journey import Connection, observe_session
from chat_streams.operations.user_state import as_json

HOURS: Final = 24
"""The part of ``session_events`` that is searched, in hours."""


def register(site: Site) -> None:
    """Add ``/connection/{id}``."""

    async def model(request: web.Request, viewer: Viewer) -> Answer:
        text = request.match_info["id"].lower()
        try:
            needle = bytes.fromhex(text)
        except ValueError as error:
            raise NotFound(f"{text[:60]!r} is no connection: 8 or 32 hex digits are") from error
        user, found = "", dict[bytes, Connection]()
        async with LogReader(site.settings) as reader:
            spans = await reader.spans(SESSION_EVENTS, since_ms=await reader.now_ms() - HOURS * 3600 * 1000)
            async for record in reader.read(spans):
                if record.value is None or needle not in record.value:
                    continue
                try:
                    events = SESSIONS.decode(record.value)
                except (UndecodableRecord, UnknownVersion):
                    continue
                for event in events:
                    if not event.connection.startswith(needle):
                        continue
                    user = event.user
                    observe_session(found, event, record.at)
        if not found:
            count = sum(s.end - s.first for s in spans)
            raise NotFound(f"There is no connection {text} in {count:,} records of {SESSION_EVENTS}, {HOURS} h back.")
        rows: list[dict[str, Any]] = [as_json(key, c, site.collector.leases) for key, c in found.items()]
        return Answer({"id": text, "user": user, "connections": rows})

    site.page("/connection/{id}", "connection.html", model, needs=("Kafka",))
