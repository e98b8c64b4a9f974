"""The inbox itself: the functions of ``inbox.lua`` on the real Redis, through ``tables.inbox``."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from chat_streams.model.errors import FencingTokenStale
from chat_streams.model.position import ORIGIN, Position
from chat_streams.model.records import LOGGED, Message
from chat_streams.model.times import now_ms
from docker.local.probes import eventually, user
from docker.local.temporary_stack import Stack
from gateway.protocol import message_tail
from tables.inbox import Appended, Batch, Inbox, InboxPage, keys
from tables.inbox_index import InboxIndex
from tables.redis_cluster import Cluster

# Not the messaging worker's partitions: it would take a foreign token for a Redis that lost writes.
_partitions = itertools.count(1_000)
MUCH = 1 << 30


def at(offset: int, index: int = 0, generation: int = 1) -> Position:
    return Position.of(generation, offset, index)


def message(to: str, id_: str, sender: str = "alice", body: Any = None) -> Message:
    data = json.dumps(id_ if body is None else body).encode()
    return Message(to, sender, id_, LOGGED, message_tail(id_, sender, data))


class Box:
    """The inbox of one user, with the token of a partition that nobody else has."""

    def __init__(self, cluster: Cluster, stack: Stack, **settings: Any) -> None:
        self.inbox = Inbox(cluster, stack.settings.model_copy(update=settings))
        self.user = user()
        self.partition = next(_partitions)
        self.token = "t"

    async def append(self, *messages: tuple[Position, str | Message], when: int | None = None) -> Appended:
        logged_at = now_ms() if when is None else when
        batch = [(p, logged_at, m if isinstance(m, Message) else message(self.user, m)) for p, m in messages]
        (appended,) = await self.inbox.append([Batch(self.user, self.partition, batch)], {self.partition: self.token})
        return appended

    async def read(
        self, after: Position = ORIGIN, limit: int = 1_000, limit_bytes: int = MUCH, device: str = ""
    ) -> InboxPage:
        (page,) = await self.inbox.read([(self.user, device, after, limit, limit_bytes, now_ms())])
        return page

    async def ids(self, after: Position = ORIGIN, limit: int = 1_000, limit_bytes: int = MUCH) -> list[str]:
        page = await self.read(after, limit, limit_bytes)
        assert not page.missed
        found = json.loads(b"[%b]" % page.messages)
        assert len(found) == page.count
        return [m["id"] for m in found]

    async def ack(self, position: Position, device: str = "phone") -> None:
        await self.inbox.acknowledge([(self.user, device, position)])


NewBox = Callable[..., Any]


@pytest_asyncio.fixture
async def new_box(stack: Stack) -> AsyncIterator[NewBox]:
    cluster = Cluster(stack.settings)

    async def new(**settings: Any) -> Box:
        box = Box(cluster, stack, **settings)
        await box.inbox.fence(box.partition, "", box.token)
        return box

    yield new
    await cluster.close()


async def test_appending_again_adds_nothing(new_box: NewBox, stack: Stack) -> None:
    box = await new_box()
    records = [(at(1), "a"), (at(1, 1), "b"), (at(2), "c")]
    first = await box.append(*records)
    assert (first.former, first.until, first.positions, len(first.json)) == (ORIGIN, at(2), [at(1), at(1, 1), at(2)], 3)
    assert json.loads(first.json[1])["pos"] == str(at(1, 1))
    again = await box.append(*records)
    assert (again.former, again.until, again.positions, again.json) == (at(2), at(2), [], [])
    # A replay that overlaps new records.
    more = await box.append(*records[1:], (at(3), "d"))
    assert (more.former, more.until, more.positions, len(more.json)) == (at(2), at(3), [at(3)], 1)
    assert await box.ids() == ["a", "b", "c", "d"]
    assert await stack.stored(box.user) == 4


@pytest.mark.parametrize(
    ("higher", "lower"),
    [
        (at(2), at(1)),
        (at(10), at(9)),
        (at(1, 10), at(1, 9)),
        (at(5, 0), at(4, 999)),
        (at(0, 0, 100), at((1 << 40) - 1, 0, 99)),
        # Beyond 2^53, where Lua's numbers are no longer exact.
        (at(2, 0, 1 << 23), at(1, 0, 1 << 23)),
        (at(1, 1, (1 << 24) - 1), at(1, 0, (1 << 24) - 1)),
    ],
    ids=str,
)
async def test_a_lower_position_after_a_higher_one_adds_nothing(
    new_box: NewBox, higher: Position, lower: Position
) -> None:
    box = await new_box()
    await box.append((higher, "new"))
    late = await box.append((lower, "late"))
    assert (late.former, late.until, late.json) == (higher, higher, [])
    assert await box.ids() == ["new"]
    # In the other order, both are stored.
    box = await new_box()
    await box.append((lower, "first"))
    await box.append((higher, "second"))
    assert await box.ids() == ["first", "second"]
    assert await box.ids(after=lower) == ["second"]


async def test_a_retry_is_dropped_and_moves_the_top(new_box: NewBox) -> None:
    box = await new_box()
    await box.append((at(1), "a"), (at(1, 1), "a"), (at(1, 2), "b"))
    retried = await box.append((at(2), "a"), (at(2, 1), "c"), (at(3), "b"))
    assert (retried.former, retried.until, retried.positions, len(retried.json)) == (at(1, 2), at(3), [at(2, 1)], 1)
    assert await box.ids() == ["a", "b", "c"]
    assert (await box.read()).until == at(3)
    # It stays known, acknowledged or not.
    await box.ack(at(3))
    assert (await box.append((at(4), "a"))).json == []
    # The same id of another sender is another message.
    assert len((await box.append((at(5), message(box.user, "a", sender="carla")))).json) == 1


async def test_a_retry_across_the_edge_of_a_window_is_dropped(new_box: NewBox) -> None:
    box = await new_box(retry_window=60)
    edge = now_ms() // 60_000 * 60_000
    await box.append((at(1), "a"), when=edge - 1)
    assert (await box.append((at(2), "a"), when=edge)).json == []
    assert (await box.append((at(3), "a"), when=edge + 59_999)).json == []


async def test_a_copy_of_the_window_before_is_dropped_behind_one_of_the_next(new_box: NewBox) -> None:
    """As where a broker's clock was set back, or a dead letter is redriven."""
    box = await new_box(retry_window=60)
    edge = now_ms() // 60_000 * 60_000
    assert len((await box.append((at(1), "a"), when=edge)).json) == 1
    assert (await box.append((at(2), "a"), when=edge - 1)).json == []
    # In a batch with new ones, too, and only by one window.
    assert (await box.append((at(3), "a"), (at(3, 1), "b"), when=edge - 60_000)).positions == [at(3, 1)]
    assert len((await box.append((at(4), "a"), when=edge - 180_000)).json) == 1


