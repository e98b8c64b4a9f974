"""The sender of stored inboxes: reads pages in bounded rounds, and no more than Kafka takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prometheus_client import Histogram

from chat_streams.model.position import Position
from chat_streams.processing.delivery_buffer import DeliveryBuffer
from chat_streams.processing.room import Room
from chat_streams.runtime.metrics import BUCKETS, REGISTRY
from tables.inbox import Inbox

if TYPE_CHECKING:
    from chat_streams.processing.service import Service

READ_AT_ONCE: Final = 8 * 1024 * 1024
"""The largest number of bytes requested from Redis in one round."""
UNDER_WAY: Final = 64 * 1024 * 1024
"""Bytes of pages that Kafka has not taken yet, and one round of each agent: past it, no more are read."""

READ_SECONDS: Final = Histogram(
    "connect_chat_inbox_read_seconds",
    "A round of pages, waiting for Redis included.",
    buckets=BUCKETS,
    registry=REGISTRY,
)


class Wanted(NamedTuple):
    """A requested page of an inbox, the connection to send it to, and when it was asked for (ms, by the log)."""

    user: str
    device: str
    connection: bytes
    slot: int
    epoch: int
    request: int
    after: Position
    limit: int
    limit_bytes: int
    at: int


class PageSender:
    """Reads pages of inboxes and sends them to the gateways, for all agents of a process together."""

    def __init__(self, app: Service, inbox: Inbox, under_way: int = UNDER_WAY) -> None:
        self._app = app
        self._inbox = inbox
        self._settings = app.settings
        self.room = Room(under_way)

    async def send(self, wanted: Iterable[Wanted]) -> Awaitable[Any] | None:
        """Read the wanted pages and start to send them; returns an awaitable of Kafka's acknowledgement, if any."""
        sent: list[Awaitable[Any]] = []
        for requests in self._rounds(wanted):
            # While Kafka is slow or away, pages would gather here: of one batch, and of all that follow it.
            await self.room.wait()
            began = time.monotonic()
            pages = await self._inbox.read(
                [(w.user, w.device, w.after, w.limit, w.limit_bytes, w.at) for w in requests]
            )
            READ_SECONDS.observe(time.monotonic() - began)
            parents: Sequence[Sequence[str]] = [()] * len(pages)
            if self._app.traces is not None:
                parents = await self._inbox.parents([(w.user, page) for w, page in zip(requests, pages, strict=True)])
            buffer = DeliveryBuffer(self._app)
            for w, page, page_parents in zip(requests, pages, parents, strict=True):
                buffer.page(w.slot, w.user, w.connection, w.epoch, w.request, page, page_parents)
            if (effect := buffer.send(self.room)) is not None:
                sent.append(effect)
        return asyncio.gather(*sent) if sent else None

    def _rounds(self, wanted: Iterable[Wanted]) -> Iterable[list[Wanted]]:
        """Split into rounds that read at most ``READ_AT_ONCE`` bytes each, and bound each page by the settings."""
        settings = self._settings
        current: list[Wanted] = []
        size = 0
        for w in wanted:
            limited = w._replace(
                limit=max(1, min(w.limit, settings.read_messages)),
                limit_bytes=max(1, min(w.limit_bytes, settings.read_bytes)),
            )
            if current and size + limited.limit_bytes > READ_AT_ONCE:
                yield current
                current, size = [], 0
            current.append(limited)
            size += limited.limit_bytes
        if current:
            yield current
