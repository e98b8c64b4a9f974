"""Which requests for pages are answered; and that an outage ends, though all who wait ask again and again."""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping

import pytest

from chat_streams.model.errors import KafkaUnavailable
from chat_streams.processing.page_requests import LOOK_SECONDS, Asked, End, NewestTimes, worth_answering
from gateway.state.delivery_state import FIRST_TIMEOUT, LONGEST_TIMEOUT

T = 1_800_000_000_000


def asked(connection: bytes, at: int, timeout_ms: int = 2_000, partition: int = 0) -> Asked[str]:
    return Asked(connection, partition, at, timeout_ms, f"{connection.decode()} {at - T}")


def test_the_newest_request_of_a_connection_replaces_the_others() -> None:
    found = worth_answering([asked(b"a", T), asked(b"b", T), asked(b"a", T + 9)], {0: T + 9})
    assert [request.wanted for request in found] == ["a 9", "b 0"]


def test_a_request_is_outdated_by_the_log_of_its_partition_alone() -> None:
    requests = [asked(b"a", T), asked(b"b", T + 1), asked(b"c", T, partition=1), asked(b"d", T, partition=2)]
    found = worth_answering(requests, {0: T + 2_001, 1: T - 3_600_000})
    assert [request.wanted for request in found] == ["b 1", "c 0", "d 0"]


# The log's newest time


class Log:
    """A partition: how far it was read, and the looks at its last record."""

    def __init__(self) -> None:
        self.end: End | None = None
        self.looks: list[dict[int, int]] = []
        self.last = 0
        self.away = False
        self.times = NewestTimes(lambda partition: self.end if partition == 3 else None, self.look)

    async def look(self, offsets: Mapping[int, int]) -> dict[int, int]:
        self.looks.append(dict(offsets))
        if self.away:
            raise KafkaUnavailable("away")
        return {3: self.last}


async def test_who_has_read_all_looks_nowhere() -> None:
    log = Log()
    assert await log.times.of([3, 4], 0.0) == {}
    log.end = End(99, T, 100)
    assert await log.times.of([3, 4], 0.0) == {3: T}
    assert log.looks == []


async def test_who_is_behind_looks_at_the_last_record_once_in_a_while() -> None:
    log = Log()
    log.end, log.last = End(99, T, 1_000), T + 60_000
    assert await log.times.of([3, 3], 0.0) == {3: T + 60_000}
    log.end = End(500, T + 1, 1_000)
    assert await log.times.of([3], LOOK_SECONDS / 2) == {3: T + 60_000}
    assert log.looks == [{3: 999}]
    log.end, log.last = End(600, T + 2, 2_000), T + 61_000
    assert await log.times.of([3], LOOK_SECONDS) == {3: T + 61_000}
    assert log.looks == [{3: 999}, {3: 1_999}]


async def test_a_clock_of_a_broker_that_was_set_back_outdates_nothing() -> None:
    log = Log()
    log.end, log.last = End(99, T, 1_000), T + 3_600_000
    await log.times.of([3], 0.0)
    # Read past that record: what comes now has the right time again.
    log.end = End(1_200, T + 5, 1_201)
    assert await log.times.of([3], 1.0) == {3: T + 5}


async def test_with_kafka_away_what_was_read_counts() -> None:
    log = Log()
    log.end, log.away = End(99, T, 1_000), True
    assert await log.times.of([3], 0.0) == {3: T}


# An outage

CONNECTIONS = 2_000
RATE = 400
"""Pages a second that the service reads."""
OUTAGE_S = 300
BATCH = 100
AHEAD = 500
"""Records that are read ahead of the agent."""


class Simulation:
    """Connections that all want a page, each asking again with the timeouts of a gateway, and a service that was away.

    The time of the log is that of the simulation; a record holds one request. ``policy`` is what decides which requests
    are answered.
    """

    def __init__(self, policy: str, seed: int) -> None:
        self.rng = random.Random(seed)
        self.policy = policy
        self.log: list[Asked[int]] = []
        self.attempts = [0] * CONNECTIONS
        self.waiting = set(range(CONNECTIONS))
        self.timers: list[tuple[float, int]] = []
        self.now = 0.0
        for connection in range(CONNECTIONS):
            heapq.heappush(self.timers, (self.rng.uniform(0, 1), connection))

    def ask_until(self, now: float) -> None:
        """Let all ask whose time has come."""
        self.now = now
        while self.timers and self.timers[0][0] <= now:
            at, connection = heapq.heappop(self.timers)
            if connection not in self.waiting:
                continue
            timeout = min(LONGEST_TIMEOUT, FIRST_TIMEOUT * 2 ** self.attempts[connection]) * self.rng.uniform(0.5, 1)
            self.attempts[connection] += 1
            ms = T + int(1000 * at)
            self.log.append(Asked(b"%d" % connection, 0, ms, int(1000 * timeout), connection))
            heapq.heappush(self.timers, (at + timeout, connection))

    async def heal(self) -> float:
        """Answer from the beginning of the log; returns the seconds until everyone has a page."""
        self.ask_until(OUTAGE_S)
        next_, times = 0, NewestTimes(self._read_to, self._look)
        while self.waiting:
            self.next = next_
            batch = self.log[next_ : next_ + BATCH]
            next_ += len(batch)
            newest = await times.of([0], self.now)
            chosen = worth_answering(batch, newest) if self.policy == "log" else batch
            for request in chosen:
                # An answer counts only while it is waited for, as one did that the deadline was compared with.
                if self.now - (request.at - T) / 1000 <= request.timeout_ms / 1000:
                    self.waiting.discard(request.wanted)
            self.ask_until(self.now + len(chosen) / RATE + 0.005)
            if self.now > 4 * OUTAGE_S:
                break
        return self.now - OUTAGE_S

    def _read_to(self, partition: int) -> End:
        last = min(len(self.log), self.next + AHEAD) - 1
        return End(last, self.log[last].at, len(self.log))

    async def _look(self, offsets: Mapping[int, int]) -> dict[int, int]:
        return {0: self.log[offsets[0]].at}


@pytest.mark.parametrize("seed", range(3))
async def test_an_outage_ends_soon_after_the_service_is_back(seed: int) -> None:
    # What all pages take, and the longest time until a connection asks again.
    assert await Simulation("log", seed).heal() < CONNECTIONS / RATE + LONGEST_TIMEOUT


async def test_without_skipping_it_would_take_much_longer() -> None:
    assert await Simulation("all", 0).heal() > 2 * (CONNECTIONS / RATE + LONGEST_TIMEOUT)
