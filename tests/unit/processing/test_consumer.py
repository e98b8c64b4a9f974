"""The consumer of an app: where partitions begin, what reaches the agents, and what is committed, and when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from aiokafka.errors import InvalidSessionTimeoutError, KafkaConnectionError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.types import TP
from structlog.testing import capture_logs

from chat_streams.model.errors import Rewound, SettingsError, TopicsError
from chat_streams.processing import consumer as module
from chat_streams.processing.consumer import DONE_LOOK_SECONDS, HELD_BYTES, HELD_RECORDS, Consumer, Listener
from chat_streams.processing.offsets import Admission, Checkpoint, LostRange, Progress, Start

PARTITION = TP("incoming_messages", 0)
OTHER = TP("session_events", 0)
CHANGELOG = TP("messaging-sessions-changelog", 0)


async def nothing(*_: Any) -> None: ...


class Kafka:
    """A stand-in for the client: its records come by ``poll``, its answers after an event that ``meanwhile`` causes."""

    def __init__(self) -> None:
        self.assigned = {PARTITION}
        self.metadata = ""
        self.earliest = 0
        self.has_committed = True
        self.meanwhile: Callable[[], Awaitable[None]] = nothing
        self.sought: dict[TP, int] = {}
        self.paused: set[TP] = set()
        self.records: asyncio.Queue[dict[TP, list[Any]]] = asyncio.Queue()
        self.polled: list[tuple[float, tuple[TP, ...]]] = []
        self.commits: list[dict[TP, tuple[int, Checkpoint]]] = []
        self.takes_commits = True
        self.is_stopped = False

    def assignment(self) -> set[TP]:
        return self.assigned

    async def committed(self, tps: Iterable[TP]) -> dict[TP, OffsetAndMetadata]:
        await self.meanwhile()
        return {tp: OffsetAndMetadata(881, self.metadata) for tp in tps if self.has_committed}

    async def beginnings(self, tps: Iterable[TP]) -> dict[TP, int]:
        return dict.fromkeys(tps, self.earliest)

    async def commit(self, offsets: Mapping[TP, OffsetAndMetadata], within_s: float) -> bool:
        await self.meanwhile()
        decoded = {tp: (o, msgspec.json.decode(m, type=Checkpoint)) for tp, (o, m) in offsets.items()}
        self.commits.append(decoded)
        return self.takes_commits

    async def poll(self, wait_s: float, most: int, of: Iterable[TP] = ()) -> dict[TP, list[Any]]:
        self.polled.append((wait_s, tuple(of)))
        return await self.records.get()

    async def stop(self) -> None:
        self.is_stopped = True

    def seek(self, tp: TP, offset: int) -> None:
        self.sought[tp] = offset

    def pause(self, tps: Iterable[TP]) -> None:
        self.paused |= set(tps)

    def resume(self, tps: Iterable[TP]) -> None:
        self.paused -= set(tps)


class Channel:
    """The channel of an agent."""

    def __init__(self, topic: str) -> None:
        self.topics = [topic]
        self.queue = SimpleNamespace(force_put_nowait=lambda event: self.events.append(event))
        self.events: list[Any] = []


class App(SimpleNamespace):
    """A stand-in for the app, as far as its consumer asks for it."""

    def __init__(self) -> None:
        super().__init__(
            progress=Progress(60),
            tables=SimpleNamespace(changelog_topics={CHANGELOG.topic}, changelog_queue=asyncio.Queue(1)),
            in_recovery=False,
            topics=[Channel(tp.topic) for tp in (PARTITION, OTHER, CHANGELOG)],
            consumer_generation_id=0,
            producer=SimpleNamespace(flush=self.flush),
            flushes=True,
            told=[],
            ended=[],
            meanwhile=nothing,
            applied_elsewhere=0,
            topic_ids={PARTITION.topic: "id"},
            check_topics=nothing,
        )

    async def first_unapplied(self, tp: TP) -> int:
        return int(self.applied_elsewhere)

    async def lost(self, tp: TP, lost: LostRange) -> None:
        self.told.append((tp, lost, self.progress.committable(tp)))
        await self.meanwhile()

    def end(self, error: BaseException) -> None:
        self.ended.append(error)

    async def flush(self) -> bool:
        return bool(self.flushes)

    def on_rebalance_start(self) -> None: ...

    def on_rebalance_return(self) -> None: ...

    def create_event(self, key: Any, value: Any, headers: Any, message: Any) -> Any:
        return message


@pytest.fixture
def kafka() -> Kafka:
    return Kafka()


@pytest.fixture
def consumer(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> Consumer:
    monkeypatch.setattr(Consumer, "_new_client", lambda _: kafka)
    return Consumer(SimpleNamespace(app=App()), None, nothing, nothing)


@pytest.fixture
def progress(consumer: Consumer) -> Progress[TP]:
    """Return the progress of a partition that began at offset 10, with a token of the run before."""
    found = consumer.progress
    found.start(PARTITION, Start(10, Checkpoint(token="old")), time.monotonic())
    return found


def record(tp: TP, offset: int, value: bytes = b"x") -> Any:
    return SimpleNamespace(
        topic=tp.topic,
        partition=tp.partition,
        offset=offset,
        timestamp=0,
        timestamp_type=0,
        headers=(),
        key=None,
        value=value,
    )


def handed(consumer: Consumer, tp: TP) -> list[int]:
    """Return the offsets that have reached the agent of a partition's topic."""
    channel = next(c for c in cast(Any, consumer.app).topics if c.topics == [tp.topic])
    return [message.offset for message in channel.events]


