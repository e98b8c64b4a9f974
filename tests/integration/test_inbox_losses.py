"""The functions of the inbox on a Redis that was flushed, or evicts: one of its own."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from redis.exceptions import OutOfMemoryError

from chat_streams.model.errors import FencingTokenStale, NoFreeSlot, RedisRefused
from chat_streams.model.position import ORIGIN, Position
from chat_streams.model.records import LOGGED, Message
from chat_streams.model.times import now_ms
from chat_streams.recovery.former_libraries import IDLE_SECONDS, SILENT_SECONDS, FormerLibraries
from chat_streams.runtime.settings import Settings
from docker.local.engines import RedisNode
from docker.local.layout import HOST, Layout
from docker.local.part import Running
from docker.local.probes import eventually, user
from docker.local.temporary_stack import start_process
from gateway.protocol import message_tail
from tables.functions import LIBRARY, NAME
from tables.inbox import Batch, Inbox, InboxPage, LoggedDevice, keys
from tables.redis_cluster import Cluster, connect
from tables.slots import Slots

_partitions = itertools.count(1)
FILLER = "filler"


def at(offset: int) -> Position:
    return Position.of(1, offset, 0)


class Box:
    """The inbox of one user, with the token of a partition that nobody else has."""

    def __init__(self, cluster: Cluster, redis: Any, settings: Settings) -> None:
        self.cluster = cluster
        self.settings = settings
        self.inbox = Inbox(cluster, settings)
        self.redis = redis
        self.user = user()
        self.partition = next(_partitions)
        self.token = ""

    async def fence(self) -> int | None:
        """Take another token; returns what the store says of the one before."""
        expected, self.token = self.token, self.token + "t"
        return await self.inbox.fence(self.partition, expected, self.token)

    async def append(self, *ids: int | tuple[int, str]) -> int:
        """Append messages at these offsets; returns how many were new."""
        batch = []
        for found in ids:
            offset, id_ = found if isinstance(found, tuple) else (found, f"m{found}")
            message = Message(self.user, "alice", id_, LOGGED, message_tail(id_, "alice", b"1"))
            batch.append((at(offset), now_ms(), message))
        (appended,) = await self.inbox.append([Batch(self.user, self.partition, batch)], {self.partition: self.token})
        return len(appended.json)

    async def read(self, after: Position = ORIGIN, device: str = "") -> InboxPage:
        (page,) = await self.inbox.read([(self.user, device, after, 1_000, 1 << 20, now_ms())])
        return page

    async def restore(self, cursor: Position, gone: Position | None = ORIGIN) -> None:
        """Restore a phone that has acknowledged up to ``cursor``."""
        await self.inbox.restore({self.user: {"phone": LoggedDevice(cursor, 0, 1)}}, lambda _: gone)

    async def evict(self, *gone: str) -> None:
        """Have the server evict a key, and lose these keys as if it had evicted them, too."""
        # Only what expires is evicted.
        for key in await self.redis.keys("*"):
            await self.redis.persist(key)
        await self.redis.set(FILLER, "1", px=600_000)
        await self.redis.delete(*gone)
        await self.redis.config_set("maxmemory-policy", "volatile-ttl")
        await self.redis.config_set("maxmemory", 1)
        with pytest.raises(OutOfMemoryError):
            await self.redis.set("another", "1")
        assert not await self.redis.exists(FILLER)
        await self.redis.config_set("maxmemory", 0)
        await self.redis.config_set("maxmemory-policy", "noeviction")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> RedisNode:
    return RedisNode(Layout.free(Path(tmp_path_factory.mktemp("redis"))))


@pytest_asyncio.fixture(scope="module")
async def server(node: RedisNode) -> AsyncIterator[Running]:
    node.prepare()
    running = start_process(node)
    await running.wait_ready()
    yield running
    running.kill()


@pytest_asyncio.fixture
async def box(server: Running) -> AsyncIterator[Box]:
    settings = Settings(redis=f"redis://{HOST}:{server.part.port}")
    cluster, redis = Cluster(settings), connect(settings)
    box = Box(cluster, redis, settings)
    assert await box.fence() == 0
    yield box
    await redis.aclose()
    await cluster.close()


async def test_nothing_is_appended_after_a_flush_until_it_was_told(box: Box) -> None:
    await box.append(1, 2)
    assert await box.inbox.mark(box.partition, box.token, 3)
    await box.redis.flushall(target_nodes=box.redis.get_primaries())
    # A device that comes meanwhile leaves something in the data again.
    await box.inbox.hello(box.user, "phone", at(1))
    with pytest.raises(FencingTokenStale):
        await box.append(3)
    assert not await box.inbox.mark(box.partition, box.token, 4)
    assert await box.fence() == 0
    await box.restore(at(1))
    assert await box.append(1, 2, 3) == 2
    page = await box.read(at(1), "phone")
    assert (page.missed, page.count, page.until) == (False, 2, at(3))
    assert await box.inbox.mark(box.partition, box.token, 4)
    assert await box.fence() is None


async def test_evicted_keys_are_told_by_the_look_and_also_where_the_answer_got_lost(box: Box) -> None:
    await box.append(1)
    assert await box.inbox.mark(box.partition, box.token, 2)
    await box.evict()
    assert not await box.inbox.mark(box.partition, box.token, 2)
    assert await box.fence() == 0
    box.token += "another worker's"
    assert await box.fence() == 0
    assert await box.inbox.mark(box.partition, box.token, 2)
    assert await box.fence() is None


async def test_a_sentinel_that_was_evicted_alone_is_a_loss(box: Box) -> None:
    await box.append(1)
    (key,) = await box.redis.keys(f"*:applied:{box.partition}:token")
    await box.redis.delete(key)
    with pytest.raises(FencingTokenStale):
        await box.append(2)
    assert await box.fence() == 0


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)], ids=["stream", "devices", "both"])
async def test_an_inbox_that_was_evicted_is_restored_before_anything_is_appended(
    box: Box, which: tuple[int, ...]
) -> None:
    await box.append(1, 2, 3)
    await box.inbox.hello(box.user, "phone", at(1))
    await box.evict(*(keys(box.user)[i] for i in which))
    with pytest.raises(FencingTokenStale):
        await box.append(4)
    assert await box.fence() == 0
    await box.restore(at(1))
    await box.append(1, 2, 3)
    assert await box.append(4) == 1
    page = await box.read(at(1), "phone")
    assert (page.missed, page.count, page.first, page.until) == (False, 3, at(2), at(4))


async def test_what_left_an_inbox_while_its_devices_were_evicted_is_missed(box: Box) -> None:
    await box.append(1, 2, 3, 4)
    await box.inbox.hello(box.user, "phone", at(1))
    await box.inbox.hello(box.user, "laptop", at(1))
    await box.evict(keys(box.user)[1])
    # Nobody knows of the phone at this moment.
    await box.inbox.acknowledge([(box.user, "laptop", at(3))])
    await box.fence()
    await box.restore(at(1))
    await box.append(1, 2, 3, 4, 5)
    page = await box.read(at(1), "phone")
    assert (page.missed, page.until) == (True, at(3))
    page = await box.read(page.until, "phone")
    assert (page.missed, page.count, page.until) == (False, 2, at(5))


async def test_what_was_missed_comes_back_with_an_inbox_that_is_restored(box: Box) -> None:
    await box.append(1, 2)
    await box.inbox.hello(box.user, "phone", None)
    await box.redis.delete(keys(box.user)[0])
    await box.append(3)
    assert (await box.read(ORIGIN, "phone")).missed
    await box.evict(keys(box.user)[0])
    await box.fence()
    await box.restore(ORIGIN)
    await box.append(1, 2, 3)
    page = await box.read(ORIGIN, "phone")
    assert (page.missed, page.count, page.until) == (False, 3, at(3))


async def test_what_is_gone_from_the_log_is_missed(box: Box) -> None:
    await box.restore(at(3), gone=at(9))
    await box.append(10)
    page = await box.read(at(3), "phone")
    assert (page.missed, page.until) == (True, at(9))
    page = await box.read(page.until, "phone")
    assert (page.missed, page.count, page.until) == (False, 1, at(10))
    # Who has more than that misses nothing.
    box.user = user()
    await box.restore(at(9), gone=at(8))
    await box.append(10)
    page = await box.read(at(9), "phone")
    assert (page.missed, page.until) == (False, at(10))


async def test_an_inbox_that_is_gone_stays_so_if_the_log_is_not_applied_from_its_beginning(box: Box) -> None:
    await box.append(1, 2)
    await box.inbox.hello(box.user, "phone", at(1))
    await box.redis.delete(keys(box.user)[0])
    await box.restore(at(1), gone=None)
    await box.append(3)
    page = await box.read(at(1), "phone")
    assert (page.missed, page.until) == (True, at(2))


async def test_an_inbox_that_expired_is_missed_also_behind_new_messages(box: Box) -> None:
    await box.append(1, 2)
    await box.inbox.hello(box.user, "phone", at(1))
    await box.redis.delete(keys(box.user)[0])
    assert await box.append(3) == 1
    page = await box.read(at(1), "phone")
    assert (page.missed, page.until) == (True, at(2))
    page = await box.read(page.until, "phone")
    assert (page.missed, page.count, page.until) == (False, 1, at(3))


async def test_an_inbox_that_got_nothing_but_a_retry_misses_nothing(box: Box) -> None:
    await box.restore(at(1))
    assert await box.append((1, "a"), (2, "a")) == 0
    page = await box.read(at(1), "phone")
    assert (page.missed, page.count, page.until) == (False, 0, at(2))


async def test_what_is_lost_is_told_behind_a_stream_whose_devices_were_evicted(box: Box) -> None:
    await box.append(1, 2)
    await box.inbox.hello(box.user, "phone", None)
    await box.evict(keys(box.user)[1])
    await box.fence()
    await box.restore(at(1))
    assert await box.inbox.miss([box.user], box.partition, box.token, ORIGIN, at(1)) == []
    assert await box.inbox.miss([box.user], box.partition, box.token, at(2), at(5)) == [box.user]
    page = await box.read(at(1), "phone")
    assert (page.missed, page.count, page.until) == (False, 1, at(2))
    page = await box.read(page.until, "phone")
    assert (page.missed, page.until) == (True, at(5))


@pytest.mark.parametrize("is_first", [True, False], ids=["its own gateway", "another gateway"])
async def test_a_slot_whose_lease_was_flushed_goes_to_who_asks_first_in_a_later_epoch(box: Box, is_first: bool) -> None:
    await box.redis.flushall(target_nodes=box.redis.get_primaries())
    settings = box.settings.model_copy(update={"slots": 1, "lease": 0.1})
    gateway, another = (Slots(box.cluster, settings) for _ in range(2))
    lease = await gateway.take()
    with pytest.raises(NoFreeSlot):
        await another.take()
    # Epochs are times in ms.
    await eventually(lambda: now_ms() > lease.epoch)
    await box.redis.flushall(target_nodes=box.redis.get_primaries())
    if not is_first:
        assert (await another.take()).epoch > lease.epoch
    # It learns that the epoch is over, and takes a slot anew.
    await asyncio.wait_for(gateway.keep(lease), 10)
    if is_first:
        assert (await gateway.take()).epoch > lease.epoch


async def test_a_policy_that_evicts_is_refused_at_the_start(box: Box) -> None:
    await box.cluster.check()
    await box.redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(RedisRefused, match=r"Redis at 127.0.0.1:\d+: maxmemory-policy is allkeys-lru.*noeviction"):
            await box.cluster.check()
    finally:
        await box.redis.config_set("maxmemory-policy", "noeviction")


async def test_the_library_of_a_former_version_goes_once_nobody_calls_it(box: Box) -> None:
    former = FormerLibraries(box.cluster)
    version = NAME.removeprefix("connect_chat_")
    await box.redis.function_load(LIBRARY.replace(version, "0000dead"))
    await box.redis.function_load(
        "#!lua name=connect_chat_silent\nredis.register_function('cc_silent_x', function() end)"
    )

    async def call() -> None:
        await box.cluster.call(("FCALL_RO", "cc_0000dead_top", 1, keys(box.user)[1]))

    await call()
    assert await former.look(0) == []
    await call()
    assert await former.look(IDLE_SECONDS) == []
    (deleted,) = await former.look(2 * IDLE_SECONDS)
    assert deleted.name == "connect_chat_0000dead"
    (deleted,) = await former.look(SILENT_SECONDS)
    assert deleted.name == "connect_chat_silent"
    assert await former.look(2 * SILENT_SECONDS) == []
    # Ours stays.
    assert await box.append(1) == 1
