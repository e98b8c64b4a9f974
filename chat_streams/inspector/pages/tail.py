"""The tail of a topic, live: as much as eyes can follow, and a count of all the rest.

Where it goes on is in the id of each event, as offsets: a browser that comes back goes on there, also after a restart
of the inspector.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from chat_streams.inspector.access import Viewer
from chat_streams.inspector.collector import OTHER_TOPICS, TOPICS
from chat_streams.inspector.feed import Feeds, Follower, Read
from chat_streams.inspector.live import HEARTBEAT_S, Event
from chat_streams.inspector.reading import field_of, shown
from chat_streams.inspector.site import Answer, Site
from chat_streams.kafka.names import INBOX_REQUESTS, INCOMING_MESSAGES, SESSION_EVENTS, partition_of
from chat_streams.model.times import now_ms, utc

TAILS: Final = (*TOPICS, *OTHER_TOPICS)
BY_USER: Final = (INCOMING_MESSAGES, SESSION_EVENTS, INBOX_REQUESTS)
SHOWN_PER_S: Final = 40
"""Things shown a second; what is more is counted."""
MAX_TAILS: Final = 8
MAX_MINUTES: Final = 120
EVERY_S: Final = 0.5
"""Eyes follow two changes a second."""


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

    def matches(self, thing: Any) -> bool:
        """Whether one thing does."""
        return (
            (not self.user or self.user in (field_of(thing, "to"), field_of(thing, "user")))
            and (not self.sender or field_of(thing, "sender") == self.sender)
            and (not self.type or self.type in field_of(thing, "type"))
        )

    @property
    def of_things(self) -> bool:
        """Whether anything is asked of the things in a record."""
        return bool(self.user or self.sender or self.type)


class View:
    """What one viewer is shown of what is read, and counts of it; times in s of a monotonic clock."""

    def __init__(self, filters: Filters, bodies: bool, now: float) -> None:
        self.counts: Counter[str] = Counter(records=0, things=0, matching=0, shown=0, dropped=0)
        self.items: list[dict[str, Any]] = []
        self._filters, self._bodies = filters, bodies
        self._room, self._refilled = float(SHOWN_PER_S), now

    def refill(self, now: float) -> None:
        """Make room for what may be shown since the last time."""
        self._room = min(SHOWN_PER_S, self._room + (now - self._refilled) * SHOWN_PER_S)
        self._refilled = now

    def take(self, read: Read) -> None:
        """Count a record, and show of it what matches, as far as there is room."""
        record, filters = read.record, self._filters
        self.counts["records"] += 1
        self.counts["things"] += read.count
        if not filters.may_match(record.value, record.headers):
            return
        if self._room < 1 and not filters.of_things:
            self._count(read.count, [])
        elif isinstance(read.things, str):
            if not filters.of_things:
                text = f"{read.things}: {(record.value or b'')[:48].hex(' ')}"
                self._count(1, [{"what": "undecodable", "text": text}], record)
        else:
            things = [t for t in read.things if filters.matches(t)] if filters.of_things else read.things
            self._count(len(things), [_item(shown(t, self._bodies)) for t in things[: int(self._room)]], record)

    def _count(self, matching: int, items: list[dict[str, Any]], record: Any = None) -> None:
        self._room -= len(items)
        self.counts.update(matching=matching, shown=len(items), dropped=matching - len(items))
        self.items += [
            {"partition": record.partition, "offset": record.offset, "at": record.at} | item for item in items
        ]


def register(site: Site) -> None:
    """Add ``/tail`` and its events."""
    feeds = Feeds(site.settings)
    open_tails = [0]

    async def model(request: web.Request, viewer: Viewer) -> Answer:
        filters = Filters.of(request)
        return Answer({"filters": vars(filters), "topic_names": TAILS, "minutes": request.query.get("minutes", "")})

    async def events(request: web.Request) -> web.StreamResponse:
        if open_tails[0] >= MAX_TAILS:
            raise web.HTTPServiceUnavailable(text=f"{MAX_TAILS} tails are open already", headers={"Retry-After": "5"})
        open_tails[0] += 1
        try:
            return await site.live.events(request, _tail(site, feeds, request))
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


async def _tail(site: Site, feeds: Feeds, request: web.Request) -> AsyncIterator[Event]:
    filters, kafka = Filters.of(request), site.collector.engines["Kafka"]
    minutes = request.query.get("minutes", "")
    ends_at = time.monotonic() + (60 * min(int(minutes), MAX_MINUTES) if minutes.isdigit() else math.inf)
    # The header is newer where both are there: a browser that reconnects by itself asks for the same address.
    before = positions(request.headers.get("Last-Event-ID") or request.query.get("last_event_id", ""))
    view = View(filters, request["viewer"].bodies, time.monotonic())
    follower = Follower({p: before.get(p) for p in partitions_of(filters, site)}, view.take)
    told, said = None, 0.0
    with feeds.follow(filters.topic, follower) as ended:
        while (now := time.monotonic()) < ends_at:
            if kafka.up is False or ended():
                yield "", "away", f"Kafka is away since {utc(kafka.since)}" if kafka.up is False else ended()
                return
            view.refill(now)
            counts = dict(view.counts, skipped=follower.skipped, skipped_things=round(follower.skipped_things))
            if follower.placed and (counts != told or now - said > HEARTBEAT_S):
                said, told = now, counts
                data = {"counts": counts, "items": view.items, "at": now_ms()}
                view.items = []
                yield follower.place, "tail", json.dumps(data, ensure_ascii=False)
            await asyncio.sleep(EVERY_S)
    yield "", "end", "the time is over"


def _item(values: dict[str, Any]) -> dict[str, Any]:
    text = " · ".join(f"{k} {_text(v)}" for k, v in values.items() if k not in ("type", "at_ms", "id"))
    return {"what": str(values.get("type", "message")), "id": values.get("id"), "text": text[:600]}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
