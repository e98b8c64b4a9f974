"""Announcements to the session registry: the connections of this gateway, when they come, in time, when they go."""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from chat_streams.kafka.names import SESSION_EVENTS, partition_of
from chat_streams.model.records import Delivery, InboxAdvanced, Missed, Registered, UserConnected, UserDisconnected
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.tasks import run_endless
from gateway.publisher import Publisher
from gateway.slot_holder import SlotHolder
from gateway.state.delivery_state import DeliveryState

ANNOUNCE_EVERY: Final = 0.05
ANNOUNCE_AT_ONCE: Final = 100
ANNOUNCE_JITTER: Final = 1.0
CORRECTIONS: Final = 10_000
CORRECTED_S: Final = 60.0
"""Seconds after a correction for which what is still on its way to the connection needs no second one."""


class Announced(Protocol):
    """A connection that the registry is told of; it waits ``announce_timeout`` s for what that brings."""

    id: bytes
    user: str
    device: str
    number: int
    state: DeliveryState
    announce_timeout: float

    def on_unregistered(self) -> None:
        """Note that the registry must be told of this connection again."""

    def fail(self, error: BaseException) -> None:
        """End the connection because of a fault of this program."""


class Announcer:
    """Writes the session events of a gateway's ``connections``, which are by their id.

    What can't be written while no slot is held, and what is announced again, waits in a queue that is worked off
    slowly; a connection is in it once.
    """

    def __init__(
        self, settings: Settings, publisher: Publisher, slot: SlotHolder, connections: Mapping[bytes, Announced]
    ) -> None:
        self._settings = settings
        self._publisher = publisher
        self._slot = slot
        self._connections = connections
        self._queued: OrderedDict[bytes, None] = OrderedDict()
        # Connections that are being said to be gone, and those of which it is logged, with the time until which that is
        # enough: a record that Kafka did not take corrects nothing, nor does one that was gone before it was applied.
        self._correcting: set[bytes] = set()
        self._corrected: OrderedDict[bytes, float] = OrderedDict()
        publisher.on_logged[SESSION_EVENTS] = self._on_logged

    async def run(self) -> None:
        """Announce what is queued, and all connections every now and then, until cancelled."""
        await run_endless({"announcing what is queued": self._announce_queued(), "announcing all": self._sweep()})

    def on_connected(self, connection: Announced) -> None:
        """Announce a new connection, which gets the first page of its inbox by that, if it waits for it."""
        self._announce(connection, drain=connection.state.outstanding)

    def on_disconnected(self, connection: Announced) -> None:
        """Say that a connection is gone."""
        self._queued.pop(connection.id, None)
        if self._slot.lease is not None:
            self._publisher.publish_event(UserDisconnected(connection.user, connection.id, self._slot.lease.epoch))

    def announce(self, connection: Announced) -> None:
        """Tell the registry of a connection again."""
        self._announce(connection, drain=False)

    def announce_partitions(self, partitions: set[int]) -> None:
        """Queue the connections of the users on some partitions, whose registry has a new keeper."""
        count = self._settings.partitions
        chosen = [c for c in self._connections.values() if partition_of(c.user, count) in partitions]
        for connection in chosen:
            # Until the new keeper answers, it is told again.
            connection.on_unregistered()
        self._queue(connection.id for connection in chosen)

    def on_slot_taken(self) -> None:
        """Queue all connections: the registry has them under another slot, or not at all."""
        for connection in list(self._connections.values()):
            connection.on_unregistered()
        self._queue(self._connections)

    def correct(self, item: Delivery | Missed | Registered | InboxAdvanced) -> None:
        """Say that a connection is gone which the registry names and which is not here."""
        lease = self._slot.lease
        # A later epoch is another gateway's, which took the slot from this one.
        if lease is None or item.epoch > lease.epoch or item.connection in self._correcting:
            return
        if len(self._correcting) >= CORRECTIONS or self._corrected.get(item.connection, 0.0) > time.monotonic():
            return
        self._correcting.add(item.connection)
        self._publisher.publish_event(UserDisconnected(item.user, item.connection, item.epoch))

    def _on_logged(self, events: list[UserConnected | UserDisconnected], ok: bool) -> None:
        until = time.monotonic() + CORRECTED_S
        for event in events:
            if isinstance(event, UserDisconnected) and event.connection in self._correcting:
                self._correcting.discard(event.connection)
                if ok:
                    self._corrected.pop(event.connection, None)
                    self._corrected[event.connection] = until
        while len(self._corrected) > CORRECTIONS:
            self._corrected.popitem(last=False)

    def _announce(self, connection: Announced, drain: bool) -> None:
        lease = self._slot.lease
        if lease is None:
            self._queue([connection.id])
            return
        s = self._settings
        self._publisher.publish_event(
            UserConnected(
                user=connection.user,
                device=connection.device,
                connection=connection.id,
                number=connection.number,
                slot=lease.slot,
                epoch=lease.epoch,
                after=connection.state.forwarded,
                limit=min(s.read_messages, s.window),
                limit_bytes=min(s.read_bytes, s.window_bytes),
                drain=drain,
                timeout_ms=int(connection.announce_timeout * 1000),
            )
        )

    def _queue(self, connections: Iterable[bytes]) -> None:
        for connection in connections:
            self._queued.setdefault(connection)

    async def _announce_queued(self) -> None:
        while True:
            if not self._queued:
                await asyncio.sleep(ANNOUNCE_EVERY)
                if self._queued:
                    # All gateways were asked at the same moment.
                    await asyncio.sleep(random.uniform(0, ANNOUNCE_JITTER))
                continue
            if self._slot.lease is not None:
                for _ in range(min(ANNOUNCE_AT_ONCE, len(self._queued))):
                    connection = self._connections.get(self._queued.popitem(last=False)[0])
                    if connection is not None:
                        try:
                            self.announce(connection)
                        except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this connection
                            connection.fail(error)
            await asyncio.sleep(ANNOUNCE_EVERY)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._settings.announce_sweep * random.uniform(0.8, 1.2))
            self._queue(self._connections)
