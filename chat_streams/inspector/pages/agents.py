"""The page of the workers of each Faust app: their agents, partitions, tables and rebalances."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from chat_streams.inspector.access import Viewer
from chat_streams.inspector.site import Answer, Site
from chat_streams.runtime.statistics import ServiceStats

SERVICES = ("messaging", "notification", "history")


def register(site: Site) -> None:
    """Add ``/agents``."""

    async def model(request: web.Request, viewer: Viewer) -> Answer:
        living = site.collector.living()
        return Answer(
            {
                "workers": [_worker(site, r) for r in living if r.service in SERVICES],
                "missing": [name for name in SERVICES if not any(r.service == name for r in living)],
                "events": [e._asdict() for e in reversed(site.collector.series.events)][:30],
            }
        )

    site.page("/agents", "agents.html", model, live="_agents.html")


def _worker(site: Site, record: ServiceStats) -> dict[str, Any]:
    before = site.collector.series.before.get(record.instance)
    seconds = (record.at - before.at) / 1000 if before and before.started_at == record.started_at else 0
    old = {a.topic: a.records for a in before.agents} if before else {}
    agents = [
        msgspec.to_builtins(a) | {"records_per_s": (a.records - old.get(a.topic, 0)) / seconds if seconds else None}
        for a in record.agents
    ]
    return {
        "service": record.service,
        "instance": record.instance,
        "started_at": record.started_at,
        "at": record.at,
        "agents": agents,
        "partitions": record.partitions,
        "counters": record.counters,
        "tables": {k.removeprefix("table_"): int(v) for k, v in record.gauges.items() if k.startswith("table_")},
        "recovering": bool(record.gauges.get("recovering")),
        "rebalancing": bool(record.gauges.get("rebalancing")),
        "rebalances": int(record.gauges.get("rebalances", 0)),
    }
