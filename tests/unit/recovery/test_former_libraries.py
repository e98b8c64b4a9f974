"""Function libraries of former versions: deleted once nobody calls them."""

from __future__ import annotations

from typing import cast

import pytest

from chat_streams.model.errors import RedisUnavailable
from chat_streams.recovery.former_libraries import IDLE_SECONDS, LOOK_SECONDS, SILENT_SECONDS, FormerLibraries
from tables.redis_cluster import Cluster, FormerLibrary


class Servers:
    """A stand-in for the cluster."""

    def __init__(self) -> None:
        self.found: list[FormerLibrary] = []
        self.deleted: list[FormerLibrary] = []
        self.looks = 0
        self.is_away = False

    async def former_libraries(self) -> list[FormerLibrary]:
        self.looks += 1
        if self.is_away:
            raise RedisUnavailable("away")
        return self.found

    async def delete_library(self, library: FormerLibrary) -> None:
        self.deleted.append(library)
        self.found = [found for found in self.found if found != library]


@pytest.fixture
def servers() -> Servers:
    return Servers()


@pytest.fixture
def libraries(servers: Servers) -> FormerLibraries:
    return FormerLibraries(cast(Cluster, servers))


async def test_what_is_called_stays_and_what_nobody_calls_goes(servers: Servers, libraries: FormerLibraries) -> None:
    used, unused = FormerLibrary("a", "v1", 5), FormerLibrary("b", "v1", 5)
    now = 0.0
    while now <= IDLE_SECONDS:
        servers.found = [used, unused] if not servers.deleted else [used]
        assert servers.deleted == []
        deleted = await libraries.look(now)
        used = used._replace(calls=int(now) + 6)
        now += LOOK_SECONDS
    assert deleted == servers.deleted == [unused]
    # Once the last process of that version is gone, it goes on the other server, too.
    for _ in range(int(IDLE_SECONDS / LOOK_SECONDS) + 1):
        servers.found = [used]
        await libraries.look(now)
        now += LOOK_SECONDS
    assert servers.deleted == [unused, used]


async def test_a_version_that_counts_nothing_gets_a_day(servers: Servers, libraries: FormerLibraries) -> None:
    servers.found = [FormerLibrary("a", "v0", None)]
    await libraries.look(0)
    await libraries.look(SILENT_SECONDS - 1)
    assert servers.deleted == []
    await libraries.look(SILENT_SECONDS - 1 + LOOK_SECONDS)
    assert len(servers.deleted) == 1


async def test_one_that_comes_back_is_watched_anew(servers: Servers, libraries: FormerLibraries) -> None:
    library = FormerLibrary("a", "v1", 5)
    servers.found = [library]
    await libraries.look(0)
    assert await libraries.look(IDLE_SECONDS) == [library]
    servers.found = [library]
    assert await libraries.look(IDLE_SECONDS + LOOK_SECONDS) == []


async def test_it_is_looked_at_seldom_also_where_redis_is_away(servers: Servers, libraries: FormerLibraries) -> None:
    servers.is_away = True
    with pytest.raises(RedisUnavailable):
        await libraries.look(0)
    for second in range(1, 100):
        await libraries.look(second)
    assert servers.looks == 1