async def test_a_message_has_the_time_of_the_log_and_one_of_before_its_own(new_box: NewBox) -> None:
    box = await new_box()
    old_json = b',"id":"old","from":"alice","at":"2026-01-01T00:00:00.000Z","body":1}'
    old = Message(box.user, "alice", "old", 1_767_225_600_000, old_json)
    appended = await box.append((at(1), old), (at(1, 1), "new"), when=1_767_323_045_678)
    expected = ["2026-01-01T00:00:00.000Z", "2026-01-02T03:04:05.678Z"]
    assert [json.loads(text)["at"] for text in appended.json] == expected
    (page,) = await box.inbox.read([(box.user, "", ORIGIN, 9, MUCH, 1_767_323_046_000)])
    assert [m["at"] for m in json.loads(b"[%b]" % page.messages)] == expected


async def test_past_the_quota_a_gap_takes_the_place_of_the_newest(new_box: NewBox) -> None:
    box = await new_box(inbox_messages=3)
    appended = await box.append(*((at(n), f"m{n}") for n in range(1, 6)))
    assert len(appended.json) == 3
    await box.append((at(6), "m6"))
    page = await box.read()
    assert (page.missed, page.count, page.until) == (False, 3, at(3))
    page = await box.read(page.until)
    assert (page.missed, page.after, page.until) == (True, at(3), at(6))
    page = await box.read(page.until)
    assert (page.missed, page.count, page.until) == (False, 0, at(6))
    # There is room again: new messages come after the gap.
    await box.ack(at(2))
    await box.append((at(7), "m7"))
    assert await box.ids(at(2)) == ["m3"]
    assert await box.ids(at(6)) == ["m7"]
    page = await box.read(at(3))
    assert (page.missed, page.until) == (True, at(6))


