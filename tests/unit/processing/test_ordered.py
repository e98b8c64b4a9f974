"""What a worker commits: never more than is applied, with the newest token; how it takes records, and writes them."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.errors import IllegalStateError, KafkaTimeoutError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode import Service

from chat_streams.processing.offsets import Admission, Checkpoint, Progress, Start
from chat_streams.processing.ordered import BUSY_FETCH_MS, SOON_SECONDS, Consumer, OrderedApp, _Thread

PARTITION = TP("incoming_messages", 0)
IDLE_FETCH_MS = 1_500
"""Faust's own."""


@pytest.fixture
def progress() -> Progress[TP]:
    found: Progress[TP] = Progress(60)
    found.start(PARTITION, Start(10, Checkpoint(token="old")), time.monotonic())
    return found


@pytest.fixture
def consumer(progress: Progress[TP]) -> Consumer:
    """Make one that is connected to nothing."""
    found = Consumer.__new__(Consumer)
    found.progress = progress
    found.committed_tokens = {}
    found._committed_offset = {PARTITION: 10}
    return found


class Thread(_Thread):
    """The consumer's thread, with what it would tell Kafka."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        self.committed: list[tuple[int, Checkpoint]] = []

    def assignment(self) -> set[TP]:
        return {PARTITION}

    def _ensure_consumer(self) -> Any:
        return SimpleNamespace(commit=self._take)

    async def _take(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        for value in offsets.values():
            self.committed.append((value.offset, msgspec.json.decode(value.metadata, type=Checkpoint)))


async def turns() -> None:
    """Let the loop go round until everybody did what they could."""
    for _ in range(10):
        await asyncio.sleep(0)


def apply(progress: Progress[TP], first: int, last: int) -> None:
    epoch = progress.epoch(PARTITION)
    assert epoch is not None
    for offset in range(first, last + 1):
        assert progress.admit(PARTITION, offset, time.monotonic()) is Admission.APPLY
        progress.done(PARTITION, epoch, offset, time.monotonic())


def test_a_new_token_is_committed_though_no_offset_moved(consumer: Consumer, progress: Progress[TP]) -> None:
    assert not consumer._should_commit(PARTITION, 10)
    progress.fence(PARTITION, "new")
    assert consumer._should_commit(PARTITION, 10)
    consumer.committed_tokens[PARTITION] = "new"
    assert not consumer._should_commit(PARTITION, 10)


async def test_what_is_applied_is_committed_with_its_token(consumer: Consumer, progress: Progress[TP]) -> None:
    progress.fence(PARTITION, "new")
    apply(progress, 10, 19)
    thread = Thread(consumer)
    assert await thread._commit({PARTITION: 20})
    ((offset, checkpoint),) = thread.committed
    assert (offset, checkpoint.token) == (20, "new")
    assert consumer.committed_tokens == {PARTITION: "new"}


async def test_an_offset_from_before_a_rewind_is_not_committed(consumer: Consumer, progress: Progress[TP]) -> None:
    apply(progress, 10, 19)
    # Faust asked for 20; then Redis lost writes, and a new token was adopted for applying from 12 again.
    progress.start(PARTITION, Start(12, Checkpoint()), time.monotonic())
    progress.fence(PARTITION, "new")
    thread = Thread(consumer)
    assert not await thread._commit({PARTITION: 20})
    assert thread.committed == []


async def test_a_partition_that_went_away_is_not_committed(consumer: Consumer, progress: Progress[TP]) -> None:
    apply(progress, 10, 19)
    progress.clear()
    thread = Thread(consumer)
    assert not await thread._commit({PARTITION: 20})
    assert thread.committed == []


class Broker:
    """Stands in for the consumer's thread: what is committed, told after something has happened meanwhile."""

    def __init__(self) -> None:
        self.meanwhile: Callable[[], Awaitable[None]] = nothing
        self.sought: dict[TP, int] = {}

    def assignment(self) -> set[TP]:
        return {PARTITION}

    async def checkpoints(self, tps: Iterable[TP]) -> dict[TP, OffsetAndMetadata]:
        await self.meanwhile()
        return {tp: OffsetAndMetadata(881, "") for tp in tps}

    async def earliest_offsets(self, *tps: TP) -> dict[TP, int]:
        return dict.fromkeys(tps, 0)

    async def seek_wait(self, offsets: Mapping[TP, int]) -> None:
        self.sought.update(offsets)


