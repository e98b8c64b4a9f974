"""The search box, which leads to the page of a user, message, connection, slot, record or dead letter."""

from __future__ import annotations

import contextlib
import re
from typing import Final
from urllib.parse import quote

from aiohttp import web

from chat_streams.inspector.access import Viewer
from chat_streams.inspector.site import Answer, Site
from chat_streams.model.errors import RedisUnavailable
from chat_streams.model.ids import is_id
from tables import inbox_view

TOPIC: Final = re.compile(r"([a-z][a-z_-]+)/([0-9]{1,5})/([0-9]{1,13})", re.ASCII)
SLOT: Final = re.compile(r"(?:gateway|slot|g)[ :-]?([0-9]{1,5})", re.ASCII)
CONNECTION: Final = re.compile(r"(?:connection:)?([0-9a-f]{8}|[0-9a-f]{32})", re.ASCII)
PREFIX: Final = re.compile(r"(user|message|letter):\s*(.+)", re.ASCII)
MAX_QUERY: Final = 256


def goal(text: str) -> str | None:
    """Return the path of the page that a text stands for; ``None`` if it could be that of several pages."""
    if match := TOPIC.fullmatch(text):
        return f"/record/{match[1]}/{match[2]}/{match[3]}"
    if match := SLOT.fullmatch(text):
        return f"/gateways#slot-{match[1]}"
    if match := PREFIX.fullmatch(text):
        page = {"user": "user", "message": "message", "letter": "dead-letters"}[match[1]]
        return f"/{page}/{quote(match[2], safe='')}"
    return f"/connection/{match[1]}" if (match := CONNECTION.fullmatch(text)) else None


def register(site: Site) -> None:
    """Add ``/search?q=``."""

    async def model(request: web.Request, viewer: Viewer) -> Answer:
        text = request.query.get("q", "").strip()[:MAX_QUERY]
        if not text:
            raise web.HTTPSeeOther("/")
        if (path := goal(text)) is not None and not request.path.startswith("/api/"):
            raise web.HTTPSeeOther(path)
        inbox = None
        with contextlib.suppress(RedisUnavailable):
            # Without Redis a message can still be found; the page says that Redis is away.
            inbox = await inbox_view.look(site.cluster, text) if is_id(text) else None
        return Answer(
            {
                "query": text,
                "goal": path,
                "user": text if inbox is not None and inbox.known else None,
                "inbox": inbox._asdict() if inbox is not None and inbox.known else None,
                "is_id": is_id(text),
            }
        )

    site.page("/search", "search.html", model)
