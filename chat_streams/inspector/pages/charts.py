"""The page of charts of the last hour, in points of 5 s; they come from ``service_stats`` and survive a restart."""

from __future__ import annotations

from aiohttp import web

from chat_streams.inspector.access import Viewer
from chat_streams.inspector.site import Answer, Site


def register(site: Site) -> None:
    """Add ``/charts``."""

    async def model(request: web.Request, viewer: Viewer) -> Answer:
        events = [e._asdict() for e in site.collector.series.events]
        return Answer({"columns": site.collector.series.chart(), "events": events})

    site.page("/charts", "charts.html", model)
