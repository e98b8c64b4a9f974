"""The page of the gateways: slots and leases from Redis, and their statistics: connections, rates, stalls, closes."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from chat_streams.inspector.access import Viewer
from chat_streams.inspector.site import Answer, Site
from chat_streams.model.codes import STANDARD_CLOSES, Close
from chat_streams.runtime.statistics import ServiceStats

MEANINGS = {int(code): code.meaning for code in Close} | STANDARD_CLOSES | {0: "any other"}


def register(site: Site) -> None:
    """Add ``/gateways``."""

    async def model(request: web.Request, viewer: Viewer) -> Answer:
        c = site.collector
        gateways = [_gateway(site, r) for r in c.living() if r.service == "gateway"]
        by_slot = {(g["slot"], g["epoch"]): g["instance"] for g in gateways}
        slots = [
            {
                "slot": s.slot,
                "epoch": s.epoch,
                "ttl_ms": s.ttl_ms,
                "instance": by_slot.get((s.slot, s.epoch)),
            }
            for s in c.slots
        ]
        held = {(s.slot, s.epoch) for s in c.slots}
        for gateway in gateways:
            gateway["leased"] = (gateway["slot"], gateway["epoch"]) in held
        return Answer({"gateways": gateways, "slots": slots, "all_slots": site.settings.slots})

    site.page("/gateways", "gateways.html", model, live="_gateways.html")


def _gateway(site: Site, record: ServiceStats) -> dict[str, Any]:
    gauges, series = record.gauges, site.collector.series
    codes = {int(name[7:]): count for name, count in record.counters.items() if name.startswith("closed_")}
    return {
        "instance": record.instance,
        "started_at": record.started_at,
        "at": record.at,
        "slot": int(gauges["slot"]) if "slot" in gauges else None,
        "epoch": int(gauges["epoch"]) if "epoch" in gauges else None,
        "connections": int(gauges.get("connections", 0)),
        "accepted_per_s": series.rate(record.instance, "accepted"),
        "delivered_per_s": series.rate(record.instance, "delivered"),
        "refused": record.counters.get("refused", 0),
        "stalls": record.counters.get("stalls", 0),
        "latency_p50_ms": gauges.get("latency_p50_ms"),
        "latency_p99_ms": gauges.get("latency_p99_ms"),
        "produce_buffer_bytes": int(gauges.get("produce_buffer_bytes", 0)),
        "close_codes": [
            {"code": code, "meaning": MEANINGS.get(code, ""), "count": count} for code, count in sorted(codes.items())
        ],
    }