async def test_messages_past_the_quota_in_bytes_are_missed(new_box: NewBox) -> None:
    box = await new_box(inbox_bytes=10_000)
    large = [(at(n), message(box.user, f"m{n}", body="x" * 3_000)) for n in range(1, 6)]
    assert len((await box.append(*large)).json) == 3
    assert (await box.read(at(3))).missed
    # Acknowledged bytes are free again, however often.
    for n in range(6, 60):
        await box.ack(at(n - 1))
        assert len((await box.append((at(n), message(box.user, f"m{n}", body="x" * 3_000)))).json) == 1


async def test_what_is_lost_is_missed_once_by_each_device_and_hides_nothing(new_box: NewBox, stack: Stack) -> None:
    box = await new_box()
    await box.append((at(1), "a"), (at(2), "b"))
    for device in ("phone", "laptop"):
        await box.inbox.hello(box.user, device, None)
    await box.ack(at(2))
    lost = Position.before(1, 5), Position.before(1, 9)
    nobody = user()
    users = [box.user, nobody]
    assert await box.inbox.miss(users, box.partition, box.token, *lost) == [box.user]
    # Again, after a crash, it is the same range, and the user is told again that there is something.
    assert await box.inbox.miss(users, box.partition, box.token, *lost) == [box.user]
    assert (await stack.stored(box.user), await stack.stored(nobody)) == (3, 0)
    assert await box.inbox.tops(users) == [lost[1], ORIGIN]
    await box.append((at(9), "c"))
    # The laptop has what waited below it, then hears of the loss; a replay brings none of it back.
    assert (await box.append((at(6), "late"))).json == []
    page = await box.read(device="laptop")
    assert (page.missed, page.count, page.until) == (False, 2, at(2))
    for device in ("phone", "laptop"):
        page = await box.read(at(2), device=device)
        assert (page.missed, page.after, page.until) == (True, at(2), lost[1])
        page = await box.read(lost[1], device=device)
        assert (page.missed, page.count, page.until) == (False, 1, at(9))
        await box.ack(at(9), device)
    assert await stack.stored(box.user) == 0
    # What is above the range has been told of it, or was complete.
    assert await box.inbox.miss([box.user], box.partition, box.token, *lost) == []
    with pytest.raises(FencingTokenStale):
        await box.inbox.miss([box.user], box.partition, "other", at(20), Position.before(1, 30))
    assert await box.inbox.tops([box.user]) == [at(9)]


async def test_a_loss_and_an_overflow_that_follows_it_are_one_gap(new_box: NewBox) -> None:
    box = await new_box(inbox_messages=2)
    await box.append((at(1), "a"))
    await box.inbox.miss([box.user], box.partition, box.token, Position.before(1, 5), Position.before(1, 9))
    await box.append(*((at(n), f"m{n}") for n in range(9, 13)))
    assert await box.ids() == ["a"]
    page = await box.read(at(1))
    assert (page.missed, page.until) == (True, at(12))


async def test_the_users_of_all_inboxes_and_devices_are_found(new_box: NewBox, stack: Stack) -> None:
    box = await new_box()
    newcomer = user()
    await box.append((at(1), "a"))
    await box.inbox.hello(newcomer, "phone", None)
    cluster = Cluster(stack.settings)
    try:
        found = {
            key: {name async for page in InboxIndex(cluster).users(key) for name in page}
            for key in ("inbox", "devices")
        }
    finally:
        await cluster.close()
    assert {box.user} == {box.user, newcomer} & found["inbox"]
    assert {box.user, newcomer} <= found["devices"]


async def test_a_read_from_below_the_floor_says_what_is_missed(new_box: NewBox) -> None:
    box = await new_box()
    await box.append(*((at(n), f"m{n}") for n in range(1, 6)))
    await box.inbox.hello(box.user, "phone", None)
    await box.ack(at(3))
    page = await box.read(at(1))
    assert (page.missed, page.after, page.until) == (True, at(1), at(3))
    assert await box.ids(at(3)) == ["m4", "m5"]
    device = await box.inbox.hello(box.user, "laptop", None)
    assert (device.cursor, device.floor, device.top) == (at(3), at(3), at(5))


