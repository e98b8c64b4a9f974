"""The session registry: which connections a user has, on which gateway; a Faust table with a changelog."""

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
    """The registry over a table of user id bytes -> msgpack list of ``Session``.

    It is an index that can be rebuilt: gateways announce their connections again.
    """

    def __init__(self, table: MutableMapping[bytes, bytes], most: int) -> None:
        self._table = table
        self._most = most
        """Connections of one user; the oldest goes first."""

    def of(self, user: str) -> list[Session]:
        """The connections of a user."""
        value = self._table.get(user.encode())
        return _decode(value) if value else []

    def connected(self, event: UserConnected) -> list[Session]:
        """Enter a connection; returns those that lose their place to it.

        A connection with a lower number than that of its device's entry is itself the one that loses.
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
        """Remove exactly this connection of this epoch."""
        sessions = self.of(event.user)
        kept = [s for s in sessions if s.connection != event.connection or s.epoch != event.epoch]
        if len(kept) != len(sessions):
            self._put(event.user, kept)

    def _put(self, user: str, sessions: list[Session]) -> None:
        # Assigned anew, never changed in place: only that reaches the changelog.
        if sessions:
            self._table[user.encode()] = _encode(sessions)
        else:
            del self._table[user.encode()]