async def turns() -> None:
    """Let the event loop run until no task can go on."""
    for _ in range(20):
        await asyncio.sleep(0)


def apply(progress: Progress[TP], first: int, last: int) -> None:
    epoch = progress.epoch(PARTITION)
    assert epoch is not None
    for offset in range(first, last + 1):
        assert progress.admit(PARTITION, offset, time.monotonic()) is Admission.APPLY
        assert progress.done(PARTITION, epoch, offset, offset, time.monotonic())


# Commits


async def test_what_is_applied_is_committed_with_its_token(
    consumer: Consumer, kafka: Kafka, progress: Progress[TP]
) -> None:
    progress.fence(PARTITION, "new")
    apply(progress, 10, 19)
    assert await consumer.commit()
    assert kafka.commits == [{PARTITION: (20, Checkpoint("new", 10, "id"))}]
    assert not await consumer.commit(), "nothing is new"
    progress.fence(PARTITION, "newer")
    assert await consumer.commit(), "without the newest token, the loss window would be applied again"
    assert kafka.commits[1] == {PARTITION: (20, Checkpoint("newer", 10, "id"))}


async def test_before_a_token_is_taken_the_one_of_the_run_before_stays_committed(
    consumer: Consumer, kafka: Kafka, progress: Progress[TP]
) -> None:
    assert await consumer.is_member()
    assert kafka.commits == [{PARTITION: (10, Checkpoint("old", 10, "id"))}]


async def test_a_rewind_takes_the_committed_offset_back(
    consumer: Consumer, kafka: Kafka, progress: Progress[TP]
) -> None:
    apply(progress, 10, 19)
    await consumer.commit()
    consumer.rewind(PARTITION, 12, earliest=0)
    assert kafka.sought == {PARTITION: 12}
    await consumer.commit()
    assert kafka.commits[-1] == {PARTITION: (12, Checkpoint("old", 12, "id"))}


async def test_a_partition_that_went_away_is_not_committed(
    consumer: Consumer, kafka: Kafka, progress: Progress[TP]
) -> None:
    apply(progress, 10, 19)
    kafka.assigned = set()
    assert not await consumer.commit()
    kafka.assigned = {PARTITION}
    progress.clear()
    assert not await consumer.commit()
    assert kafka.commits == []


async def test_who_may_not_commit_is_no_member(consumer: Consumer, kafka: Kafka, progress: Progress[TP]) -> None:
    kafka.takes_commits = False
    assert not await consumer.is_member()


async def test_what_is_done_is_committed_before_it_is_given_away(
    consumer: Consumer, kafka: Kafka, progress: Progress[TP]
) -> None:
    apply(progress, 10, 19)
    await consumer.on_revoked({PARTITION})
    assert kafka.commits == [{PARTITION: (20, Checkpoint("old", 10, "id"))}]
    assert PARTITION not in progress