async def test_only_what_all_devices_have_is_removed(new_box: NewBox, stack: Stack) -> None:
    box = await new_box()
    await box.append(*((at(n), f"m{n}") for n in range(1, 6)))
    for device in ("phone", "laptop"):
        await box.inbox.hello(box.user, device, None)
    await box.ack(at(4))
    assert await stack.stored(box.user) == 5
    await box.ack(at(2), "laptop")
    assert await box.ids(at(2)) == ["m3", "m4", "m5"]
    assert await stack.stored(box.user) == 3
    # Late and repeated acknowledgements do not move the cursor back.
    await box.ack(at(1))
    await box.ack(at(2), "laptop")
    assert (await box.inbox.hello(box.user, "phone", None)).cursor == at(4)
    await box.ack(at(5), "laptop")
    assert await box.ids(at(4)) == ["m5"]


async def test_the_longest_unseen_device_is_forgotten(new_box: NewBox, stack: Stack) -> None:
    box = await new_box(max_devices=2)
    await box.append(*((at(n), f"m{n}") for n in range(1, 6)))
    await box.inbox.hello(box.user, "old", None)
    await box.ack(at(1), "old")
    # Last-seen times are whole seconds: make this one clearly older than those of the other devices.
    answer: Any = await stack.redis.hget(keys(box.user)[1], "d:old")
    cursor, seen, number = answer.decode().split()
    await stack.redis.hset(keys(box.user)[1], "d:old", f"{cursor} {int(seen) - 10} {number}")
    await box.inbox.hello(box.user, "phone", None)
    await box.inbox.hello(box.user, "laptop", None)
    # The forgotten device no longer keeps messages from being removed, and is told what it missed when it comes back.
    await box.ack(at(5), "phone")
    await box.ack(at(4), "laptop")
    assert await stack.stored(box.user) == 1
    page = await box.read(at(1))
    assert (page.missed, page.until) == (True, at(4))


async def test_a_new_device_is_never_the_one_that_is_forgotten(new_box: NewBox, stack: Stack) -> None:
    box = await new_box(max_devices=2)
    # All within a second, and the new device's name sorts first.
    for device in ("y", "z", "a"):
        await box.inbox.hello(box.user, device, None)
    answer: Any = await stack.redis.hkeys(keys(box.user)[1])
    devices = {name.decode() for name in answer}
    assert len(devices & {"d:y", "d:z", "d:a"}) == 2
    # If it were forgotten at once, messages would be removed without waiting for it.
    assert "d:a" in devices


async def test_hello_numbers_the_connections_and_moves_the_cursor_forward_only(new_box: NewBox) -> None:
    box = await new_box()
    await box.append(*((at(n), f"m{n}") for n in range(1, 6)))
    first = await box.inbox.hello(box.user, "phone", None)
    second = await box.inbox.hello(box.user, "phone", at(3))
    third = await box.inbox.hello(box.user, "phone", at(2))
    beyond = await box.inbox.hello(box.user, "phone", at(9))
    log_end = await box.inbox.hello(box.user, "phone", at(9), at(7))
    assert [d.cursor for d in (first, second, third, beyond, log_end)] == [ORIGIN, at(3), at(3), at(5), at(7)]
    numbers = [d.number for d in (first, second, third, beyond, log_end)]
    assert numbers == sorted(set(numbers))


async def test_a_noisy_sender_does_not_push_out_the_others(new_box: NewBox, stack: Stack) -> None:
    box = await new_box(inbox_messages=100)
    noisy = [(at(n), message(box.user, f"n{n}", sender="noisy")) for n in range(1, 151)]
    await box.append(*noisy)
    # 100, and one sender's share past the quota; the rest is one gap.
    assert await stack.stored(box.user) == 102
    await box.append(
        (at(151), message(box.user, "q1", sender="quiet")), (at(152), message(box.user, "q2", sender="quiet"))
    )
    ids = [m["id"] for page in await pages(box) for m in json.loads(b"[%b]" % page.messages)]
    assert ids == [*(f"n{n}" for n in range(1, 102)), "q1"]


async def pages(box: Box) -> list[InboxPage]:
    found: list[InboxPage] = []
    after = ORIGIN
    while True:
        page = await box.read(after)
        if page.until == after:
            return found
        found.append(page)
        after = page.until


