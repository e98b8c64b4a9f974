"""The tail of a topic, live. Everything is counted; of what matches, so much is shown as eyes can follow.

Where it goes on is in the id of each event, as offsets: a browser that comes back goes on there, also after a restart
of the inspector. Each viewer has a consumer of their own, only while they look.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from chat_streams.inspector.access import Viewer
from chat_streams.inspector.collector import OTHER_TOPICS, REQUEST_S, TOPICS
from chat_streams.inspector.reading import decoded
from chat_streams.inspector.sampling import count_of
from chat_streams.inspector.site import HEARTBEAT_S, Answer, Site
from chat_streams.log_reader import LogUnavailable
from chat_streams.records import now_ms
from chat_streams.topics import INBOX_REQUESTS, INCOMING_MESSAGES, SESSION_EVENTS, partition_of

TAILS: Final = (*TOPICS, *OTHER_TOPICS)
BY_USER: Final = (INCOMING_MESSAGES, SESSION_EVENTS, INBOX_REQUESTS)
SHOWN_PER_S: Final = 40
"""Things shown a second; what is more is counted."""
MAX_TAILS: Final = 8
EVERY_S: Final = 0.5
BEHIND: Final = 5_000
"""Records that a tail may be behind; then it goes on at the end, and counts what it left out."""
POLL_RECORDS: Final = 500


@dataclass(frozen=True)
class Filters:
    """What is shown: each text must be in the thing, ``header`` in one of the record's headers."""

    topic: str
    user: str
    sender: str
    type: str
    header: str

    @classmethod
    def of(cls, request: web.Request) -> Filters:
        """The filters of a request."""
        q = request.query
        topic = q.get("topic", TAILS[0])
        return cls(
            topic if topic in TAILS else TAILS[0], *(q.get(n, "")[:128] for n in ("user", "sender", "type", "header"))
        )

    def may_match(self, value: bytes | None, headers: Any) -> bool:
        """Whether a record may hold something that matches, without decoding it."""
        text = value or b""
        return (
            (not self.user or self.user.encode() in text)
            and (not self.sender or self.sender.encode() in text)
            and (not self.header or any(self.header in f"{n}={v.decode(errors='replace')}" for n, v in headers))
        )

    def matches(self, item: dict[str, Any]) -> bool:
        """Whether one thing does."""
        return (
            (not self.user or self.user in (item.get("to"), item.get("user")))
            and (not self.sender or item.get("from") == self.sender)
            and (not self.type or self.type in str(item.get("type", "message")))
        )


def register(site: Site) -> None:
    """Add ``/tail`` and its events."""
    open_tails = [0]

    async def model(request: web.Request, viewer: Viewer) -> Answer:
        filters = Filters.of(request)
        return Answer({"filters": vars(filters), "topic_names": TAILS, "minutes": request.query.get("minutes", "")})

    async def events(request: web.Request) -> web.StreamResponse:
        if open_tails[0] >= MAX_TAILS:
            raise web.HTTPServiceUnavailable(text=f"{MAX_TAILS} tails are open already", headers={"Retry-After": "5"})
        open_tails[0] += 1
        try:
            return await site.events(request, _tail(site, request))
        finally:
            open_tails[0] -= 1

    site.page("/tail", "tail.html", model)
    site.router.add_get("/live/tail", events)


def partitions_of(filters: Filters, site: Site) -> list[int]:
    """The partitions to read: one, where a user is asked for whose place is known."""
    if filters.user and filters.topic in BY_USER:
        return [partition_of(filters.user, site.settings.partitions)]
    return list(range(site.collector.partitions(filters.topic)))


def positions(text: str) -> dict[int, int]:
    """The offsets an event's id stands for: ``0:17,3:2``; what is none is left out."""
    found = {}
    for part in text[:4000].split(","):
        partition, _, offset = part.partition(":")
        if partition.isdigit() and offset.isdigit():
            found[int(partition)] = int(offset)
    return found