async def nothing(*_: Any, **__: Any) -> None: ...


@pytest.fixture
def broker(consumer: Consumer, monkeypatch: pytest.MonkeyPatch) -> Broker:
    found = Broker()
    consumer._rebalances = 0
    consumer._thread = cast(Any, found)
    monkeypatch.setattr(consumer, "_is_changelog_tp", lambda _: False, raising=False)
    # What Faust does at a rebalance is not looked at here.
    for name in ("on_partitions_revoked", "on_partitions_assigned"):
        monkeypatch.setattr(driver.Consumer, name, nothing)
    return found


async def test_a_partition_begins_where_it_is_committed(
    consumer: Consumer, progress: Progress[TP], broker: Broker
) -> None:
    assert await consumer.seek_to_committed() == {PARTITION: 881} == broker.sought
    assert progress.committable(PARTITION) == 881


@pytest.mark.parametrize("event", ["on_partitions_revoked", "on_partitions_assigned"])
async def test_what_a_rebalance_overtook_begins_nothing(
    consumer: Consumer, progress: Progress[TP], broker: Broker, event: str
) -> None:
    # Else 881 would be committed whenever the partition comes back, be it behind what another worker committed.
    broker.meanwhile = lambda: getattr(consumer, event)({PARTITION})
    with pytest.raises(IllegalStateError):
        await consumer.seek_to_committed()
    assert PARTITION not in progress
    assert broker.sought == {}


@pytest.mark.parametrize("event", ["on_partitions_revoked", "on_partitions_assigned"])
async def test_nothing_is_committable_between_a_rebalance_and_the_seek(
    consumer: Consumer, progress: Progress[TP], broker: Broker, event: str
) -> None:
    apply(progress, 10, 19)
    await getattr(consumer, event)({PARTITION})
    assert list(consumer._filter_tps_with_pending_acks()) == []
    assert progress.committable(PARTITION) is None


async def test_records_leave_in_order_though_the_first_waits_for_room_in_vain_at_first() -> None:
    left: list[tuple[int, bytes]] = []
    tries: list[bytes] = []
    encoded: list[bytes] = []
    room = asyncio.Event()

    def encode(value: bytes) -> bytes:
        encoded.append(value)
        return value

    class Producer:
        async def send(self, topic: str, key: bytes | None, value: bytes, partition: int, *_: Any) -> Awaitable[None]:
            if value == b"large":
                await room.wait()
                if not tries:
                    tries.append(value)
                    raise KafkaTimeoutError
            left.append((partition, value))
            return asyncio.sleep(0)

    app = OrderedApp.__new__(OrderedApp)
    app._turns = defaultdict(asyncio.Lock)
    app._producer = Producer()
    written = [
        asyncio.create_task(app.produce("outgoing_messages", partition, None, partial(encode, value)))
        for partition, value in ((0, b"large"), (0, b"second"), (1, b"elsewhere"), (0, b"third"))
    ]
    await written[2]
    assert left == [(1, b"elsewhere")]
    # What waits behind the first has no bytes of its own yet: there may be much of it.
    assert encoded == [b"large", b"elsewhere"]
    room.set()
    await asyncio.gather(*written)
    assert left[1:] == [(0, b"large"), (0, b"second"), (0, b"third")]


async def test_all_records_of_a_fetch_are_given_out_before_the_agent_begins(consumer: Consumer) -> None:
    Service.__init__(consumer)
    queue: asyncio.Queue[int] = asyncio.Queue()
    suspended = asyncio.Event()

    async def agent() -> int:
        await queue.get()
        return 1 + queue.qsize()

    batch = asyncio.create_task(agent())
    await asyncio.sleep(0)
    for number in range(5):
        (done,), results, stopped = await consumer.wait_first(queue.put(number), suspended.wait())
        assert (inspect.iscoroutine(done), results, stopped) == (True, [None], False)
    assert await batch == 5


