"""Fencing: a worker whose token a Redis server does not have, or whose partitions are taken meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import cast

import pytest
from faust.types import TP

from chat_streams.kafka.generations import Generation
from chat_streams.kafka.names import INCOMING_MESSAGES, partition_of
from chat_streams.model.errors import RedisUnavailable, Rewound
from chat_streams.model.position import Position
from chat_streams.processing.offsets import Checkpoint, Progress, Start
from chat_streams.processing.ordered import OrderedApp
from chat_streams.recovery.eviction import EvictionWatch
from chat_streams.recovery.fencing import Fencing
from chat_streams.recovery.former_libraries import FormerLibraries
from chat_streams.recovery.previous_logs import KeptLog
from chat_streams.runtime.settings import Settings
from tables.inbox import Inbox

FIRST, SECOND = TP(INCOMING_MESSAGES, 0), TP(INCOMING_MESSAGES, 1)


class Worker:
    """A stand-in for the app and its consumer."""

    def __init__(self) -> None:
        self.progress: Progress[TP] = Progress(60)
        self.rewound: dict[TP, int] = {}
        self.earliest = 0
        self.should_stop = self.rebalancing = self.in_recovery = False

    @property
    def consumer(self) -> Worker:
        return self

    def assignment(self) -> set[TP]:
        return {tp for tp in (FIRST, SECOND) if tp in self.progress}

    async def is_member(self) -> bool:
        return True

    async def earliest_offsets(self, *partitions: TP) -> dict[TP, int]:
        return dict.fromkeys(partitions, self.earliest)

    async def rewind(self, offsets: Mapping[TP, int]) -> None:
        for tp, offset in offsets.items():
            self.rewound[tp] = offset
            self.progress.rewind(tp, offset, time.monotonic())

    def start(self, offset: int, rewind: int = 0) -> None:
        for tp in (FIRST, SECOND):
            self.progress.start(tp, Start(offset, Checkpoint(token="before", rewind=rewind)), time.monotonic())


class Store:
    """A stand-in for Redis: its answer on the token of each partition, after an event that ``meanwhile`` causes."""

    def __init__(self) -> None:
        self.marks: dict[int, int | None] = {0: None, 1: None}
        self.meanwhile: Callable[[], object] = lambda: None
        self.tokens: dict[int, str] = {}
        self.restored: dict[str, Position | None] = {}

    async def restore(self, devices: Mapping[str, object], gone: Callable[[str], Position | None]) -> None:
        """Note what is told of what is gone."""
        self.restored |= {user: gone(user) for user in devices}

    async def fence(self, partition: int, expected: str, token: str) -> int | None:
        self.tokens[partition] = token
        self.meanwhile()
        return self.marks[partition]


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def store() -> Store:
    return Store()


class Servers:
    """A stand-in for the look at the servers' policy: how often it is still one that evicts."""

    def __init__(self) -> None:
        self.evicting = 0

    async def demand(self) -> None:
        if self.evicting:
            self.evicting -= 1
            raise RedisUnavailable("maxmemory-policy is allkeys-lru")


@pytest.fixture
def servers() -> Servers:
    return Servers()


@pytest.fixture
def fencing(worker: Worker, store: Store, servers: Servers) -> Fencing:
    return Fencing(
        cast(OrderedApp, worker),
        cast(Inbox, store),
        cast(EvictionWatch, servers),
        cast(FormerLibraries, None),
        cast(Settings, None),
    )


async def test_a_server_that_knows_the_token_costs_no_rewind(fencing: Fencing, worker: Worker, store: Store) -> None:
    worker.start(100)
    assert await fencing.token(0) == store.tokens[0]
    assert worker.rewound == {}


async def test_a_server_that_does_not_know_it_rewinds_before_the_next_append(
    fencing: Fencing, worker: Worker, store: Store
) -> None:
    worker.start(100, rewind=40)
    store.marks[0] = 90
    with pytest.raises(Rewound):
        await fencing.token(0)
    assert worker.rewound == {FIRST: 40}
    # Both partitions have a token now: the rewound one that of its new run.
    assert await fencing.token(0) == store.tokens[0]
    assert await fencing.token(1) == store.tokens[1]


@pytest.mark.parametrize(
    ("earliest", "mark", "begins"),
    [
        pytest.param(50, 90, 50, id="the server has what the log lacks"),
        pytest.param(95, 90, 90, id="neither has a part"),
        pytest.param(100, 100, 100, id="a log that is empty, and a server that has all"),
        pytest.param(100, 0, 100, id="a server that has lost all, which is restored"),
    ],
)
async def test_a_rewind_reaches_below_the_log_only_for_what_the_server_lost(
    fencing: Fencing,
    worker: Worker,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    earliest: int,
    mark: int,
    begins: int,
) -> None:
    async def no_devices(*_: object) -> dict[str, object]:
        return {}

    async def no_logs(_: Settings) -> list[Generation]:
        return []

    monkeypatch.setattr("chat_streams.recovery.fencing.logged_devices", no_devices)
    monkeypatch.setattr("chat_streams.recovery.previous_logs.kept", all_kept)
    monkeypatch.setattr("chat_streams.kafka.generations.previous", no_logs)
    worker.start(100, rewind=40)
    worker.earliest, store.marks[0] = earliest, mark
    with pytest.raises(Rewound):
        await fencing.token(0)
    assert worker.rewound == {FIRST: begins}


