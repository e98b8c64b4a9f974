from __future__ import annotations

from collections.abc import Iterator, MutableMapping

import pytest

from chat_streams.model.position import ORIGIN
from chat_streams.model.records import UserConnected, UserDisconnected
from tables.sessions import Session, Sessions

MAX_SESSIONS = 16


class Table(MutableMapping[bytes, bytes]):
    """A dict that, like a Faust table, knows of what is assigned and of nothing else."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}
        self.changelog: list[tuple[bytes, bytes | None]] = []

    def __getitem__(self, key: bytes) -> bytes:
        return self.kept[key]

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self.kept[key] = value
        self.changelog.append((key, value))

    def __delitem__(self, key: bytes) -> None:
        del self.kept[key]
        self.changelog.append((key, None))

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.kept)

    def __len__(self) -> int:
        return len(self.kept)


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def sessions(table: Table) -> Sessions:
    return Sessions(table, MAX_SESSIONS)


def connected(
    device: str = "phone",
    connection: bytes = b"c1",
    number: int = 1,
    *,
    slot: int = 3,
    epoch: int = 5,
    user: str = "bob",
) -> UserConnected:
    return UserConnected(user, device, connection, number, slot, epoch, ORIGIN, 1, 1, False, 0)


def ids(sessions: Sessions, user: str = "bob") -> list[bytes]:
    return [session.connection for session in sessions.of(user)]


def test_a_connection_is_found_where_it_is(sessions: Sessions) -> None:
    assert sessions.of("bob") == []
    assert sessions.connected(connected()) == []
    assert sessions.of("bob") == [Session("phone", b"c1", 1, 3, 5)]
    assert sessions.of("eve") == []


def test_a_higher_number_takes_over_and_the_other_is_named_with_its_own_slot_and_epoch(sessions: Sessions) -> None:
    sessions.connected(connected(number=9, slot=1, epoch=1))
    lost = sessions.connected(connected(connection=b"c2", number=10, slot=2, epoch=2))
    assert lost == [Session("phone", b"c1", 9, 1, 1)]
    assert ids(sessions) == [b"c2"]


def test_a_lower_number_that_comes_late_loses_and_changes_nothing(sessions: Sessions, table: Table) -> None:
    sessions.connected(connected(connection=b"live", number=10))
    before = list(table.changelog)
    lost = sessions.connected(connected(connection=b"half dead", number=9, slot=7, epoch=8))
    assert lost == [Session("phone", b"half dead", 9, 7, 8)]
    assert ids(sessions) == [b"live"]
    assert table.changelog == before


def test_devices_do_not_displace_each_other(sessions: Sessions) -> None:
    sessions.connected(connected("phone", b"c1", 5))
    assert sessions.connected(connected("tablet", b"c2", 1)) == []
    assert sorted(ids(sessions)) == [b"c1", b"c2"]


def test_users_do_not_displace_each_other(sessions: Sessions) -> None:
    sessions.connected(connected(user="bob", connection=b"c1"))
    assert sessions.connected(connected(user="eve", connection=b"c2", number=2)) == []
    assert (ids(sessions, "bob"), ids(sessions, "eve")) == ([b"c1"], [b"c2"])


def test_announced_again_it_displaces_nothing_and_writes_nothing(sessions: Sessions, table: Table) -> None:
    sessions.connected(connected())
    assert sessions.connected(connected()) == []
    assert len(table.changelog) == 1


def test_announced_from_a_new_slot_it_is_found_there_and_is_not_its_own_victim(sessions: Sessions) -> None:
    sessions.connected(connected(slot=3, epoch=5))
    assert sessions.connected(connected(slot=4, epoch=6)) == []
    assert sessions.of("bob") == [Session("phone", b"c1", 1, 4, 6)]


def test_gone_is_gone(sessions: Sessions, table: Table) -> None:
    sessions.connected(connected())
    sessions.disconnected(UserDisconnected("bob", b"c1", 5))
    assert sessions.of("bob") == []
    assert table.changelog[-1] == (b"bob", None)


@pytest.mark.parametrize("epoch", [4, 6])
def test_gone_in_another_epoch_concerns_another_entry(sessions: Sessions, table: Table, epoch: int) -> None:
    sessions.connected(connected(epoch=5))
    sessions.disconnected(UserDisconnected("bob", b"c1", epoch))
    assert ids(sessions) == [b"c1"]
    assert len(table.changelog) == 1


def test_gone_concerns_that_connection_only(sessions: Sessions) -> None:
    sessions.connected(connected("phone", b"c1"))
    sessions.connected(connected("tablet", b"c2"))
    sessions.disconnected(UserDisconnected("bob", b"c1", 5))
    sessions.disconnected(UserDisconnected("bob", b"unknown", 5))
    sessions.disconnected(UserDisconnected("eve", b"c2", 5))
    assert ids(sessions) == [b"c2"]


def test_the_end_of_a_displaced_connection_leaves_its_successor(sessions: Sessions) -> None:
    sessions.connected(connected(connection=b"c1", number=1))
    sessions.connected(connected(connection=b"c2", number=2))
    sessions.disconnected(UserDisconnected("bob", b"c1", 5))
    assert ids(sessions) == [b"c2"]


def test_of_too_many_devices_the_oldest_entry_loses(sessions: Sessions) -> None:
    for i in range(MAX_SESSIONS):
        assert sessions.connected(connected(f"d{i}", b"c%d" % i, i)) == []
    lost = sessions.connected(connected("one more", b"new", 1))
    assert [s.connection for s in lost] == [b"c0"]
    assert ids(sessions) == [b"c%d" % i for i in range(1, MAX_SESSIONS)] + [b"new"]


def test_a_full_registry_still_takes_a_new_connection_of_a_device_it_has(sessions: Sessions) -> None:
    for i in range(MAX_SESSIONS):
        sessions.connected(connected(f"d{i}", b"c%d" % i, 1))
    lost = sessions.connected(connected("d3", b"new", 2))
    assert [s.connection for s in lost] == [b"c3"]
    assert len(ids(sessions)) == MAX_SESSIONS
    assert b"c0" in ids(sessions)


def test_the_changelog_alone_brings_the_registry_back(sessions: Sessions, table: Table) -> None:
    sessions.connected(connected("phone", b"c1"))
    sessions.connected(connected("tablet", b"c2"))
    sessions.connected(connected("phone", b"c3", 2))
    sessions.connected(connected(user="eve"))
    sessions.disconnected(UserDisconnected("bob", b"c2", 5))
    sessions.disconnected(UserDisconnected("eve", b"c1", 5))
    restored: dict[bytes, bytes] = {}
    for key, value in table.changelog:
        if value is None:
            restored.pop(key, None)
        else:
            restored[key] = value
    assert Sessions(restored, MAX_SESSIONS).of("bob") == sessions.of("bob") == [Session("phone", b"c3", 2, 3, 5)]
    assert b"eve" not in restored