async def test_what_must_wait_to_be_given_out_waits_and_ends_with_the_flow(consumer: Consumer) -> None:
    Service.__init__(consumer)
    queue: asyncio.Queue[int] = asyncio.Queue(1)
    suspended = asyncio.Event()
    await consumer.wait_first(queue.put(1), suspended.wait())
    waiting = asyncio.create_task(consumer.wait_first(queue.put(2), suspended.wait()))
    await turns()
    assert not waiting.done()
    assert await queue.get() == 1
    assert not (await waiting).stopped
    assert queue.qsize() == 1
    # The queue is full again, and a rebalance begins: what could not be given out is not.
    waiting = asyncio.create_task(consumer.wait_first(queue.put(3), suspended.wait()))
    await turns()
    suspended.set()
    await waiting
    assert await queue.get() == 2
    await turns()
    assert queue.empty()


@pytest.mark.parametrize("waits", [False, True])
async def test_an_error_of_giving_out_comes_to_who_waits_for_it(consumer: Consumer, waits: bool) -> None:
    Service.__init__(consumer)

    async def give() -> None:
        if waits:
            await asyncio.sleep(0)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await consumer.wait_first(give(), asyncio.Event().wait())


async def test_a_fetch_is_answered_soon_while_records_wait_for_their_agent(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetcher: Any = Fetcher.__new__(Fetcher)
    cluster = SimpleNamespace(leader_for_partition=lambda tp: 0)
    vars(fetcher).update(
        _client=SimpleNamespace(cluster=cluster),
        _client_rack=None,
        _fetch_max_bytes=1,
        _fetch_max_wait_ms=IDLE_FETCH_MS,
        _fetch_min_bytes=1,
        _fetcher_timeout=1,
        _in_flight=set(),
        _isolation_level=0,
        _max_partition_fetch_bytes=1,
        _preferred_read_replica={},
        _records={},
    )

    async def on_start(thread: _Thread) -> None:
        thread._consumer = cast("Any", SimpleNamespace(_fetcher=fetcher))

    monkeypatch.setattr(driver.AIOKafkaConsumerThread, "on_start", on_start)
    thread = object.__new__(_Thread)
    thread.consumer = consumer
    await thread.on_start()
    held_back, changelog = TP("incoming_messages", 1), TP("messaging-sessions-changelog", 0)
    consumer._active_partitions, consumer._buffered_partitions = {PARTITION}, {held_back}

    def longest_wait_with(*waiting: TP) -> int:
        fetcher._records = {TopicPartition(*tp): SimpleNamespace(calculate_backoff=lambda: 0) for tp in waiting}
        assignment = SimpleNamespace(
            tps=[TopicPartition("session_events", 0), *fetcher._records],
            state_value=lambda tp: SimpleNamespace(has_valid_position=True, paused=False, position=0),
        )
        ((_, request),), *_ = fetcher._get_actions_per_node(assignment)
        return int(request._max_wait_ms)

    assert longest_wait_with() == IDLE_FETCH_MS
    assert longest_wait_with(PARTITION) == BUSY_FETCH_MS
    assert longest_wait_with(held_back) == BUSY_FETCH_MS
    # Of a table that has recovered: nobody takes them.
    assert longest_wait_with(changelog) == IDLE_FETCH_MS


@pytest.mark.parametrize(("active", "asked"), [(set(), []), ({PARTITION}, [SOON_SECONDS])])
async def test_partitions_whose_queue_was_full_are_asked_for_soon_again(
    consumer: Consumer, active: set[TP], asked: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts: list[float] = []
    sleeps: list[float] = []

    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)

    async def wait_next_records(_: Consumer, timeout: float) -> tuple[dict[TP, Any], set[TP]]:
        timeouts.append(timeout)
        return {}, active

    monkeypatch.setattr(driver.Consumer, "_wait_next_records", wait_next_records)
    monkeypatch.setattr(Consumer, "_get_active_partitions", lambda _: active)
    consumer._buffered_partitions = {TP("incoming_messages", 1)}
    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert await consumer._wait_next_records(1.0) == ({}, active)
    # Somebody has to wait, or it would be asked for without a pause.
    assert (timeouts, [*timeouts, *sleeps]) == (asked, [SOON_SECONDS])
    consumer._buffered_partitions = set()
    await consumer._wait_next_records(1.0)
    assert timeouts == [*asked, 1.0]