async def test_what_a_device_acknowledged_late_is_neither_missed_nor_read_again(new_box: NewBox) -> None:
    box = await new_box()
    await box.append(*((at(n), f"m{n}") for n in range(1, 6)))
    again = await box.inbox.hello(box.user, "phone", None)
    # The acknowledgement of the phone's previous connection was still on its way.
    await box.ack(at(3))
    page = await box.read(again.cursor, device="phone")
    assert (page.missed, page.after, page.until) == (False, again.cursor, at(5))
    assert [m["id"] for m in json.loads(b"[%b]" % page.messages)] == ["m4", "m5"]
    # Another device, which is at the same position and has not acknowledged it, is told.
    assert (await box.read(again.cursor, device="laptop")).missed


async def test_a_stale_token_appends_nothing(new_box: NewBox, stack: Stack) -> None:
    box = await new_box()
    await box.append((at(1), "a"))
    box.token = "zombie"
    with pytest.raises(FencingTokenStale):
        await box.append((at(2), "b"))
    assert await stack.stored(box.user) == 1
    # A partition that nobody has fenced has no token at all.
    box.partition = next(_partitions)
    with pytest.raises(FencingTokenStale):
        await box.append((at(2), "b"))
    assert await stack.stored(box.user) == 1


async def test_fencing_says_whether_the_token_was_kept(new_box: NewBox) -> None:
    box = await new_box()
    kept = await box.inbox.fence(box.partition, "t", "u")
    lost = await box.inbox.fence(box.partition, "t", "v")
    assert (kept is None, lost is None) == (True, False)
    for box.token in ("t", "u"):
        with pytest.raises(FencingTokenStale):
            await box.append((at(1), "a"))
    box.token = "v"
    await box.append((at(1), "a"))
    # Each partition has its own token.
    other = await new_box()
    await other.append((at(1), "a"))
    await box.append((at(2), "b"))


async def test_a_page_ends_at_its_limits(new_box: NewBox) -> None:
    box = await new_box()
    await box.append(*((at(n), message(box.user, f"m{n}", body="x" * 1_000)) for n in range(1, 11)))
    page = await box.read(limit=4)
    assert (page.count, page.first, page.until) == (4, at(1), at(4))
    size = len((await box.read(limit=1)).messages)
    assert (await box.read(limit_bytes=3 * size)).until == at(3)
    # One message is returned however large it is: otherwise there would be no progress.
    assert (await box.read(at(4), limit_bytes=1)).until == at(5)
    assert (await box.read(at(9))).until == at(10)


async def test_long_inboxes_are_read_whole(new_box: NewBox) -> None:
    box = await new_box()
    ids = [f"m{n}" for n in range(1_000)]
    for start in range(0, 1_000, 250):
        await box.append(*((at(1 + start, n), ids[start + n]) for n in range(250)))
    for limit in (1, 249, 250, 251, 500, 1_000):
        assert await box.ids(limit=limit) == ids[:limit]


async def test_messages_past_their_age_are_missed_and_newer_ones_are_not(new_box: NewBox) -> None:
    box = await new_box(inbox_ttl=100)
    old, now = now_ms() - 200_000, now_ms()
    await box.append(*((at(n), f"m{n}") for n in (1, 2)), when=old)
    await box.append(*((at(n), f"m{n}") for n in (3, 4)), when=now)
    page = await box.read()
    assert (page.missed, page.after, page.until) == (True, ORIGIN, at(2))
    assert await box.ids(page.until) == ["m3", "m4"]


@pytest.mark.parametrize("quota", [{"inbox_messages": 3}, {"inbox_bytes": 3_500}], ids=["messages", "bytes"])
async def test_what_has_expired_counts_for_nothing(new_box: NewBox, stack: Stack, quota: dict[str, int]) -> None:
    box = await new_box(inbox_ttl=100, **quota)
    large = [(at(n), message(box.user, f"m{n}", body="x" * 1_000)) for n in range(1, 7)]
    await box.append(*large[:3], when=now_ms() - 200_000)
    appended = await box.append(*large[3:])
    assert (len(appended.json), appended.overflow) == (3, 0)
    assert await stack.stored(box.user) == 3
    # What was removed to make room is missed, as it was before.
    page = await box.read(at(1))
    assert (page.missed, page.after, page.until) == (True, at(1), at(3))
    assert await box.ids(page.until) == ["m4", "m5", "m6"]
    # What has not expired counts.
    assert (await box.append((at(7), message(box.user, "m7", body="x" * 1_000)))).overflow == 1


