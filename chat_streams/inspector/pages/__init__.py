"""The pages, one module each: a page is a model, whose values go to its template and to the JSON API."""

from __future__ import annotations

from chat_streams.inspector.pages import (
    agents,
    charts,
    connection,
    dead_letters,
    gateways,
    guarantee,
    journey,
    login,
    overview,
    record,
    search,
    streams,
    tail,
    user,
)
from chat_streams.inspector.site import Site


def register(site: Site) -> None:
    """Add all pages to a site."""
    for module in (
        *(login, overview, search, journey, user, connection, record, streams, tail),
        *(agents, gateways, dead_letters, guarantee, charts),
    ):
        module.register(site)
