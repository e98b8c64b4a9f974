"""The first page: the state of engines and services, rates, lag, and whether the message counts add up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from chat_streams.inspector.access import Viewer
from chat_streams.inspector.pages.guarantee import audit_of, verdict
from chat_streams.inspector.site import Answer, Site
from chat_streams.kafka.log_clock import MOST_SKEW_S
from chat_streams.operations.lag_reader import GROUPS
from chat_streams.runtime.statistics import ServiceStats

RATES = ("accepted", "delivered", "acknowledged")


def wrong_clocks(living: Sequence[ServiceStats]) -> list[dict[str, Any]]:
    """Return the instances whose machine's clock differs from Kafka's, and by how much it is ahead, in s."""
    skews = {record.instance: record.gauges.get("clock_skew_s", 0.0) for record in living}
    return [{"instance": name, "ahead_s": skew} for name, skew in skews.items() if abs(skew) > MOST_SKEW_S]


def register(site: Site) -> None:
    """Add ``/``."""

    async def model(request: web.Request, viewer: Viewer) -> Answer:
        c = site.collector
        living = c.living()
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
                "clocks": wrong_clocks(living),
            }
        )

    site.page("/", "overview.html", model, live="_overview.html")
