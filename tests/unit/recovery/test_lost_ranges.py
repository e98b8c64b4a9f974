"""Telling users what they missed: each once a partition, in one scan for all, and one failure for itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chat_streams.kafka.names import partition_of
from chat_streams.model.errors import FencingTokenStale, RedisUnavailable, Rewound
from chat_streams.model.position import MAX_INDEX, ORIGIN, Position
from chat_streams.model.records import OUTGOING, InboxAdvanced
from chat_streams.processing.offsets import LostRange
from chat_streams.recovery.lost_ranges import LostRanges

PARTITIONS = 4
USERS = [f"user-{n}" for n in range(40)]
LOST = LostRange(0, 0, 10)
UNTIL = Position.of(1, 9, MAX_INDEX)


class World:
    """A stand-in for the app, Redis, the fencing and the registry; every user has one connection, on slot 3."""

    def __init__(self) -> None:
        self.scans = 0
        self.on_page: Callable[[], object] = lambda: None
        self.missed: list[tuple[int, str, str, Position, Position]] = []
        self.advanced: list[str] = []
        self.stale: list[str] = []
        self.revoked: set[int] = set()
        world = cast(Any, self)
        self.ranges = LostRanges(world, world, world, world, world, PARTITIONS)

    def end(self, error: BaseException) -> None:
        raise AssertionError(error)

    def produce(self, topic: str, slot: int, key: None, value: Callable[[], bytes], headers: object) -> Any:
        # In the inbox first: who reads the new top meanwhile is told of the same range.
        for item in OUTGOING.decode(value()):
            assert isinstance(item, InboxAdvanced)
            assert item.user in {user for _, _, user, _, _ in self.missed}
            assert item.until == UNTIL
            self.advanced.append(item.user)
        written: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        written.set_result(0)
        return written

    async def users(self, key: str) -> AsyncIterator[list[str]]:
        assert key == "devices"
        self.scans += 1
        for start in range(0, len(USERS), 7):
            await asyncio.sleep(0)
            self.on_page()
            yield USERS[start : start + 7]

    async def token(self, partition: int) -> str:
        if partition in self.revoked:
            raise Rewound
        return "new" if self.stale else "token"

    async def fence(self, partition: int, refused: str) -> str:
        self.stale.append(refused)
        return "new"

    async def miss(self, users: list[str], partition: int, token: str, after: Position, until: Position) -> list[str]:
        if token == "token" and self.stale == ["refuse"]:
            raise FencingTokenStale
        self.missed += [(partition, token, user, after, until) for user in users]
        return users

    def of(self, user: str) -> list[Any]:
        return [SimpleNamespace(slot=3, connection=user.encode(), epoch=1)]


@pytest.fixture
def world() -> World:
    return World()


def of_partition(*partitions: int) -> list[str]:
    return sorted(user for user in USERS if partition_of(user, PARTITIONS) in partitions)


async def test_the_users_of_a_partition_are_told_and_no_others(world: World) -> None:
    await world.ranges.tell(1, 1, LOST)
    assert sorted(user for _, _, user, _, _ in world.missed) == sorted(world.advanced) == of_partition(1)
    assert {(after, until) for _, _, _, after, until in world.missed} == {(ORIGIN, UNTIL)}


async def test_partitions_share_a_scan_and_those_that_come_during_one_the_next(world: World) -> None:
    late: list[asyncio.Task[None]] = []

    def come() -> None:
        if not late:
            late.extend(asyncio.create_task(world.ranges.tell(partition, 1, LOST)) for partition in (2, 3))

    world.on_page = come
    await asyncio.gather(*(world.ranges.tell(partition, 1, LOST) for partition in (0, 1)))
    await asyncio.gather(*late)
    assert world.scans == 2
    assert sorted(world.advanced) == sorted(USERS)
    await world.ranges.tell(0, 1, LOST)
    assert world.scans == 3


async def test_a_redis_that_is_away_is_scanned_again_from_the_beginning(world: World) -> None:
    failures = [RedisUnavailable(), RedisUnavailable()]

    def fail() -> None:
        if failures and world.missed:
            raise failures.pop()

    world.on_page = fail
    await world.ranges.tell(1, 1, LOST)
    assert world.scans == 3
    assert sorted(set(world.advanced)) == of_partition(1)


async def test_a_partition_that_was_revoked_fails_alone(world: World) -> None:
    world.revoked = {1}
    gone, kept = await asyncio.gather(*(world.ranges.tell(n, 1, LOST) for n in (1, 2)), return_exceptions=True)
    assert isinstance(gone, Rewound)
    assert kept is None
    assert sorted(world.advanced) == of_partition(2)


async def test_another_run_takes_the_place_of_the_one_before(world: World) -> None:
    first = asyncio.create_task(world.ranges.tell(1, 1, LostRange(5, 5, 10)))
    second = asyncio.create_task(world.ranges.tell(1, 1, LOST))
    with pytest.raises(Rewound):
        await first
    await second
    assert {after for _, _, _, after, _ in world.missed} == {ORIGIN}


async def test_a_stale_token_is_replaced(world: World) -> None:
    world.stale = ["refuse"]

    async def token(partition: int) -> str:
        return "token" if world.stale == ["refuse"] else "new"

    world.token = token  # type: ignore[method-assign]
    await world.ranges.tell(1, 1, LOST)
    assert world.stale == ["refuse", "token"]
    assert {token for _, token, _, _, _ in world.missed} == {"new"}


async def test_an_error_reaches_all_who_wait_and_the_next_begins_anew(world: World) -> None:
    def fail() -> None:
        raise ValueError("broken")

    world.on_page = fail
    found = await asyncio.gather(*(world.ranges.tell(n, 1, LOST) for n in (1, 2)), return_exceptions=True)
    assert [str(error) for error in found] == ["broken", "broken"]
    world.on_page = lambda: None
    await world.ranges.tell(1, 1, LOST)
    assert sorted(world.advanced) == of_partition(1)