async def test_a_stop_waits_for_no_commit_that_kafka_does_not_answer(
    consumer: Consumer, kafka: Kafka, progress: Progress[TP], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LAST_COMMIT_WITHIN", 0.01)
    apply(progress, 10, 12)
    kafka.meanwhile = asyncio.Event().wait  # type: ignore[assignment]
    regular = asyncio.create_task(consumer.commit())
    await turns()
    async with asyncio.timeout(10):
        await consumer.on_stop()
    assert kafka.is_stopped
    regular.cancel()


async def test_a_commit_overtaken_by_a_rebalance_is_not_taken_for_the_new_runs(
    consumer: Consumer, kafka: Kafka, progress: Progress[TP]
) -> None:
    apply(progress, 10, 19)
    kafka.meanwhile = lambda: consumer.on_assigned({PARTITION})
    await consumer.commit()
    kafka.meanwhile = nothing
    progress.start(PARTITION, Start(20, Checkpoint("old", 10)), time.monotonic())
    assert await consumer.commit()


# Beginning


async def begin(consumer: Consumer) -> asyncio.Task[None]:
    """Do what Faust does after a rebalance, once its tables are restored; returns the task that hands out."""
    await consumer.on_assigned({PARTITION})
    await consumer.perform_seek()
    handing = asyncio.create_task(consumer.hand_out())
    await turns()
    consumer.resume_flow()
    await turns()
    return handing


async def test_a_partition_begins_at_its_committed_offset(consumer: Consumer, kafka: Kafka) -> None:
    kafka.metadata = '{"token":"t","rewind":800}'
    handing = await begin(consumer)
    assert kafka.sought == {PARTITION: 881}
    assert consumer.progress.to_commit(PARTITION) == (881, Checkpoint("t", 800))
    assert kafka.paused == set()
    handing.cancel()


async def test_an_offset_of_a_deleted_topic_is_not_where_the_one_made_anew_begins(
    consumer: Consumer, kafka: Kafka
) -> None:
    kafka.metadata = '{"token":"t","rewind":800,"topic_id":"another"}'
    with capture_logs() as lines:
        handing = await begin(consumer)
    assert kafka.sought == {PARTITION: 0}
    assert consumer.progress.to_commit(PARTITION) == (0, Checkpoint("", 0))
    assert [line["event"] for line in lines if line["log_level"] == "error"] == [module.ANEW]
    handing.cancel()


async def test_an_offset_of_the_same_topic_is_where_it_begins(consumer: Consumer, kafka: Kafka) -> None:
    kafka.metadata = '{"token":"t","rewind":800,"topic_id":"id"}'
    handing = await begin(consumer)
    assert kafka.sought == {PARTITION: 881}
    handing.cancel()


async def test_nothing_begins_where_a_topic_was_made_anew(consumer: Consumer, kafka: Kafka) -> None:
    async def check_topics() -> None:
        raise TopicsError("made anew")

    consumer.app.check_topics = check_topics
    handing = await begin(consumer)
    with pytest.raises(TopicsError, match="made anew"):
        await handing
    assert kafka.sought == {}
    assert PARTITION not in consumer.progress


@pytest.mark.parametrize("metadata", ['{"token":1}', '{"token":"t"}\x00', "{"])
async def test_metadata_that_does_not_parse_is_an_error_in_the_log(
    consumer: Consumer, kafka: Kafka, metadata: str
) -> None:
    kafka.metadata = metadata
    with capture_logs() as lines:
        handing = await begin(consumer)
    assert [line["offset"] for line in lines if line["log_level"] == "error"] == [881]
    assert kafka.sought == {PARTITION: 881}
    handing.cancel()


async def test_records_that_are_gone_are_named_told_of_and_done(consumer: Consumer, kafka: Kafka) -> None:
    kafka.earliest = 900
    going_on = asyncio.Event()
    consumer.app.meanwhile = going_on.wait
    with capture_logs() as lines:
        handing = await begin(consumer)
    assert [(line["offset"], line["to_offset"]) for line in lines if line["log_level"] == "error"] == [(881, 900)]
    assert consumer.app.told == [(PARTITION, LostRange(881, 881, 900), 881)]
    # Until it is told, nothing behind it is read, whatever comes or asks.
    consumer.resume_partitions({PARTITION})
    consumer.fill_hole(PARTITION, "test")
    await turns()
    assert kafka.paused == {PARTITION}
    assert (kafka.sought, len(consumer.app.told)) == ({}, 1)
    going_on.set()
    await turns()
    assert (kafka.sought, kafka.paused) == ({PARTITION: 900}, set())
    # So the lag ends, also where nothing new comes.
    assert consumer.progress.committable(PARTITION) == 900
    handing.cancel()


@pytest.mark.parametrize(
    ("earliest", "elsewhere", "lost"),
    [(0, 0, []), (5, 0, [LostRange(0, 0, 5)]), (5, 3, [LostRange(3, 3, 5)]), (5, 5, []), (5, 80, [])],
)
async def test_a_group_that_has_committed_nothing_lacks_what_is_gone_and_not_known_to_be_applied(
    consumer: Consumer, kafka: Kafka, earliest: int, elsewhere: int, lost: list[LostRange]
) -> None:
    kafka.has_committed, kafka.earliest = False, earliest
    consumer.app.applied_elsewhere = elsewhere
    handing = await begin(consumer)
    assert [told for _, told, _ in consumer.app.told] == lost
    assert kafka.sought == {PARTITION: earliest}
    handing.cancel()


@pytest.mark.parametrize("event", ["on_revoked", "on_assigned"])
async def test_a_loss_overtaken_by_a_rebalance_is_not_done(consumer: Consumer, kafka: Kafka, event: str) -> None:
    kafka.earliest = 900
    consumer.app.meanwhile = lambda: getattr(consumer, event)({PARTITION})
    handing = await begin(consumer)
    assert len(consumer.app.told) == 1
    assert PARTITION not in consumer.progress
    assert kafka.sought == {}
    assert all(found[PARTITION][0] == 881 for found in kafka.commits)
    handing.cancel()


async def test_a_loss_whose_telling_rewinds_the_partition_is_told_in_the_next_run(
    consumer: Consumer, kafka: Kafka
) -> None:
    kafka.earliest = 900

    async def fence() -> None:
        consumer.app.meanwhile = nothing
        consumer.rewind(PARTITION, 870, kafka.earliest)
        raise Rewound

    consumer.app.meanwhile = fence
    handing = await begin(consumer)
    # Redis lost what it had from 870 on, and what lies between was never applied.
    assert [told for _, told, _ in consumer.app.told] == [LostRange(881, 881, 900), LostRange(870, 881, 900)]
    assert kafka.sought == {PARTITION: 900}
    assert kafka.paused == set()
    assert consumer.progress.committable(PARTITION) == 900
    handing.cancel()


async def test_a_loss_that_cannot_be_told_ends_the_worker_and_commits_nothing(consumer: Consumer, kafka: Kafka) -> None:
    kafka.earliest = 900

    async def fail() -> None:
        raise ValueError("broken")

    consumer.app.meanwhile = fail
    handing = await begin(consumer)
    assert [str(error) for error in consumer.app.ended] == ["broken"]
    assert consumer.progress.committable(PARTITION) == 881
    handing.cancel()


@pytest.mark.parametrize("event", ["on_revoked", "on_assigned"])
async def test_a_beginning_overtaken_by_a_rebalance_begins_nothing(
    consumer: Consumer, kafka: Kafka, event: str
) -> None:
    # Otherwise 881 would be committed when the partition comes back, even below another worker's later commit.
    kafka.meanwhile = lambda: getattr(consumer, event)({PARTITION})
    handing = await begin(consumer)
    assert PARTITION not in consumer.progress
    assert kafka.sought == {}
    handing.cancel()


async def test_a_kafka_that_is_away_at_the_beginning_is_waited_for(
    consumer: Consumer, kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.0)
    tries: list[None] = []

    async def away() -> None:
        tries.append(None)
        if len(tries) < 3:
            raise KafkaConnectionError

    kafka.meanwhile = away
    handing = await begin(consumer)
    assert kafka.sought == {PARTITION: 881}
    handing.cancel()


# From Kafka to the agents


async def test_until_the_tables_are_restored_changelogs_alone_are_read(consumer: Consumer, kafka: Kafka) -> None:
    kafka.assigned = {PARTITION, CHANGELOG}
    await consumer.on_assigned(kafka.assigned)
    assert kafka.paused == {PARTITION, CHANGELOG}
    consumer.resume_partitions({PARTITION, CHANGELOG})
    assert kafka.paused == {PARTITION}
    consumer.resume_flow()
    handing = asyncio.create_task(consumer.hand_out())
    kafka.records.put_nowait({CHANGELOG: [record(CHANGELOG, 5)]})
    await turns()
    assert handed(consumer, CHANGELOG) == [5]
    assert PARTITION not in consumer.progress
    # However many they are, as long as their queue has room.
    for turn in range(2):
        kafka.records.put_nowait({CHANGELOG: [record(CHANGELOG, n) for n in range(HELD_RECORDS)]})
        await turns()
        assert len(handed(consumer, CHANGELOG)) == 1 + HELD_RECORDS * (turn + 1)
    consumer.app.in_recovery = True
    consumer.app.tables.changelog_queue.put_nowait(None)
    kafka.records.put_nowait({})
    await turns()
    assert kafka.polled[-1][1] == (PARTITION,)
    handing.cancel()


async def test_what_was_polled_when_a_rebalance_began_is_dropped(consumer: Consumer, kafka: Kafka) -> None:
    handing = await begin(consumer)
    consumer.stop_flow()
    kafka.records.put_nowait({TopicPartition(*PARTITION): [record(PARTITION, 881)]})
    await turns()
    assert handed(consumer, PARTITION) == []
    handing.cancel()


@pytest.mark.parametrize(
    ("count", "value"), [(HELD_RECORDS, b"x"), (2, bytes(HELD_BYTES // 2))], ids=["records", "bytes"]
)
async def test_no_more_is_polled_for_an_agent_until_it_takes_some(
    consumer: Consumer, kafka: Kafka, count: int, value: bytes
) -> None:
    kafka.assigned = {PARTITION, OTHER}
    handing = await begin(consumer)
    found = [record(PARTITION, 881 + n, value) for n in range(count)]
    kafka.records.put_nowait({PARTITION: found})
    await turns()
    assert kafka.polled[-1][1] == (OTHER,), "the agent of the other topic has room"
    kafka.records.put_nowait({OTHER: [record(OTHER, n, value) for n in range(count)]})
    await turns()
    polls = len(kafka.polled)
    await turns()
    assert len(kafka.polled) == polls, "no agent has room"
    consumer.took(PARTITION.topic, 1, len(value))
    await turns()
    assert kafka.polled[-1][1] == (PARTITION,)
    handing.cancel()


async def test_after_a_hole_a_partition_goes_back_to_what_the_log_still_has(
    consumer: Consumer, kafka: Kafka, progress: Progress[TP]
) -> None:
    now = time.monotonic()
    progress.start(PARTITION, Start(10, Checkpoint()), now - 100)
    consumer.fill_hole(PARTITION, "test")
    await turns()
    assert kafka.sought == {PARTITION: 10}
    kafka.earliest = 15
    progress.start(PARTITION, Start(9, Checkpoint()), now - 100)
    # Record 9 is under way: what comes behind it is told of, and skipped, only after it.
    progress.admit(PARTITION, 9, now - 100)
    consumer.fill_hole(PARTITION, "test")
    await turns()
    assert consumer.app.told == []
    epoch = progress.epoch(PARTITION)
    assert epoch is not None
    assert progress.done(PARTITION, epoch, 9, 9, now)
    await asyncio.sleep(DONE_LOOK_SECONDS)
    await turns()
    assert consumer.app.told == [(PARTITION, LostRange(10, 10, 15), 10)]
    assert kafka.commits[-1][PARTITION][0] == 10, "what is done is not to be taken for lost after a crash"
    assert kafka.sought == {PARTITION: 15}
    assert progress.admit(PARTITION, 15, now) is Admission.APPLY


async def test_a_callback_that_fails_ends_the_worker(consumer: Consumer, monkeypatch: pytest.MonkeyPatch) -> None:
    crashes: list[BaseException] = []

    async def crash(error: BaseException) -> None:
        crashes.append(error)

    async def fail(_: Any) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(consumer, "crash", crash)
    monkeypatch.setattr(consumer, "on_revoked", fail)
    await Listener(consumer).on_partitions_revoked([])
    assert [str(error) for error in crashes] == ["broken"]


async def test_a_session_timeout_that_kafka_refuses_ends_the_app_naming_the_setting(
    consumer: Consumer, kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any) -> dict[TP, list[Any]]:
        kafka.polled.append((0, ()))
        raise KafkaConnectionError if len(kafka.polled) == 1 else InvalidSessionTimeoutError

    monkeypatch.setattr(module, "JOIN_LOOK_SECONDS", 0)
    monkeypatch.setattr(kafka, "poll", refuse)
    app = cast(Any, consumer.app)
    app.conf = SimpleNamespace(broker_session_timeout=1.0)
    # aiokafka calls this before it joins.
    await consumer.on_revoked(set())
    await consumer._watch_joining()
    (error,) = app.ended
    assert isinstance(error, SettingsError)
    assert str(error).startswith("CHAT_SESSION_TIMEOUT is 1: ")
    assert len(kafka.polled) == 2


async def test_joining_is_not_watched_once_the_group_was_joined(consumer: Consumer, kafka: Kafka) -> None:
    await consumer.on_assigned({PARTITION})
    await consumer._watch_joining()
    assert not kafka.polled
