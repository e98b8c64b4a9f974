"""The announcer: what the registry is told of connections, and that nothing is queued twice or told for ever."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from chat_streams.kafka.names import SESSION_EVENTS, partition_of
from chat_streams.model.position import ORIGIN
from chat_streams.model.records import Missed, UserConnected, UserDisconnected
from chat_streams.runtime.settings import Settings
from gateway import announcer as module
from gateway.announcer import CORRECTED_S, Announced, Announcer
from gateway.publisher import Publisher
from gateway.slot_holder import SlotHolder
from gateway.state.delivery_state import DeliveryState, Limits
from tables.slots import Lease

LEASE = Lease(3, 7)


class Connection:
    def __init__(self, user: str) -> None:
        self.id, self.user, self.device, self.number = user.encode(), user, "phone", 1
        self.state = DeliveryState(ORIGIN, Limits(10, 10_000, 10, 10_000), 0.0, lambda: 1.0)
        self.announce_timeout = 2.0
        self.unregistered = 0
        self.failures: list[BaseException] = []

    def on_unregistered(self) -> None:
        self.unregistered += 1

    def fail(self, error: BaseException) -> None:
        self.failures.append(error)


class Slot:
    """A holder whose lease the test sets, and a publisher that keeps what it is given."""

    def __init__(self) -> None:
        self.lease: Lease | None = LEASE
        self.events: list[UserConnected | UserDisconnected] = []
        self.on_logged: dict[str, Callable[[list[Any], bool], None]] = {}
        self.connections: dict[bytes, Announced] = {}
        self.settings = Settings(announce_sweep=3_600, partitions=8)
        self.announcer = Announcer(self.settings, cast("Publisher", self), cast("SlotHolder", self), self.connections)

    def publish_event(self, event: UserConnected | UserDisconnected) -> None:
        self.events.append(event)

    def log(self, ok: bool) -> None:
        """Take what was published to the log, or fail to."""
        self.on_logged[SESSION_EVENTS](self.events, ok)

    def corrected(self) -> list[bytes]:
        """Return the connections that were said to be gone, and forget it."""
        found = [event.connection for event in self.events if isinstance(event, UserDisconnected)]
        self.events.clear()
        return found

    def add(self, user: str) -> Connection:
        connection = Connection(user)
        self.connections[connection.id] = connection
        return connection

    async def run(self) -> None:
        """Work the queue off."""
        task = asyncio.create_task(self.announcer.run())
        await asyncio.sleep(0.05)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def slot(monkeypatch: pytest.MonkeyPatch) -> Slot:
    monkeypatch.setattr(module, "ANNOUNCE_EVERY", 0.0)
    monkeypatch.setattr(module, "ANNOUNCE_JITTER", 0.0)
    return Slot()


def test_a_connection_asks_for_its_first_page_if_it_waits_for_one(slot: Slot) -> None:
    bob, carla = slot.add("bob"), slot.add("carla")
    carla.state.postpone_request()
    for connection in (bob, carla):
        slot.announcer.on_connected(connection)
    assert [(e.user, e.drain) for e in slot.events if isinstance(e, UserConnected)] == [("bob", True), ("carla", False)]


def missed(connection: bytes, epoch: int) -> Missed:
    return Missed("bob", connection, epoch, 1, ORIGIN, ORIGIN)


async def test_a_new_connection_is_announced_with_the_slot_and_again_without_a_page(slot: Slot) -> None:
    bob = slot.add("bob")
    slot.announcer.on_connected(bob)
    slot.announcer.announce(bob)
    connected = [event for event in slot.events if isinstance(event, UserConnected)]
    assert [(e.user, e.slot, e.epoch, e.drain) for e in connected] == [("bob", 3, 7, True), ("bob", 3, 7, False)]


async def test_without_a_slot_a_connection_waits_once_however_often_it_is_announced(slot: Slot) -> None:
    slot.lease = None
    bob, carla = slot.add("bob"), slot.add("carla")
    for _ in range(100):
        slot.announcer.announce(bob)
        slot.announcer.announce(carla)
    assert len(slot.announcer._queued) == 2
    del slot.connections[carla.id]
    slot.announcer.on_disconnected(carla)
    slot.lease = LEASE
    await slot.run()
    assert [event.user for event in slot.events] == ["bob"]


async def test_a_new_slot_is_told_for_all_connections(slot: Slot) -> None:
    connections = [slot.add(str(n)) for n in range(250)]
    slot.announcer.on_slot_taken()
    await slot.run()
    assert [event.user for event in slot.events] == [connection.user for connection in connections]
    assert all(connection.unregistered == 1 for connection in connections)


async def test_a_connection_that_cannot_be_announced_ends_and_holds_up_no_other(slot: Slot) -> None:
    broken, bob = slot.add("broken"), slot.add("bob")
    broken.state = cast("DeliveryState", None)
    slot.announcer.on_slot_taken()
    await slot.run()
    assert [event.user for event in slot.events] == ["bob"]
    assert (len(broken.failures), len(bob.failures)) == (1, 0)


async def test_a_new_keeper_is_told_of_its_partitions(slot: Slot) -> None:
    connections = [slot.add(str(n)) for n in range(50)]
    slot.announcer.announce_partitions({2, 5})
    await slot.run()
    theirs = [connection.user for connection in connections if partition_of(connection.user, 8) in (2, 5)]
    assert [event.user for event in slot.events] == theirs
    assert [c.user for c in connections if c.unregistered] == theirs


async def test_a_connection_that_is_not_here_is_corrected_once_and_only_of_epochs_up_to_this_one(slot: Slot) -> None:
    for epoch in (7, 7, 6):
        slot.announcer.correct(missed(b"gone", epoch))
    slot.announcer.correct(missed(b"later", 8))
    slot.lease = None
    slot.announcer.correct(missed(b"no slot", 7))
    assert slot.events == [UserDisconnected("bob", b"gone", 7)]


async def test_a_correction_that_kafka_did_not_take_is_made_again(slot: Slot) -> None:
    slot.announcer.correct(missed(b"gone", 7))
    slot.announcer.correct(missed(b"gone", 7))
    slot.log(ok=False)
    assert slot.corrected() == [b"gone"]
    slot.announcer.correct(missed(b"gone", 7))
    slot.log(ok=True)
    assert slot.corrected() == [b"gone"]
    slot.announcer.correct(missed(b"gone", 7))
    assert slot.corrected() == []


async def test_a_correction_holds_for_a_while_and_is_made_again_if_the_registry_still_has_the_connection(
    slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot.announcer.correct(missed(b"gone", 7))
    slot.log(ok=True)
    slot.corrected()
    now = time.monotonic()
    for later, found in ((CORRECTED_S - 1, []), (CORRECTED_S + 1, [b"gone"])):
        monkeypatch.setattr(time, "monotonic", lambda later=later: now + later)
        slot.announcer.correct(missed(b"gone", 7))
        assert slot.corrected() == found


async def test_a_connection_that_left_in_order_counts_as_no_correction(slot: Slot) -> None:
    bob = slot.add("bob")
    slot.announcer.on_disconnected(bob)
    slot.log(ok=True)
    slot.corrected()
    slot.announcer.correct(missed(bob.id, 7))
    assert slot.corrected() == [bob.id]


async def test_only_so_many_corrections_are_remembered_and_under_way(
    slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CORRECTIONS", 3)
    for connection in (b"1", b"2", b"3", b"4", b"4"):
        slot.announcer.correct(missed(connection, 7))
    slot.log(ok=True)
    # Number 4 is corrected at the next delivery to it.
    assert slot.corrected() == [b"1", b"2", b"3"]
    for connection in (b"4", b"4", b"2"):
        slot.announcer.correct(missed(connection, 7))
    slot.log(ok=True)
    assert slot.corrected() == [b"4"]
    slot.announcer.correct(missed(b"1", 7))
    assert slot.corrected() == [b"1"]
