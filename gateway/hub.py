"""The connections of one gateway: each record of its slot goes to the connections it is for, requests go to Kafka."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Final, Protocol

from prometheus_client import Counter

from chat_streams.kafka.names import INBOX_REQUESTS
from chat_streams.model.codes import Close
from chat_streams.model.position import Position
from chat_streams.model.records import Acknowledge, Announce, Delivery, Displaced, Fetch, Missed, Outgoing, Registered
from chat_streams.runtime.metrics import REGISTRY
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.spans import Header, Mark
from chat_streams.runtime.tasks import run_endless
from gateway.announcer import Announced, Announcer
from gateway.publisher import Publisher
from gateway.slot_consumer import SlotConsumer
from gateway.slot_holder import SlotHolder
from gateway.state.delivery_state import PageRequest
from gateway.state.fetch_budget import FetchBudget
from tables.slots import Lease, Slots

ACKNOWLEDGE_WITHIN: Final = 0.1
ACKNOWLEDGE_AGAIN: Final = 1.0
"""Seconds until acknowledgements are written again that Kafka did not take."""
MOST_UNLOGGED: Final = 20_000
"""The largest number of devices whose acknowledgements wait for that; past it, the next one of a device covers it."""

FORWARDED: Final = Counter(
    "connect_chat_gateway_messages_forwarded_total", "Handed to a recipient's socket.", registry=REGISTRY
)


class Connection(Announced, Protocol):
    """A connection as the hub sees it, after its hello."""

    def on_delivery(self, delivery: Delivery) -> int:
        """Take a part of the inbox; returns how many messages are forwarded by that."""

    def on_missed(self, missed: Missed) -> None:
        """Take the news that a part of the inbox left it without acknowledgement."""

    def on_registered(self, top: Position) -> None:
        """Note that the registry knows this connection; the inbox's top was ``top`` after that."""

    def on_inbox_advanced(self, until: Position) -> None:
        """Note that there is something in the inbox up to ``until``."""

    def on_fetch_budget(self) -> None:
        """Note that there is room for a page again."""

    def expect_sampled(self, parent: str, until: Position) -> None:
        """Note that the delivery which ends at ``until``, and comes now, holds a sampled message."""

    def end(self, code: Close, reason: str) -> None:
        """Close the connection, after what is to be written."""