async def _tail(site: Site, request: web.Request) -> AsyncIterator[tuple[str, str, str]]:
    filters, viewer = Filters.of(request), request["viewer"]
    minutes = request.query.get("minutes", "")
    ends_at = time.monotonic() + 60 * min(int(minutes), 120) if minutes.isdigit() else None
    tps = [TopicPartition(filters.topic, p) for p in partitions_of(filters, site)]
    consumer = AIOKafkaConsumer(
        bootstrap_servers=site.settings.kafka, enable_auto_commit=False, fetch_max_bytes=4 * 1024 * 1024
    )
    try:
        async with asyncio.timeout(REQUEST_S):
            await consumer.start()
            consumer.assign(tps)
            ends = await consumer.end_offsets(tps)
        before = positions(request.headers.get("Last-Event-ID", ""))
        at = {tp: min(before.get(tp.partition, end), end) for tp, end in ends.items()}
        for tp, offset in at.items():
            consumer.seek(tp, offset)
        async for event in _read(consumer, at, filters, viewer, ends_at):
            yield event
    except (KafkaError, OSError, TimeoutError, LogUnavailable) as error:
        yield "", "away", f"Kafka is away: {type(error).__name__}"
    finally:
        await consumer.stop()


async def _read(
    consumer: AIOKafkaConsumer, at: dict[TopicPartition, int], filters: Filters, viewer: Viewer, ends_at: float | None
) -> AsyncIterator[tuple[str, str, str]]:
    counts = {"records": 0, "things": 0, "matching": 0, "shown": 0, "dropped": 0, "skipped": 0}
    room, refilled, shown, said, told = float(SHOWN_PER_S), time.monotonic(), list[dict[str, Any]](), 0.0, 0
    while ends_at is None or time.monotonic() < ends_at:
        now = time.monotonic()
        room, refilled = min(SHOWN_PER_S, room + (now - refilled) * SHOWN_PER_S), now
        for tp, records in (await consumer.getmany(timeout_ms=250, max_records=POLL_RECORDS)).items():
            for record in records:
                counts["records"] += 1
                size = count_of(tp.topic, record.value)
                counts["things"] += size
                if not filters.may_match(record.value, record.headers):
                    continue
                if room < 1:
                    counts["matching"] += size
                    counts["dropped"] += size
                    continue
                for item in _items(record, filters, viewer.bodies):
                    counts["matching"] += 1
                    if room >= 1:
                        room -= 1
                        counts["shown"] += 1
                        shown.append(item)
                    else:
                        counts["dropped"] += 1
            at[tp] = records[-1].offset + 1
        for tp in at:
            end = consumer.highwater(tp)
            if end is not None and end - at[tp] > BEHIND:
                counts["skipped"] += end - at[tp]
                at[tp] = end
                consumer.seek(tp, end)
        quiet = not shown and counts["records"] == told
        # Eyes follow two changes a second.
        if now - said > (HEARTBEAT_S if quiet and said else EVERY_S):
            said, told = now, counts["records"]
            id_ = ",".join(f"{tp.partition}:{offset}" for tp, offset in at.items())
            yield id_, "tail", json.dumps({"counts": counts, "items": shown, "at": now_ms()}, ensure_ascii=False)
            shown = []
    yield "", "end", "the time is over"


def _items(record: Any, filters: Filters, bodies: bool) -> list[dict[str, Any]]:
    place = {"partition": record.partition, "offset": record.offset, "at": record.timestamp}
    items, problem = decoded(record.topic, record.value, bodies)
    if items is None:
        if filters.user or filters.sender or filters.type:
            return []
        return [place | {"what": "undecodable", "text": f"{problem}: {(record.value or b'')[:48].hex(' ')}"}]
    return [
        place
        | {
            "what": str(item.get("type", "message")),
            "id": item.get("id"),
            "text": " · ".join(f"{k} {_text(v)}" for k, v in item.items() if k not in ("type", "at_ms", "id"))[:600],
        }
        for item in items
        if filters.matches(item)
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