async def all_kept(_: Settings) -> list[KeptLog]:
    return [KeptLog(1, [0, 0])]


@pytest.mark.parametrize(("mark", "gone"), [(0, Position.before(1, 7)), (30, None)])
async def test_what_is_gone_from_the_log_is_told_where_that_is_applied_from_its_beginning(
    worker: Worker, store: Store, servers: Servers, monkeypatch: pytest.MonkeyPatch, mark: int, gone: Position | None
) -> None:
    async def kept(_: Settings) -> list[KeptLog]:
        return [KeptLog(1, [7, 7])]

    async def devices(_: Settings, partitions: list[int]) -> dict[str, object]:
        return {"bob": {}}

    async def no_logs(_: Settings) -> list[Generation]:
        return []

    monkeypatch.setattr("chat_streams.kafka.generations.previous", no_logs)
    monkeypatch.setattr("chat_streams.recovery.previous_logs.kept", kept)
    monkeypatch.setattr("chat_streams.recovery.fencing.logged_devices", devices)
    fencing = Fencing(
        cast(OrderedApp, worker),
        cast(Inbox, store),
        cast(EvictionWatch, servers),
        cast(FormerLibraries, None),
        Settings(partitions=2),
    )
    partition = partition_of("bob", 2)
    worker.start(100, rewind=40)
    store.marks[partition] = mark
    with pytest.raises(Rewound):
        await fencing.token(partition)
    assert store.restored == {"bob": gone}


async def test_nothing_is_fenced_while_a_server_evicts(
    fencing: Fencing, worker: Worker, store: Store, servers: Servers
) -> None:
    worker.start(100)
    servers.evicting = 2
    store.meanwhile = lambda: found.append(servers.evicting)
    found: list[int] = []
    assert await fencing.token(0) == store.tokens[0]
    assert found == [0, 0]


async def test_partitions_taken_away_meanwhile_are_left_alone(fencing: Fencing, worker: Worker, store: Store) -> None:
    worker.start(100)
    store.marks = {0: 10, 1: 10}
    store.meanwhile = lambda: worker.progress.clear()
    with pytest.raises(Rewound):
        await fencing.token(0)
    assert worker.rewound == {}


async def test_a_run_that_began_meanwhile_gets_no_token_of_the_one_before(
    fencing: Fencing, worker: Worker, store: Store
) -> None:
    worker.start(100)
    store.meanwhile = lambda: worker.start(50)
    with pytest.raises(Rewound):
        await fencing.token(0)
    assert not worker.progress.token(FIRST)


async def test_a_worker_cut_off_from_kafka_takes_no_token(fencing: Fencing, worker: Worker, store: Store) -> None:
    worker.start(100)

    async def asked() -> bool:
        # Kafka assigns the partitions to another worker while this one is asking.
        worker.progress.clear()
        return False

    worker.is_member = asked  # type: ignore[method-assign]
    with pytest.raises(Rewound):
        await fencing.token(0)
    assert store.tokens == {}


@pytest.mark.parametrize(("is_applied", "applied"), [(True, []), (False, [1, 2])])
async def test_the_previous_log_is_applied_before_anything_new(
    fencing: Fencing,
    worker: Worker,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    is_applied: bool,
    applied: list[int],
) -> None:
    logs = [Generation(1, "a", 1, 1), Generation(2, "b", 2, 2)]
    found: list[int] = []

    async def previous_logs(_: Settings) -> list[Generation]:
        return logs

    async def look(_: Settings, __: Inbox, log: Generation) -> bool:
        return is_applied or log.generation == 2

    async def apply(_: Settings, __: Inbox, log: Generation, tokens: Mapping[int, str]) -> None:
        # Until it is done, nothing new can be appended: no worker has been given these tokens yet.
        assert tokens == store.tokens
        assert not worker.progress.token(FIRST)
        found.append(log.generation)

    async def no_devices(*_: object) -> dict[str, object]:
        return {}

    monkeypatch.setattr("chat_streams.kafka.generations.previous", previous_logs)
    monkeypatch.setattr("chat_streams.recovery.previous_logs.is_applied", look)
    monkeypatch.setattr("chat_streams.recovery.previous_logs.apply", apply)
    monkeypatch.setattr("chat_streams.recovery.fencing.logged_devices", no_devices)
    monkeypatch.setattr("chat_streams.recovery.previous_logs.kept", all_kept)
    for tp in (FIRST, SECOND):
        worker.progress.start(tp, Start(0, Checkpoint()), time.monotonic())
    store.marks = {0: 0, 1: 0}
    assert await fencing.token(0) == store.tokens[0]
    assert found == applied
    assert worker.rewound == {}
