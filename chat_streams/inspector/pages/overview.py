"""The first page: the state of engines and services, rates, lag, and whether the message counts add up."""

from __future__ import annotations

from aiohttp import web

from chat_streams.inspector.access import Viewer
from chat_streams.inspector.pages.guarantee import audit_of, verdict
from chat_streams.inspector.site import Answer, Site
from chat_streams.model.times import now_ms
from chat_streams.operations.lag_reader import GROUPS

RATES = ("accepted", "delivered", "acknowledged")


def register(site: Site) -> None:
    """Add ``/``."""

    async def model(request: web.Request, viewer: Viewer) -> Answer:
        c = site.collector
        living = c.series.living(now_ms())
        gateways = [r for r in living if r.service == "gateway"]
        rates = {name: sum(c.series.rate(r.instance, name) or 0.0 for r in living) for name in RATES}
        latencies = [r.gauges["latency_p99_ms"] for r in gateways if "latency_p99_ms" in r.gauges]
        return Answer(
            {
                "engine_states": [vars(e) for e in c.engines.values()],
                "rates": rates,
                "connections": sum(int(r.gauges.get("connections", 0)) for r in gateways),
                "latency_p99_ms": max(latencies, default=None),
                "lag": {group: c.watermarks.lag(group) for group in GROUPS},
                "services": {
                    name: sum(r.service == name for r in living)
                    for name in ("gateway", "messaging", "notification", "history")
                },
                "dead_letters": sum(end for tp, end in c.watermarks.ends.items() if tp.topic == "dead_letters"),
                "audit": audit_of(site),
                "live": verdict(c.series.ledger),
            }
        )

    site.page("/", "overview.html", model, live="_overview.html")
