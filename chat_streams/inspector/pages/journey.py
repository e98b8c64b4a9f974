"""The page of a message: its journey, stage by stage, and the reason if it was not delivered."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from chat_streams.inspector.access import Viewer
from chat_streams.inspector.site import Answer, NotFound, Site
from chat_streams.model.times import utc
from chat_streams.operations.journey import Journey, journey_json, verdict
from chat_streams.operations.journey_reader import Tracer

MOST: Final = 10
TONES: Final = {
    "acknowledged": "good",
    "pending": "wait",
    "in flight": "wait",
    "dead-lettered": "bad",
    "missing": "bad",
}


def register(site: Site) -> None:
    """Add ``/message/{id}``, which answers at once, and ``/journey/{id}``, which it loads, and which reads the log."""

    async def frame(request: web.Request, viewer: Viewer) -> Answer:
        return Answer({"id": request.match_info["id"], "query": request.query_string})

    async def model(request: web.Request, viewer: Viewer) -> Answer:
        id_ = request.match_info["id"]
        sender, to = request.query.get("sender") or None, request.query.get("to") or None
        async with Tracer(site.settings) as tracer:
            found, searched = await tracer.find(id_, sender, to, None)
            if not found:
                raise NotFound(f"There is no message {id_!r}: {searched}")
            journeys = [await _journey(tracer, journey, site) for journey in found[:MOST]]
        return Answer({"id": id_, "journeys": journeys, "more": len(found) - len(journeys)})

    site.page("/message/{id}", "journey.html", frame)
    site.page("/journey/{id}", "_journey.html", model, needs=("Kafka",))


def slots_lost(journey: Journey, leases: set[tuple[int, int]]) -> list[int]:
    """Return the gateway slots of the recipient's open connections that are no longer leased in the same epoch.

    The registry keeps such a connection until the device connects again or the next holder of the slot corrects it.
    """
    return sorted(
        {c.slot for c in journey.connections.values() if c.gone_at is None and (c.slot, c.epoch) not in leases}
    )


async def _journey(tracer: Tracer, journey: Journey, site: Site) -> dict[str, Any]:
    rules = await tracer.follow(journey)
    found = verdict(journey, rules, utc)
    words = found.text
    leases = {(slot.slot, slot.epoch) for slot in site.collector.slots}
    if found.fate == "pending" and site.collector.engines["Redis"].up and (lost := slots_lost(journey, leases)):
        words += f"; the lease of gateway slot {', '.join(map(str, lost))} has ended: its connections are gone"
    return journey_json(journey, found, utc) | {
        "words": words,
        "tone": TONES.get(found.fate, "wait"),
        "hidden_before": utc(rules.sent_from) if journey.first.accepted_at < rules.sent_from else None,
    }
