"""The session registry: the connections of each user and their gateways, in a Faust table with a changelog."""

from __future__ import annotations

from collections.abc import MutableMapping

import msgspec

from chat_streams.model.records import UserConnected, UserDisconnected


class Session(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A connection of a device, held by the gateway that leased ``slot`` in ``epoch``."""

    device: str
    connection: bytes
    number: int
    slot: int
    epoch: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Session]).decode


class Sessions:
    """The registry, in a table of user id (bytes) -> list of ``Session`` (msgpack).

    It is an index that can be rebuilt, since gateways announce their connections again.
    """

    def __init__(self, table: MutableMapping[bytes, bytes], most: int) -> None:
        self._table = table
        self._most = most
        """The largest number of connections of one user; beyond it, the oldest is displaced."""

    def of(self, user: str) -> list[Session]:
        """Return the connections of a user."""
        value = self._table.get(user.encode())
        return _decode(value) if value else []

    def connected(self, event: UserConnected) -> list[Session]:
        """Register a connection; returns those that are displaced.

        The new connection itself is displaced when the device has one with a higher number.
        """
        new = Session(event.device, event.connection, event.number, event.slot, event.epoch)
        sessions = self.of(event.user)
        current = next((s for s in sessions if s.device == event.device), None)
        if current is not None and current.number > new.number:
            return [new]
        if current == new:
            return []
        others = [s for s in sessions if s.device != event.device]
        lost = [] if current is None or current.connection == new.connection else [current]
        lost += others[: max(0, len(others) + 1 - self._most)]
        self._put(event.user, [*others[max(0, len(others) + 1 - self._most) :], new])
        return lost

    def disconnected(self, event: UserDisconnected) -> None:
        """Remove the connection with exactly this id and epoch."""
        sessions = self.of(event.user)
        kept = [s for s in sessions if s.connection != event.connection or s.epoch != event.epoch]
        if len(kept) != len(sessions):
            self._put(event.user, kept)

    def _put(self, user: str, sessions: list[Session]) -> None:
        # Values are assigned, never changed in place: only assignments reach the changelog.
        if sessions:
            self._table[user.encode()] = _encode(sessions)
        else:
            del self._table[user.encode()]
