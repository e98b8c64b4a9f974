"""The page of topics, partitions and consumer groups: rates, bytes, and lag in messages, seconds and time to empty."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from chat_streams.inspector.access import Viewer
from chat_streams.inspector.collector import TOPICS
from chat_streams.inspector.site import Answer, Site
from chat_streams.operations.lag import summary
from chat_streams.operations.lag_reader import GROUPS


def register(site: Site) -> None:
    """Add ``/streams``."""

    async def model(request: web.Request, viewer: Viewer) -> Answer:
        c = site.collector
        c.watch()
        return Answer(
            {"topics": [_topic(site, topic) for topic in TOPICS], "groups": summary(c.watermarks, c.lags, GROUPS)}
        )

    site.page("/streams", "streams.html", model, live="_streams.html")


def _topic(site: Site, topic: str) -> dict[str, Any]:
    c = site.collector
    tps = [tp for tp in c.watermarks.ends if tp.topic == topic]
    sample = c.samples.get(topic)
    records = sum(c.watermarks.rate(tp) for tp in tps)
    return {
        "topic": topic,
        "partitions": len(tps),
        "end": sum(c.watermarks.ends[tp] for tp in tps),
        "records_per_s": records,
        "messages_per_s": records * sample.messages if sample else None,
        "bytes_per_s": records * sample.size if sample else None,
        "rows": [
            {
                "partition": tp.partition,
                "end": c.watermarks.ends[tp],
                "records_per_s": c.watermarks.rate(tp),
                "messages_per_s": c.watermarks.rate(tp) * sample.messages if sample else None,
                "bytes_per_s": c.watermarks.rate(tp) * sample.size if sample else None,
            }
            for tp in sorted(tps)
        ],
    }
