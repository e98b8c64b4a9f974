"""The page of the live tail of a topic: it shows as many records as people can follow, and counts the others.

The id of each event has the next offsets: a browser that reconnects continues there, also after a restart of the
inspector. A thing is an item of a record, such as a message (``decoding.py``).
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
from chat_streams.inspector.decoding import field_of, shown
from chat_streams.inspector.feed import Feeds, Follower, Read
from chat_streams.inspector.live import HEARTBEAT_S, Event
from chat_streams.inspector.numbers import number_of
from chat_streams.inspector.site import Answer, Site
from chat_streams.kafka.names import INBOX_REQUESTS, INCOMING_MESSAGES, SESSION_EVENTS, partition_of
from chat_streams.model.times import now_ms, utc

TAILS: Final = (*TOPICS, *OTHER_TOPICS)
BY_USER: Final = (INCOMING_MESSAGES, SESSION_EVENTS, INBOX_REQUESTS)
SHOWN_PER_S: Final = 40
"""The largest number of things shown per second; the others are only counted."""
MAX_TAILS: Final = 8
MAX_MINUTES: Final = 120
EVERY_S: Final = 0.5
"""Seconds between two events: people can follow two changes per second."""


@dataclass(frozen=True)
class Filters:
    """The filters of a tail: a thing must match each text that is not empty, a header of its record ``header``."""

    topic: str
    user: str
    sender: str
    type: str
    header: str

    @classmethod
    def of(cls, request: web.Request) -> Filters:
        """Return the filters that a request asks for."""
        q = request.query
        topic = q.get("topic", TAILS[0])
        return cls(
            topic if topic in TAILS else TAILS[0], *(q.get(n, "")[:128] for n in ("user", "sender", "type", "header"))
        )

    def may_match(self, value: bytes | None, headers: Any) -> bool:
        """Return whether a record may hold a thing that matches, without decoding it."""
        text = value or b""
        return (
            (not self.user or self.user.encode() in text)
            and (not self.sender or self.sender.encode() in text)
            and (not self.header or any(self.header in f"{n}={v.decode(errors='replace')}" for n, v in headers))
        )

    def matches(self, thing: Any) -> bool:
        """Return whether a thing matches."""
        return (
            (not self.user or self.user in (field_of(thing, "to"), field_of(thing, "user")))
            and (not self.sender or field_of(thing, "sender") == self.sender)
            and (not self.type or self.type in field_of(thing, "type"))
        )

    @property
    def of_things(self) -> bool:
        """True if any filter concerns the things in a record, so that it must be decoded."""
        return bool(self.user or self.sender or self.type)


class View:
    """The things to show to one viewer, and counts of all that was read; times in s of a monotonic clock."""

    def __init__(self, filters: Filters, bodies: bool, now: float) -> None:
        self.counts: Counter[str] = Counter(records=0, things=0, matching=0, shown=0, dropped=0)
        self.items: list[dict[str, Any]] = []
        self._filters, self._bodies = filters, bodies
        self._room, self._refilled = float(SHOWN_PER_S), now

    def refill(self, now: float) -> None:
        """Add room for the things that may be shown for the time since the last call."""
        self._room = min(SHOWN_PER_S, self._room + (now - self._refilled) * SHOWN_PER_S)
        self._refilled = now

    def take(self, read: Read) -> None:
        """Count a record, and add the things in it that match to ``items``, as far as there is room."""
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
    """Return the partitions to read: only the user's, if the filter names one and the topic is keyed by user."""
    if filters.user and filters.topic in BY_USER:
        return [partition_of(filters.user, site.settings.partitions)]
    return list(range(site.collector.partitions(filters.topic)))


def positions(text: str) -> dict[int, int]:
    """Return the offset of each partition that an event's id names, as in ``0:17,3:2``; invalid parts are ignored."""
    found = {}
    for part in text[:4000].split(","):
        partition, _, offset = part.partition(":")
        number, at = number_of(partition), number_of(offset)
        if number is not None and at is not None:
            found[number] = at
    return found


async def _tail(site: Site, feeds: Feeds, request: web.Request) -> AsyncIterator[Event]:
    filters, kafka = Filters.of(request), site.collector.engines["Kafka"]
    minutes = number_of(request.query.get("minutes", ""))
    ends_at = time.monotonic() + (math.inf if minutes is None else 60 * min(minutes, MAX_MINUTES))
    # If both are there, the header is newer: a browser that reconnects by itself asks for the same address again.
    before = positions(request.headers.get("Last-Event-ID") or request.query.get("last_event_id", ""))
    view = View(filters, request["viewer"].bodies, time.monotonic())
    follower = Follower({p: before.get(p) for p in partitions_of(filters, site)}, view.take)
    sent_counts, sent_at = None, 0.0
    with feeds.follow(filters.topic, follower) as ended:
        while (now := time.monotonic()) < ends_at:
            if kafka.up is False or ended():
                yield "", "away", f"Kafka is away since {utc(kafka.since)}" if kafka.up is False else ended()
                return
            view.refill(now)
            counts = dict(view.counts, skipped=follower.skipped, skipped_things=round(follower.skipped_things))
            if follower.placed and (counts != sent_counts or now - sent_at > HEARTBEAT_S):
                sent_at, sent_counts = now, counts
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