async def test_what_has_expired_is_skipped_and_removed_some_at_a_time(new_box: NewBox, stack: Stack) -> None:
    box = await new_box(inbox_ttl=100)
    expired = [(at(n), f"m{n}") for n in range(1, 5_001)]
    for start in range(0, len(expired), 1_000):
        await box.append(*expired[start : start + 1_000], when=now_ms() - 200_000)
    await box.append((at(5_001), "new"))
    pages = []
    after = ORIGIN
    while (page := await box.read(after)).missed:
        pages.append(page.until)
        after = page.until
    assert pages == [at(2_000), at(4_000), at(5_000)]
    assert await box.ids(after) == ["new"]
    # The quota was lowered: there is room at once, and the rest of what has expired goes with the next messages.
    box.inbox = Inbox(box.inbox._cluster, stack.settings.model_copy(update={"inbox_ttl": 100, "inbox_messages": 10}))
    for n, left in ((5_002, 3_002), (5_003, 1_003), (5_004, 4)):
        appended = await box.append((at(n), f"m{n}"))
        assert (len(appended.json), await stack.stored(box.user)) == (1, left)
    assert await box.ids(at(5_000)) == ["new", "m5002", "m5003", "m5004"]


async def test_large_messages_that_expired_are_skipped_some_at_a_time(new_box: NewBox) -> None:
    box = await new_box(inbox_ttl=100)
    large = [(at(n), message(box.user, f"m{n}", body="x" * 60_000)) for n in range(1, 21)]
    await box.append(*large, when=now_ms() - 200_000)
    assert (await box.read()).until == at(9)


async def lifetimes(stack: Stack, box: Box) -> dict[str, int]:
    """Return the milliseconds that each key of an inbox has to live; -1 for ever."""
    names = [key.decode() async for key in stack.redis.scan_iter(match=f"{{u:{box.user}}}*")]
    return {name: await stack.redis.pttl(name) for name in names}


async def test_an_inbox_nobody_touches_expires_with_all_its_keys(new_box: NewBox, stack: Stack) -> None:
    box = await new_box(inbox_ttl=1_000, retry_window=500)
    await box.append((at(1), "a"), (at(2), "b"))
    await box.inbox.hello(box.user, "phone", None)
    left = await lifetimes(stack, box)
    inbox, devices = keys(box.user)
    (seen,) = left.keys() - {inbox, devices}
    # The devices' key outlives the messages, so that an expired inbox can be told from a new one.
    assert 0 < left[inbox] <= 1_000_000 < left[devices] <= 2_000_000
    assert 0 < left[seen] <= 1_500_000


async def test_a_device_whose_inbox_expired_is_told_what_it_missed(new_box: NewBox, stack: Stack) -> None:
    box = await new_box()
    await box.inbox.hello(box.user, "phone", None)
    await box.append((at(1), "a"), (at(2), "b"))
    await stack.redis.pexpire(keys(box.user)[0], 1)

    async def is_gone() -> bool:
        return await stack.stored(box.user) == 0

    await eventually(is_gone)
    device = await box.inbox.hello(box.user, "phone", None)
    page = await box.read(device.cursor)
    assert (page.missed, page.after, page.until) == (True, ORIGIN, at(2))
    await box.append((at(3), "c"))
    assert await box.ids(at(2)) == ["c"]


async def test_an_inbox_in_use_does_not_expire(new_box: NewBox, stack: Stack) -> None:
    box = await new_box(inbox_ttl=1_000)
    await box.append((at(1), "a"))
    await box.inbox.hello(box.user, "phone", None)
    for use in (box.inbox.hello(box.user, "phone", None), box.ack(ORIGIN)):
        for key in keys(box.user):
            await stack.redis.pexpire(key, 200_000)
        await use
        assert all(left > 500_000 for left in [await stack.redis.pttl(key) for key in keys(box.user)])
    assert await stack.stored(box.user) == 1
