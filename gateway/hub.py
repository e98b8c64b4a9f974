"""The connections of one gateway, and what ties them to the rest: its slot, its epoch, its announcements."""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

import structlog
from aiokafka.errors import KafkaError

from chat_streams.kafka.names import partition_of
from chat_streams.model.codes import Close
from chat_streams.model.records import (
    Acknowledge,
    Announce,
    Delivery,
    Displaced,
    Fetch,
    Missed,
    Outgoing,
    Registered,
    Target,
    UserConnected,
    UserDisconnected,
)
from chat_streams.model.times import now_ms
from chat_streams.runtime.retry import patiently
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.spans import Header, Mark
from gateway.publisher import Publisher
from gateway.slot_consumer import Deliveries
from gateway.state.delivery_state import PageRequest
from gateway.state.fetch_budget import FetchBudget
from tables.redis_cluster import StoreUnavailable
from tables.slots import Lease, NoSlot, Slots

if TYPE_CHECKING:
    from gateway.websocket import WebSocket

log = structlog.get_logger()

ANNOUNCE_EVERY: Final = 0.05
ANNOUNCE_AT_ONCE: Final = 100
ANNOUNCE_JITTER: Final = 1.0
CORRECTIONS: Final = 10_000
ACKNOWLEDGE_WITHIN: Final = 0.1
_NO_SLOT_YET: Final = (StoreUnavailable, NoSlot, KafkaError, TimeoutError, OSError)


