"""Topics, partitions and groups, live: rate, bytes, and lag in messages, in seconds and as time to empty."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from aiokafka.structs import TopicPartition

from chat_streams.inspector.access import Viewer
from chat_streams.inspector.collector import GROUPS, TOPICS
from chat_streams.inspector.site import Answer, Site


def register(site: Site) -> None:
    """Add ``/streams``."""

    async def model(request: web.Request, viewer: Viewer) -> Answer:
        site.collector.watch()
        return Answer({"topics": [_topic(site, topic) for topic in TOPICS], "groups": _groups(site)})

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


def _groups(site: Site) -> list[dict[str, Any]]:
    found = []
    for group, topics in GROUPS.items():
        for topic in topics:
            rows = [
                _partition(site, group, tp)
                for tp in sorted(site.collector.watermarks.committed.get(group, {}))
                if tp.topic == topic
            ]
            behind = [row for row in rows if row["records"]]
            empty = [row["time_to_empty_s"] for row in behind]
            messages = [row["messages"] for row in behind]
            found.append(
                {
                    "group": group,
                    "topic": topic,
                    "records": sum(row["records"] for row in rows),
                    "messages": None if None in messages else sum(messages),
                    "exact": all(row["exact"] for row in behind),
                    "seconds": max((row["seconds"] for row in behind if row["seconds"] is not None), default=0.0),
                    "time_to_empty_s": None if None in empty else max(empty, default=0.0),
                    "partitions": rows,
                }
            )
    return found


def _partition(site: Site, group: str, tp: TopicPartition) -> dict[str, Any]:
    marks = site.collector.watermarks
    behind = marks.behind(group, tp)
    lag = site.collector.lags.get((group, tp.topic, tp.partition)) if behind else None
    return {
        "partition": tp.partition,
        "committed": marks.committed[group][tp],
        "end": marks.ends.get(tp, 0),
        "records": behind,
        "messages": lag.messages if lag else (None if behind else 0),
        "exact": lag.exact if lag else not behind,
        "seconds": lag.seconds if lag else (None if behind else 0.0),
        "time_to_empty_s": marks.time_to_empty(group, tp),
    }