class Hub:
    """Holds the connections by their id and brings each delivery to its own."""

    def __init__(self, settings: Settings, publisher: Publisher, slots: Slots) -> None:
        self._publisher = publisher
        self._connections: dict[bytes, Connection] = {}
        self._by_device: dict[tuple[str, str], Connection] = {}
        self._fetch_budget = FetchBudget(settings.fetch_budget, settings.read_bytes)
        self._consumer = SlotConsumer(settings, self._receive)
        self._slot = SlotHolder(slots, self._consumer.open, self._on_slot_taken)
        self._announcer = Announcer(settings, publisher, self._slot, self._connections)
        # A device that has acknowledged all it was sent has no reason to do so again.
        self._unlogged: dict[tuple[str, str], Acknowledge] = {}
        self._again: asyncio.TimerHandle | None = None
        publisher.on_logged[INBOX_REQUESTS] = self._on_logged

    @property
    def lease(self) -> Lease | None:
        """The slot held."""
        return self._slot.lease

    @property
    def ready(self) -> bool:
        """Return whether a connection can be announced: a slot is held and its partition read."""
        return self._slot.lease is not None

    async def run(self) -> None:
        """Hold a slot, read it and announce, until cancelled."""
        await run_endless(
            {
                "reading the slot": self._consumer.run(),
                "announcing": self._announcer.run(),
                "holding a slot": self._slot.run(),
            }
        )

    async def close(self) -> None:
        """Stop reading the slot and release it."""
        self._unlogged.clear()
        if self._again is not None:
            self._again.cancel()
        await self._consumer.close()
        await self._slot.release()

    def add(self, connection: Connection) -> None:
        """Take a connection in and announce it; a lower-numbered one of the same device is closed."""
        self._connections[connection.id] = connection
        device = connection.user, connection.device
        current = self._by_device.get(device)
        if current is not None and current.number > connection.number:
            connection.end(Close.TAKEN_OVER, "a newer connection of this device is here")
        else:
            self._by_device[device] = connection
            if current is not None:
                current.end(Close.TAKEN_OVER, "a newer connection of this device is here")
        self._announcer.on_connected(connection)

    def remove(self, connection: Connection) -> None:
        """Let a connection go and say that it is gone."""
        if self._connections.pop(connection.id, None) is None:
            return
        if self._by_device.get((connection.user, connection.device)) is connection:
            del self._by_device[connection.user, connection.device]
        self._fetch_budget.forget(connection.id)
        # Who comes back at once must not get again what was acknowledged on this connection.
        self._publisher.flush(connection.user)
        self._announcer.on_disconnected(connection)

    def announce(self, connection: Connection) -> None:
        """Tell the registry of a connection again."""
        self._announcer.announce(connection)

    def acknowledge(self, connection: Connection) -> None:
        """Pass on how far a device has acknowledged."""
        state, at = connection.state, connection.state.acked_forwarded_at
        log_now = None if at is None else self._publisher.log_now
        forwarded_at = 0 if at is None or log_now is None else log_now - int(1000 * (time.monotonic() - at))
        self._publisher.publish_acknowledgement(
            Acknowledge(connection.user, connection.device, state.acked, forwarded_at),
            flush=state.is_half_used,
            # Nobody waits for the acknowledgement of what came live; a page that waits for room does.
            linger=0.0 if state.is_behind else ACKNOWLEDGE_WITHIN,
        )

    def _on_logged(self, requests: list[Acknowledge | Fetch], ok: bool) -> None:
        if ok:
            return
        for request in requests:
            if isinstance(request, Acknowledge):
                device = request.user, request.device
                former = self._unlogged.pop(device, request)
                self._unlogged[device] = max(request, former, key=lambda ack: ack.position)
        while len(self._unlogged) > MOST_UNLOGGED:
            del self._unlogged[next(iter(self._unlogged))]
        if self._unlogged and self._again is None:
            self._again = asyncio.get_running_loop().call_later(ACKNOWLEDGE_AGAIN, self._acknowledge_again)

    def _acknowledge_again(self) -> None:
        unlogged, self._unlogged, self._again = self._unlogged, {}, None
        for acknowledgement in unlogged.values():
            self._publisher.publish_acknowledgement(acknowledgement, linger=ACKNOWLEDGE_WITHIN)

    def reserve(self, connection: Connection, size: int) -> bool:
        """Take bytes of the budget for pages under way; without room the connection is woken later."""
        return self._fetch_budget.reserve(connection.id, size)

    def release(self, size: int) -> None:
        """Return bytes of the budget and wake who waits for some."""
        self._fetch_budget.release(size)
        while (next_id := self._fetch_budget.next_in_line()) is not None:
            if (connection := self._connections.get(next_id)) is not None:
                connection.on_fetch_budget()

    def request_page(self, connection: Connection, request: PageRequest) -> None:
        """Request a page of an inbox."""
        lease = self._slot.lease
        if lease is None:
            return
        self._publisher.request_page(
            Fetch(
                user=connection.user,
                connection=connection.id,
                slot=lease.slot,
                epoch=lease.epoch,
                request=request.request,
                after=request.after,
                limit=request.limit,
                limit_bytes=request.limit_bytes,
                timeout_ms=int(request.timeout * 1000),
                device=connection.device,
            )
        )

    def _on_slot_taken(self) -> None:
        self._announcer.on_slot_taken()

    def _receive(self, items: Outgoing, headers: Iterable[Header]) -> None:
        if headers:
            self._expect_sampled(items, headers)
        forwarded = 0
        for item in items:
            if isinstance(item, Announce):
                self._announcer.announce_partitions(set(item.partitions))
                continue
            connection = self._connections.get(item.connection)
            if connection is None or connection.user != item.user:
                if not isinstance(item, Displaced):
                    self._announcer.correct(item)
            elif isinstance(item, Delivery):
                forwarded += connection.on_delivery(item)
            elif isinstance(item, Missed):
                connection.on_missed(item)
            elif isinstance(item, Registered):
                connection.on_registered(item.top)
            elif isinstance(item, Displaced):
                connection.end(Close.TAKEN_OVER, "a newer connection of this device is on another gateway")
            else:
                connection.on_inbox_advanced(item.until)
        # Once for all of a record: a count takes 0.3 us.
        FORWARDED.inc(forwarded)

    def _expect_sampled(self, items: Outgoing, headers: Iterable[Header]) -> None:
        """Tell the connections which of these deliveries hold sampled messages."""
        for index, parent in Mark.all(headers):
            item = items[index] if index < len(items) else None
            if isinstance(item, Delivery) and (connection := self._connections.get(item.connection)) is not None:
                connection.expect_sampled(parent, item.until)