class Hub:
    """Holds the connections by their id and brings each delivery to its own."""

    def __init__(self, settings: Settings, publisher: Publisher, slots: Slots) -> None:
        self.settings = settings
        self.publisher = publisher
        self._slots = slots
        self._deliveries = Deliveries(settings, self._receive)
        self._connections: dict[bytes, WebSocket] = {}
        self._by_device: dict[tuple[str, str], WebSocket] = {}
        self._lease: Lease | None = None
        self._to_announce: deque[bytes] = deque()
        # Connections said to be gone lately: what is still on its way to them needs no second correction.
        self._corrected: OrderedDict[bytes, None] = OrderedDict()
        self._fetch_budget = FetchBudget(settings.fetch_budget, settings.read_bytes)

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[WebSocket]:
        return iter(list(self._connections.values()))

    @property
    def lease(self) -> Lease | None:
        """The slot held."""
        return self._lease

    @property
    def ready(self) -> bool:
        """Whether a connection can be told of: a slot is held and its partition read."""
        return self._lease is not None

    async def run(self) -> None:
        """Hold a slot, read it and announce, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._deliveries.run())
            group.create_task(self._announce_waiting())
            group.create_task(self._sweep())
            group.create_task(self._hold_slot())

    async def close(self) -> None:
        """Give the slot back and stop reading it."""
        await self._deliveries.close()
        if self._lease is not None:
            lease, self._lease = self._lease, None
            try:
                await self._slots.release(lease)
            except StoreUnavailable as error:
                log.warning("the slot is not given back, it will run out", slot=lease.slot, error=str(error))

    def add(self, socket: WebSocket) -> None:
        """Take a connection in and tell of it; a lower-numbered one of the same device is closed."""
        self._connections[socket.id] = socket
        device = socket.user, socket.device
        current = self._by_device.get(device)
        if current is not None and current.number > socket.number:
            socket.end(Close.TAKEN_OVER, "a newer connection of this device is here")
        else:
            self._by_device[device] = socket
            if current is not None:
                current.end(Close.TAKEN_OVER, "a newer connection of this device is here")
        self._tell(socket, drain=True)

    def remove(self, socket: WebSocket) -> None:
        """Let a connection go and tell of it."""
        if self._connections.pop(socket.id, None) is None:
            return
        if self._by_device.get((socket.user, socket.device)) is socket:
            del self._by_device[socket.user, socket.device]
        self._fetch_budget.forget(socket.id)
        # Who comes back at once must not get again what was acknowledged on this connection.
        self.publisher.flush(socket.user)
        if self._lease is not None:
            self.publisher.publish_event(UserDisconnected(socket.user, socket.id, self._lease.epoch))

    def announce(self, socket: WebSocket) -> None:
        """Tell the registry of a connection again."""
        self._tell(socket, drain=False)

    def ask(self, socket: WebSocket, ask: PageRequest) -> None:
        """PageRequest for a page of an inbox."""
        if self._lease is None:
            return
        self.publisher.request_page(
            Fetch(
                user=socket.user,
                connection=socket.id,
                slot=self._lease.slot,
                epoch=self._lease.epoch,
                request=ask.request,
                after=ask.after,
                limit=ask.limit,
                limit_bytes=ask.limit_bytes,
                deadline=now_ms() + int(ask.timeout * 1000),
                device=socket.device,
            )
        )

    def acknowledge(self, socket: WebSocket) -> None:
        """Pass on how far a device has acknowledged."""
        state, at = socket.state, socket.state.acked_forwarded_at
        forwarded_at = 0 if at is None else now_ms() - int(1000 * (time.monotonic() - at))
        self.publisher.publish_acknowledgement(
            Acknowledge(socket.user, socket.device, state.acked, forwarded_at),
            flush=state.is_half_used,
            # Nobody waits for the acknowledgement of what came live; a page that waits for room does.
            linger=0.0 if state.is_behind else ACKNOWLEDGE_WITHIN,
        )

    def reserve(self, socket: WebSocket, size: int) -> bool:
        """Take bytes of the budget for pages under way; without room the connection is woken later."""
        return self._fetch_budget.reserve(socket.id, size)

    def release(self, size: int) -> None:
        """Return bytes of the budget and wake who waits for some."""
        self._fetch_budget.release(size)
        while (next_id := self._fetch_budget.next_in_line()) is not None:
            if (socket := self._connections.get(next_id)) is not None:
                socket.on_fetch_budget()

    def _tell(self, socket: WebSocket, drain: bool) -> None:
        if self._lease is None:
            self._to_announce.append(socket.id)
            return
        s = self.settings
        self.publisher.publish_event(
            UserConnected(
                user=socket.user,
                device=socket.device,
                connection=socket.id,
                number=socket.number,
                slot=self._lease.slot,
                epoch=self._lease.epoch,
                after=socket.state.forwarded,
                limit=min(s.read_messages, s.window),
                limit_bytes=min(s.read_bytes, s.window_bytes),
                drain=drain,
                deadline=now_ms() + int(socket.patience * 1000),
            )
        )

    def _receive(self, items: Outgoing, headers: Iterable[Header]) -> None:
        if headers:
            self._expect(items, headers)
        for item in items:
            if isinstance(item, Announce):
                self._announce_partitions(set(item.partitions))
                continue
            socket = self._connections.get(item.connection)
            if socket is None or socket.user != item.user:
                self._correct(item)
            elif isinstance(item, Delivery):
                socket.deliver(item)
            elif isinstance(item, Missed):
                socket.missed(item)
            elif isinstance(item, Registered):
                socket.registered(item.top)
            elif isinstance(item, Displaced):
                socket.end(Close.TAKEN_OVER, "a newer connection of this device is on another gateway")
            else:
                socket.heard_of(item.until)

    def _expect(self, items: Outgoing, headers: Iterable[Header]) -> None:
        """Tell the connections which of these deliveries hold sampled messages."""
        for index, parent in Mark.all(headers):
            item = items[index] if index < len(items) else None
            if isinstance(item, Delivery) and (socket := self._connections.get(item.connection)) is not None:
                socket.expect(parent, item.until)

    def _correct(self, item: Delivery | Missed | Registered | Displaced | Target) -> None:
        """The registry names a connection that is not here: of this epoch or an earlier one, it is gone."""
        # A later epoch is another gateway's, which took the slot from this one.
        if isinstance(item, Displaced) or self._lease is None or item.epoch > self._lease.epoch:
            return
        if item.connection in self._corrected:
            return
        self._corrected[item.connection] = None
        if len(self._corrected) > CORRECTIONS:
            self._corrected.popitem(last=False)
        self.publisher.publish_event(UserDisconnected(item.user, item.connection, item.epoch))

    def _announce_partitions(self, partitions: set[int]) -> None:
        count = self.settings.partitions
        chosen = [s for s in self if partition_of(s.user, count) in partitions]
        for socket in chosen:
            # Until the new keeper answers, it is told again.
            socket.unregistered()
        self._queue(socket.id for socket in chosen)

    def _queue(self, connections: Iterable[bytes]) -> None:
        queued = set(self._to_announce)
        self._to_announce.extend(c for c in connections if c not in queued)

    async def _announce_waiting(self) -> None:
        while True:
            if not self._to_announce:
                await asyncio.sleep(ANNOUNCE_EVERY)
                if self._to_announce:
                    # All gateways were asked at the same moment.
                    await asyncio.sleep(random.uniform(0, ANNOUNCE_JITTER))
                continue
            if self._lease is not None:
                for _ in range(min(ANNOUNCE_AT_ONCE, len(self._to_announce))):
                    socket = self._connections.get(self._to_announce.popleft())
                    if socket is not None:
                        self.announce(socket)
            await asyncio.sleep(ANNOUNCE_EVERY)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self.settings.announce_sweep * random.uniform(0.8, 1.2))
            self._queue(s.id for s in self)

    async def _take_slot(self) -> Lease:
        lease = await self._slots.take()
        await self._deliveries.open(lease.slot)
        return lease

    async def _hold_slot(self) -> None:
        while True:
            lease = await patiently("take a slot", _NO_SLOT_YET, self._take_slot)
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # What it awaited has swallowed the cancellation.
                raise asyncio.CancelledError
            self._lease = lease
            log.info("slot taken", slot=lease.slot, epoch=lease.epoch)
            for socket in self:
                socket.unregistered()
            self._queue(s.id for s in self)
            await self._slots.keep(lease)
            self._lease = None
