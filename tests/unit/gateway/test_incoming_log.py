"""The log as a gateway reads it: nobody waits for what it does not hold, and one client asks for all who wait."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from aiokafka.errors import KafkaConnectionError

from chat_streams.model.errors import BeyondLog, HistoryUnavailable
from chat_streams.model.position import MAX_GENERATION, MAX_INDEX, ORIGIN, Position
from chat_streams.runtime.settings import Settings
from gateway.incoming_log import IncomingLog


class Log(IncomingLog):
    """A log of a generation that ends where the test says."""

    def __init__(self, generation: int, end: Position, timeout: float = 10.0) -> None:
        super().__init__(Settings(engine_timeout=timeout))
        self._generation = generation
        self._end = end

    async def end(self, partition: int) -> Position:
        return self._end


@pytest.mark.parametrize(
    ("end", "until"),
    [
        (Position.of(2, 9, MAX_INDEX), Position.of(2, 10, 0)),
        (Position.of(2, 9, MAX_INDEX), Position.of(MAX_GENERATION, 0, 0)),
        # Nothing is on the partition yet.
        (ORIGIN, Position.of(2, 0, 0)),
    ],
)
async def test_history_does_not_wait_for_what_is_beyond_the_log(end: Position, until: Position) -> None:
    with pytest.raises(BeyondLog):
        await Log(2, end).wait_for_history("bob", until)


@pytest.mark.parametrize("until", [ORIGIN, Position.of(1, 99, 3)])
async def test_what_is_of_an_earlier_log_is_written(until: Position) -> None:
    await Log(2, ORIGIN).wait_for_history("bob", until)


class _Committed(NamedTuple):
    offset: int


class Admin:
    """A stand-in for Kafka's admin client, which finds that history has all up to ``committed``."""

    made: list[Admin]
    committed = 10
    is_away = False

    def __init__(self, **_: Any) -> None:
        self.made.append(self)
        self.is_open = False

    async def start(self) -> None:
        await asyncio.sleep(0)
        if self.is_away:
            raise KafkaConnectionError
        self.is_open = True

    async def close(self) -> None:
        self.is_open = False

    async def list_consumer_group_offsets(self, group: str, partitions: Sequence[Any]) -> dict[Any, _Committed]:
        assert self.is_open
        return {tp: _Committed(self.committed) for tp in partitions}


@pytest.fixture
def _admin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Admin, "made", [], raising=False)
    monkeypatch.setattr("gateway.incoming_log.AIOKafkaAdminClient", Admin)


@pytest.fixture
def log(_admin: None) -> IncomingLog:
    return Log(1, Position.of(1, 9, 0))


async def test_all_ranges_of_history_share_one_client(log: IncomingLog) -> None:
    await asyncio.gather(*(log.wait_for_history("bob", Position.of(1, 5, 0)) for _ in range(20)))
    await log.wait_for_history("carla", Position.of(1, 9, 0))
    (admin,) = Admin.made
    assert admin.is_open
    await log.stop()
    assert not admin.is_open


async def test_a_client_that_cannot_connect_is_made_anew(log: IncomingLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Admin, "is_away", True)
    with pytest.raises(HistoryUnavailable):
        await log.wait_for_history("bob", Position.of(1, 5, 0))
    monkeypatch.setattr(Admin, "is_away", False)
    await log.wait_for_history("bob", Position.of(1, 5, 0))
    assert [admin.is_open for admin in Admin.made] == [False, True]


@pytest.mark.usefixtures("_admin")
async def test_a_wait_ends_where_history_does_not_come_on_and_leaves_the_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Log(1, Position.of(1, 9, 0), timeout=0.5)
    monkeypatch.setattr(Admin, "committed", 3)
    with pytest.raises(HistoryUnavailable):
        await log.wait_for_history("bob", Position.of(1, 5, 0))
    monkeypatch.setattr(Admin, "committed", 6)
    await log.wait_for_history("bob", Position.of(1, 5, 0))
    assert len(Admin.made) == 1
